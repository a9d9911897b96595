"""Whatever ``app.core.text`` lets through comes back byte by byte, from both databases; and what a URL may say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import select

from app.core.errors import AprendizError, ConfigurationError, InvalidRequest, StorageUnavailable
from app.core.settings import Database as DatabaseSettings
from app.core.settings import Settings
from app.core.text import check_text
from app.db.database import Database, open_database
from app.db.feedback import Feedback
from app.db.predictions import Predictions
from app.db.schema import predictions, to_json
from tests.db import make

HARD = [
    "a\tb\nc\r\nd",
    "ñ é ü ß",
    "n\u0303 (not composed)",
    "\ufeffBOM first",
    "\uffff \ufdd0 \U0010ffff",
    "👩‍👩‍👧‍👦" * 50,
    "\u2028\u2029\x85",
    "\u202eright to left",
    "'; DROP TABLE users; --",
    "%s %(x)s :name ? $1 \\ \\u0000 \\x00",
    "  spaces at both ends  ",
    "",
    "𝕏" * 5000,
]


@pytest.mark.parametrize("text", HARD)
async def test_hard_text_comes_back_exactly(database: Database, text: str) -> None:
    owner = await make.stored_user(database)
    asked = {"messages": [{"role": "user", "content": text, text: [text, None, 1.5, True]}]}
    said = await make.stored_prediction(database, owner.id, output=text, input=asked)
    assert await Predictions(database).get(said.id) == said
    stored, _ = await Feedback(database).store(make.feedback(said.id, owner.id, comment=text, correction=text, tags=(text,)))
    assert await Feedback(database).list() == [stored]
    raw = await database.read(lambda connection: connection.execute(select(predictions.c.output)).scalar_one())
    assert raw.encode() == text.encode()


@given(texts=st.lists(st.text(max_size=60), min_size=200, max_size=200))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
async def test_any_text_that_the_api_takes_comes_back_exactly(database: Database, texts: list[str]) -> None:
    kept = []
    for text in texts:
        try:
            kept.append(check_text(text, field="text", limit=5000, allow_blank=True, prompt=True))
        except InvalidRequest:
            continue
    owner = await make.stored_user(database)
    said = await make.stored_prediction(
        database, owner.id, input={"texts": kept}, output="\x1f".join(kept), alias="".join(kept)
    )
    assert await Predictions(database).get(said.id) == said


def test_json_keeps_what_utf8_cannot_say() -> None:
    assert to_json({"a": "\ud800é"}) == '{"a":"\\ud800\\u00e9"}'
    assert to_json({"a": "é\x00", "b": (1, 2)}) == '{"a":"é\\u0000","b":[1,2]}'
    for bad in (float("nan"), float("inf"), object()):
        with pytest.raises((ValueError, TypeError)):
            to_json({"a": bad})


@pytest.mark.parametrize(
    "url",
    [
        "mysql://root:hunter2@db/x",
        "sqlite://",
        "sqlite:///:memory:",
        "hunter2",
        "postgresql://u:hunter2@db:notaport/x",
        "://hunter2",
    ],
)
def test_a_url_that_we_cannot_use_is_refused_without_repeating_it(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        open_database(Settings(data_dir=tmp_path, database=DatabaseSettings(url=SecretStr(url))))
    assert "hunter2" not in error.value.detail


async def test_a_sqlite_url_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "somewhere" / "else.db"
    database = open_database(Settings(data_dir=tmp_path, database=DatabaseSettings(url=SecretStr(f"sqlite:///{path}"))))
    await database.open()
    await database.aclose()
    assert path.is_file()


@pytest.mark.postgres
async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    url = SecretStr(f"postgresql://u:hunter2@/x?host={tmp_path}")
    database = open_database(Settings(data_dir=tmp_path, database=DatabaseSettings(url=url)))
    with pytest.raises(StorageUnavailable) as error:
        await database.open()
    assert "hunter2" not in error.value.detail
    assert str(tmp_path) not in error.value.detail
    with pytest.raises(AprendizError):
        await database.ping()
