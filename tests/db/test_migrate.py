"""Migrations: once, under a lock, with a backup before, never downwards, and without Alembic where nothing is to be done."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text

from app.core.errors import ConfigurationError, Conflict, SchemaTooNew
from app.core.settings import Settings
from app.db import backup, migrate
from app.db.database import Database, open_database
from app.db.locks import open_lock
from app.db.predictions import Predictions
from app.db.schema import metadata
from app.db.users import Users
from tests.db import make
from tests.db.conftest import BOTH, postgres_settings
from tests.db.postgres import Cluster

ROOT = Path(__file__).parents[2]
_NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("versions", sa.Column("extra", sa.Text()))
    {more}
"""
_OLD_ROWS = (
    """INSERT INTO users (id, username, username_key, role, password_hash, created_at)
    VALUES ('u', 'ana', 'ana', 'user', 'x', 1)""",
    """INSERT INTO predictions (id, user_id, created_at, provider, model, version, input, output, finish_reason, prompt_tokens,
    completion_tokens, queue_ms, first_token_ms, total_ms, status, error, cached, key_id, conversation_id, request_id, alias,
    tool_calls) VALUES ('01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e77', 'u', 1, 'echo', 'echo', 'v', '{}', 'Las doce.', 'stop', 7, 3,
    0.5, NULL, 1.5, 'ok', NULL, FALSE, NULL, NULL, 'r', 'default', '[]')""",
)


def next_revision(path: Path, more: str) -> None:
    """Writes the revision, with one more statement."""
    path.write_text(_NEXT.format(more=more))


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of the future with a further revision; gives the file of that revision."""
    scripts = tmp_path / "scripts"
    shutil.copytree(ROOT / "app/db/migrations", scripts, ignore=shutil.ignore_patterns("__pycache__"))
    second = scripts / "versions" / "r0005_extra.py"
    next_revision(second, "pass")
    monkeypatch.setattr(migrate, "_SCRIPTS", scripts)
    monkeypatch.setattr(migrate, "HEAD", "0005")
    return second


def columns(settings: Settings) -> set[str]:
    """The columns of ``versions`` in the file."""
    connection = sqlite3.connect(settings.data_dir / "aprendiz.db")
    found = {row[1] for row in connection.execute("PRAGMA table_info(versions)")}
    connection.close()
    return found


def backups(settings: Settings) -> list[Path]:
    return sorted((settings.data_dir / "backups").glob("*.db"))


def url(settings: Settings) -> str:
    return f"sqlite:///{settings.data_dir / 'aprendiz.db'}"


def test_the_constant_is_the_newest_revision() -> None:
    assert ScriptDirectory.from_config(migrate.config()).get_heads() == [migrate.head()]


def ours(_item: object, name: str | None, *_more: object) -> bool:
    """Not what a database keeps for its index of words, which no table of ours describes."""
    return not (name or "").startswith(("chunk_words", "ix_chunks_words"))


async def test_the_migrations_make_the_schema(database: Database) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "include_object": ours}
        )
        return list(compare_metadata(context, metadata))

    assert await database.read(differences) == []


def test_start_on_a_current_database_needs_no_alembic(settings: Settings) -> None:
    program = f"""
import asyncio, sys
from pathlib import Path
import app.db.backup, app.db.sqlite, app.db.migrate, app.db.users, app.db.feedback, app.db.versions, app.db.audit
from app.core.settings import Settings
from app.db.database import open_database

async def main():
    database = open_database(Settings(data_dir=Path({str(settings.data_dir)!r})))
    await database.open()
    await database.ping()
    await database.aclose()

asyncio.run(main())
print([name for name in ("alembic", "mako", "numpy", "psycopg", "greenlet") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_current_and_upgrade_for_the_command_line(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert migrate.current(url(settings)) is None
    assert migrate.upgrade(settings) == ""
    assert migrate.current(url(settings)) == migrate.head()
    assert migrate.upgrade(settings) == migrate.head()
    assert backups(settings) == []


async def test_a_newer_schema_is_refused_and_left_alone(settings: Settings) -> None:
    path = settings.data_dir / "aprendiz.db"
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = path.read_bytes()
    for attempt in (open_database(settings).open(), asyncio.to_thread(migrate.upgrade, settings)):
        with pytest.raises(SchemaTooNew, match=r"9999.*restore"):
            await attempt
    assert path.read_bytes() == before
    assert backups(settings) == []


async def test_a_migration_backs_up_first(settings: Settings, newer: Path) -> None:
    database = open_database(settings)
    await database.open()
    await database.aclose()
    assert "extra" in columns(settings)
    assert migrate.current(url(settings)) == "0005"
    (made,) = backups(settings)
    assert made.name.startswith("before-migration-")
    assert migrate.current(f"sqlite:///{made}") == "0004"
    assert backup.verify(made).path == made


async def test_the_newest_five_automatic_backups_stay(settings: Settings, newer: Path) -> None:
    mine = settings.data_dir / "backups" / "mine.db"
    backup.backup(settings, mine)
    for _ in range(7):
        assert migrate.upgrade(settings) == "0004"
        with sqlite3.connect(settings.data_dir / "aprendiz.db") as connection:
            connection.execute("ALTER TABLE versions DROP COLUMN extra")
            connection.execute("UPDATE alembic_version SET version_num = '0004'")
        connection.close()
    automatic = [path for path in backups(settings) if path != mine]
    assert len(automatic) == 5
    assert sorted((settings.data_dir / "backups").iterdir()) == sorted(
        path for each in (*automatic, mine) for path in (each, each.with_name(each.name + ".sha256"))
    )


async def test_a_failing_migration_leaves_no_trace(settings: Settings, newer: Path) -> None:
    next_revision(newer, "raise RuntimeError('half-way')")
    with pytest.raises(RuntimeError, match="half-way"):
        await open_database(settings).open()
    assert "extra" not in columns(settings)
    assert migrate.current(url(settings)) == "0004"
    next_revision(newer, "pass")
    database = open_database(settings)
    await database.open()
    await Users(database).create(make.user())
    await database.aclose()


async def test_a_migration_under_a_running_service_is_refused(settings: Settings, newer: Path) -> None:
    running = open_lock(settings.data_dir / "aprendiz.db")
    assert running.acquire(shared=True)
    with pytest.raises(Conflict, match="Stop the service"):
        await open_database(settings).open()
    assert "extra" not in columns(settings)
    running.release()
    assert migrate.upgrade(settings) == "0004"


def start_together(settings_of: str) -> None:
    """Two processes open the same new database at the same time; each stores a user and reads."""
    program = f"""
import asyncio
from pathlib import Path
from pydantic import SecretStr
from app.core.settings import Database, Settings
from app.db.database import open_database
from app.db.users import Users
from app.core.ids import uuid7
from tests.db import make

async def main():
    database = open_database({settings_of})
    await database.open()
    user = make.user(id=uuid7())
    await Users(database).create(user)
    assert await Users(database).get(user.id) == user
    await database.aclose()

asyncio.run(main())
"""
    running = [subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors


async def test_processes_that_start_together_all_end_well(tmp_path: Path) -> None:
    await asyncio.to_thread(start_together, f"Settings(data_dir=Path({str(tmp_path)!r}))")
    database = open_database(Settings(data_dir=tmp_path))
    await database.open()
    assert await Users(database).count() == 2
    await database.aclose()


@pytest.mark.postgres
async def test_processes_that_start_together_on_postgres_all_end_well(cluster: Cluster, tmp_path: Path) -> None:
    cluster.execute("CREATE DATABASE together")
    url = cluster.url("together")
    await asyncio.to_thread(
        start_together, f"Settings(data_dir=Path({str(tmp_path)!r}), database=Database(url=SecretStr({url!r})))"
    )
    database = open_database(postgres_settings(cluster, "together", tmp_path))
    await database.open()
    assert await Users(database).count() == 2
    await database.aclose()


@pytest.mark.postgres
async def test_postgres_migrates_in_one_transaction(cluster: Cluster, tmp_path: Path, newer: Path) -> None:
    cluster.execute("CREATE DATABASE one_transaction")
    settings = postgres_settings(cluster, "one_transaction", tmp_path)
    next_revision(newer, "raise RuntimeError('half-way')")
    with pytest.raises(RuntimeError, match="half-way"):
        await open_database(settings).open()
    assert migrate.current(cluster.url("one_transaction")) is None
    next_revision(newer, "pass")
    assert migrate.upgrade(settings) == ""
    cluster.execute("UPDATE alembic_version SET version_num = '9999'", name="one_transaction")
    with pytest.raises(SchemaTooNew):
        await open_database(settings).open()


@pytest.mark.parametrize("kind", BOTH)
async def test_the_first_schema_with_data_is_brought_up(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if kind == "sqlite":
        settings = Settings(data_dir=tmp_path)
        engine = create_engine(url(settings))
    else:
        cluster = request.getfixturevalue("cluster")
        cluster.execute("CREATE DATABASE first_schema")
        settings = postgres_settings(cluster, "first_schema", tmp_path)
        engine = create_engine(cluster.url("first_schema").replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        command.upgrade(migrate.config(connection), "0001")
        for statement in _OLD_ROWS:
            connection.execute(text(statement))
        connection.commit()
    engine.dispose()
    database = open_database(settings)
    await database.open()
    found = await Predictions(database).get("01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e77")
    assert found is not None
    assert (found.output, found.alias, found.tool_calls) == ("Las doce.", "default", ())
    assert (found.cached_tokens, found.cost_nanousd, found.fallback, found.reasoning) == (0, None, None, "")
    assert await Predictions(database).spent(since_ms=0, until_ms=2**48 - 1, slice_bits=24) == []
    priced = await make.stored_prediction(database, found.user_id, cost_nanousd=5)
    assert await Predictions(database).get(priced.id) == priced
    await database.aclose()
    if kind == "sqlite":
        (made,) = backups(settings)
        assert migrate.current(f"sqlite:///{made}") == "0001"


@pytest.mark.postgres
async def test_postgres_must_hold_utf8(cluster: Cluster, tmp_path: Path) -> None:
    cluster.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(ConfigurationError, match="UTF8"):
        await open_database(postgres_settings(cluster, "latin", tmp_path)).open()
