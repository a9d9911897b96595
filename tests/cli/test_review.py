"""``aprendiz feedback review`` and ``import`` on a real database."""

from __future__ import annotations

import json

from app.cli.review import _shown
from app.core.records import FeedbackRecord, PredictionRecord
from tests.cli.conftest import Cli
from tests.cli.records import adding, prediction, rated, user


def fill(cli: Cli) -> list[str]:
    """Two corrections that wait; their ids, oldest first."""
    eva = user("eva")
    cli.database(adding(eva, user("ada", "admin")))
    for question, bad, good in (("Capital of Peru?", "Cusco.", "Lima.\x1b[31m"), ("Capital of Chile?", "Lima.", "Santiago.")):
        cli.database(rated(eva, prediction(eva, question, bad), correction=good))
    return [item["id"] for item in json.loads(cli("feedback", "review", "--json").stdout)]


def test_what_waits_is_listed_and_decided_by_id(cli: Cli) -> None:
    first, second = fill(cli)
    done = cli("feedback", "review", "--approve", first, "--reject", second)
    assert done.stderr.splitlines() == [f"{first}: approved", f"{second}: rejected"]
    assert json.loads(cli("feedback", "review", "--json").stdout) == []
    assert "(as before)" in cli("feedback", "review", "--approve", first).stderr
    rows = cli("feedback", "export", "--format", "sft").stdout.splitlines()
    assert [json.loads(row)["feedback_id"] for row in rows] == [first]


def test_without_a_terminal_it_asks_nothing(cli: Cli) -> None:
    fill(cli)
    assert "--json" in cli("feedback", "review", code=2).stderr
    assert "There is no such feedback" in cli("feedback", "review", "--approve", "x", code=1).stderr


def corrected(about: PredictionRecord, text: str) -> FeedbackRecord:
    return FeedbackRecord("f", about.id, about.user_id, about.created_at, correction=text)


def test_what_is_shown_moves_no_cursor_and_takes_no_time() -> None:
    eva = user("eva")
    asked = prediction(eva, "Why?\x1b[2J\u202e", "one\nsame")
    shown = _shown((corrected(asked, "two\x1b]0;x\x07\nsame"), asked, None, "burst"), "1 of 1").plain
    assert "- one\n+ two\\u001b]0;x\\u0007\n  same\n" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    many = prediction(eva, "Why?", "\n".join(f"line {each % 7} abcdefgh {each % 13}" for each in range(4000)))
    long = "\n".join(f"line {each % 7} abcdexgh {each % 11}" for each in range(200))
    assert _shown((corrected(many, long), many, None, None), "1 of 1").plain.count("\n+ ") == 200


def test_a_file_is_imported_once(cli: Cli) -> None:
    cli.database(adding(user("ada", "admin")))
    path = cli.folder / "rows.jsonl"
    path.write_text('{"prompt": "Why?", "completion": "Because."}\n{"text": "plain"}\n', encoding="utf-8")
    done = cli("feedback", "import", str(path), "--format", "trl")
    assert "1 stored, 0 imported before, 1 passed over." in done.stderr
    assert "not a row in one of TRL's forms" in done.stdout
    assert "aprendiz feedback review" in done.stderr
    again = json.loads(cli("feedback", "import", str(path), "--format", "trl", "--json").stdout)
    assert (again["stored"], again["already"]) == (0, 1)
    [item] = json.loads(cli("feedback", "review", "--json").stdout)
    assert (item["correction"], item["answer"]) == ("Because.", "")


def test_an_import_names_its_owner_where_there_are_several(cli: Cli) -> None:
    cli.database(adding(user("ada", "admin"), user("bob", "admin"), user("eva")))
    path = cli.folder / "rows.jsonl"
    path.write_text('{"prompt": "Why?", "completion": "Because."}\n', encoding="utf-8")
    assert "--owner" in cli("feedback", "import", str(path), "--format", "trl", code=1).stderr
    assert "admin" in cli("feedback", "import", str(path), "--format", "trl", "--owner", "eva", code=1).stderr
    assert "1 stored" in cli("feedback", "import", str(path), "--format", "trl", "--owner", "bob").stderr
    assert "no such file" in cli("feedback", "import", "absent", "--format", "trl", "--owner", "bob", code=1).stderr
