"""``aprendiz chat`` and ``aprendiz models load|reload`` against a real service."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.records import FeedbackRecord, KeyRecord, PredictionRecord
from app.db.database import Database
from app.db.feedback import Feedback
from app.db.keys import Keys
from app.db.predictions import Predictions
from app.db.users import Users
from tests.cli.conftest import Cli
from tests.cli.pseudo_terminal import PseudoTerminal
from tests.cli.service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(Cli(tmp_path_factory.mktemp("service"))) as running:
        yield running


async def keys(database: Database) -> list[KeyRecord]:
    ada = await Users(database).by_name("ada")
    assert ada is not None
    return await Keys(database).list(ada.id)


async def feedback(database: Database) -> list[tuple[FeedbackRecord, PredictionRecord]]:
    found = []
    for record in await Feedback(database).list():
        about = await Predictions(database).get(record.prediction_id)
        assert about is not None
        found.append((record, about))
    return found


def test_piped_only_the_answer_is_on_stdout(service: Service) -> None:
    done = service.cli("chat", stdin="hello there\n")
    assert done.stdout == "hello there\n"
    assert "As ada" in done.stderr


def test_the_minted_key_does_not_outlive_the_command(service: Service) -> None:
    service.cli("chat", "hello")
    assert [key for key in service.cli.database(keys) if key.revoked_at is None] == []


def test_a_given_key_is_used_and_none_is_minted(service: Service) -> None:
    key = service.cli("keys", "create", "--user", "ada", "--name", "given").stdout.strip()
    before = len(service.cli.database(keys))
    done = service.cli("chat", "hello", APRENDIZ_API_KEY=key)
    assert (done.stdout, done.stderr) == ("hello\n", "")
    assert len(service.cli.database(keys)) == before


def test_failures_are_one_line(service: Service, cli: Cli) -> None:
    assert "There is no model 'nope/x'" in service.cli("chat", "--model", "nope/x", "hi", code=1).stderr
    assert "not valid or has expired" in service.cli("chat", "--key", "bad", "hi", code=1).stderr
    assert "no user 'nobody'" in service.cli("chat", "--user", "nobody", "hi", code=1).stderr
    assert "needs an API key" in cli("chat", "--url", service.url, "hi", code=1).stderr
    assert "no question" in service.cli("chat", stdin=" \n", code=1).stderr


def test_without_a_service_it_says_how_to_start_one(cli: Cli) -> None:
    done = cli("chat", "hi", code=1, APRENDIZ_SERVER__PORT="1")
    assert done.stderr == "aprendiz: No service answers at http://127.0.0.1:1. Start it with `aprendiz serve`, or pass --url.\n"
    assert not cli.data_dir.exists()


def test_models_load_and_reload(service: Service) -> None:
    assert "echo/upper serves now" in service.cli("models", "load", "echo/upper").stderr
    assert service.cli("chat", "hello").stdout == "HELLO\n"
    assert "echo/upper serves now" in service.cli("models", "reload").stderr
    assert "PROVIDER/MODEL" in service.cli("models", "load", "upper", code=2).stderr
    assert service.cli("models", "load", "echo/unloadable", code=1).stderr.count("\n") == 2
    service.cli("models", "load", "echo/echo")


def terminal(service: Service, *arguments: str, **environ: str) -> PseudoTerminal:
    command = [sys.executable, "-m", "app.cli.main", "chat", *arguments]
    return PseudoTerminal(command, cwd=service.cli.folder, env=service.cli.environment(**environ))


def editor(folder: Path) -> str:
    """An "editor" that, as many do, writes a new file and renames it into place."""
    script = folder / "editor.sh"
    script.write_text('#!/bin/sh\nsed "s/Cusco/Lima/" "$1" >"$1.new" && mv "$1.new" "$1"\n')
    script.chmod(0o700)
    return str(script)


def test_a_conversation_at_a_terminal(service: Service) -> None:
    with terminal(service, EDITOR=editor(service.cli.folder)) as person:
        person.wait_for(">")
        person.say("Cusco is the capital", "echo/echo")
        person.say("/good really", "Noted as good")
        person.say("/fix", "correction is stored")
        person.say("/bogus", "no command /bogus")
        person.say("/new", "A new conversation")
        person.say("/bad", "no answer to rate")
        person.say("/help", "Ctrl-C stops an answer")
        person.type("\x04")
        assert person.wait() == 0
    [(current, about), *older] = service.cli.database(feedback)
    assert about.output == "Cusco is the capital"
    assert current.correction == "Lima is the capital"
    assert older == []
    history = service.cli.folder / ".local" / "state" / "aprendiz" / "chat_history"
    assert "Cusco is the capital" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_turns_share_a_conversation_and_new_starts_another(service: Service) -> None:
    with terminal(service) as person:
        person.wait_for(">")
        for text in ("first of them", "second of them"):
            person.say(text, "echo/echo")
        person.say("/new", "A new conversation")
        person.say("third of them", "echo/echo")
        person.type("/quit\r")
        assert person.wait() == 0

    async def conversations(database: Database) -> dict[str, str | None]:
        from sqlalchemy import select

        from app.db.schema import predictions

        rows = await database.read(lambda connection: connection.execute(select(predictions)).mappings().all())
        return {row["output"]: row["conversation_id"] for row in rows}

    found = service.cli.database(conversations)
    assert found["first of them"] == found["second of them"] is not None
    assert found["third of them"] not in (None, found["first of them"])


def test_ctrl_c_stops_the_answer_and_not_the_chat(service: Service) -> None:
    service.cli("models", "load", "echo/slow+tag-x")
    with terminal(service) as person:
        person.wait_for(">")
        person.type("word " * 400 + "\r")
        person.wait_for("x:word")
        person.type("\x03")
        person.wait_for("(stopped)")
        person.wait_for(">")
        person.say("still here", "x:here")
        person.say("/model", "echo/slow+tag-x")
        person.say("/model nope/x", "From now on")
        person.say("hello", "There is no model")
        person.type("\x04")
        assert person.wait() == 0
    service.cli("models", "load", "echo/echo")

    async def states(database: Database) -> list[str]:
        from sqlalchemy import select

        from app.db.schema import predictions

        wanted = select(predictions.c.status).where(predictions.c.output.startswith("x:word"))
        return list(await database.read(lambda connection: connection.execute(wanted).scalars().all()))

    assert service.cli.database(states) == ["cancelled"]  # the model was stopped, not only the printing


def test_an_answer_cannot_move_the_cursor(service: Service) -> None:
    with terminal(service, "say \u009b2J now") as person:
        person.wait()
    assert "say \\u009b2J now" in person.seen


def test_memory_and_documents_stand_beside_the_answer(service: Service) -> None:
    service.cli("memory", "add", "My violet lamp is called Petrel.")
    done = service.cli("chat", "--memory", "--documents", "sea,land", "My violet lamp stands in Porto.")
    assert done.stdout == "My violet lamp stands in Porto.\n", "only the answer, in a pipe"
    assert "I remembered: My violet lamp is called Petrel." in done.stderr
    assert "collections" in service.cli("chat", "--documents", "../x", "hello", code=1).stderr
