"""The entry point: help, exit codes, errors as one line."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys

import pytest

from tests.cli.conftest import ROOT, Cli

HEAVY = ("fastapi", "sqlalchemy", "pydantic", "aiohttp", "prompt_toolkit", "uvicorn", "yaml")


def test_help_and_completion_import_nothing_heavy() -> None:
    script = "import sys, json, app.cli.main; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(json.loads(done.stdout))


def test_help_names_every_command(cli: Cli) -> None:
    text = cli.process("--help").stdout
    for name in ("serve", "chat", "doctor", "config", "users", "keys", "feedback", "models", "db"):
        assert f" {name} " in text


def test_version(cli: Cli) -> None:
    assert cli.process("--version").stdout.startswith("aprendiz 0.")


@pytest.mark.parametrize(
    "arguments", [["bogus"], ["users", "role"], ["serve", "--port", "70000"], ["feedback", "export", "--format", "csv"]]
)
def test_wrong_usage_is_exit_code_2(cli: Cli, arguments: list[str]) -> None:
    done = cli(*arguments, code=2)
    assert done.stdout == ""
    assert "Usage" in done.stderr


def test_a_failure_is_one_line_that_says_what_to_do(cli: Cli) -> None:
    done = cli.process("users", "role", "nobody", "admin", code=1)
    assert done.stdout == ""
    assert done.stderr == "aprendiz: There is no user 'nobody'; `aprendiz users list` shows all.\n"


def test_a_bad_configuration_stops_every_command_with_the_nearest_name(cli: Cli) -> None:
    done = cli("users", "list", code=1, APRENDIZ_SERVER__PROT="1")
    assert "did you mean 'APRENDIZ_SERVER__PORT'?" in done.stderr


def test_a_reader_that_leaves_is_no_error_message(cli: Cli) -> None:
    command = f"{sys.executable} -m app.cli.main config show --json | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=cli.folder, env=cli.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "[\n"
    assert done.stderr == ""


def test_a_service_that_cannot_start_says_so_in_one_line(cli: Cli) -> None:
    cli.data_dir.write_text("no folder")
    done = cli.process("serve", "--port", "0", code=1)
    assert done.stderr.startswith("aprendiz: Cannot make the folder ")
    assert done.stderr.count("\n") == 1


def test_a_service_before_a_newer_schema_says_so_and_changes_nothing(cli: Cli) -> None:
    cli("db", "upgrade")
    path = cli.data_dir / "aprendiz.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("update alembic_version set version_num = '9999'")
        database.commit()
    before = path.read_bytes()
    done = cli.process("serve", "--port", "0", code=1)
    assert done.stderr.splitlines()[-1].startswith("aprendiz: The database has schema 9999")
    assert path.read_bytes() == before
