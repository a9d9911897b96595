"""``aprendiz feedback`` and ``aprendiz db`` on a real database."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Cli
from tests.cli.records import adding, prediction, rated, user


def fill(cli: Cli) -> None:
    eva = user("eva")
    cli.database(adding(eva))
    cli.database(rated(eva, prediction(eva, "Capital of Peru?", "Cusco."), rating="down", correction="Lima – ¡claro!"))
    cli.database(rated(eva, prediction(eva, "Capital of Chile?", "Santiago."), rating="up", comment="a\x07b\nc"))


def test_list_shows_the_newest_first_with_control_characters_escaped(cli: Cli) -> None:
    fill(cli)
    lines = cli("feedback", "list").stdout.splitlines()
    assert " up " in lines[1]
    assert "a\\u0007b\\u000ac" in lines[1]
    assert "Lima – ¡claro!" in lines[2]
    assert len(json.loads(cli("feedback", "list", "--limit", "1", "--json").stdout)) == 1


def test_export_writes_rows_for_each_format(cli: Cli) -> None:
    fill(cli)
    rows = {name: cli("feedback", "export", "--format", name).stdout.splitlines() for name in ("sft", "dpo", "kto")}
    [sft], [dpo], kto = rows["sft"], rows["dpo"], rows["kto"]
    assert json.loads(sft)["completion"] == [{"role": "assistant", "content": "Lima – ¡claro!"}]
    assert json.loads(dpo)["rejected"] == [{"role": "assistant", "content": "Cusco."}]
    assert sorted(json.loads(row)["label"] for row in kto) == [False, True]


def test_export_to_a_file_says_how_many(cli: Cli) -> None:
    fill(cli)
    done = cli("feedback", "export", "--format", "kto", "--output", "rows.jsonl")
    assert (done.stdout, done.stderr) == ("", "2 kto row(s).\n")
    assert len((cli.folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_backup_and_restore(cli: Cli) -> None:
    cli.database(adding(user("ada", "admin")))
    path = Path(cli("db", "backup").stdout.strip())
    assert path.is_file()
    cli.database(adding(user("eva")))
    assert "--yes" in cli("db", "restore", str(path), code=2).stderr
    done = cli("db", "restore", str(path), "--yes")
    assert "The database that was there lies in" in done.stderr
    assert [item["username"] for item in json.loads(cli("users", "list", "--json").stdout)] == ["ada"]


def test_a_damaged_backup_is_refused_before_anything_is_asked(cli: Cli) -> None:
    cli.database(adding(user("ada", "admin")))
    path = Path(cli("db", "backup", str(cli.folder / "copy.db")).stdout.strip())
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    assert "damaged" in cli("db", "restore", str(path), "--yes", code=1).stderr
    assert "ada" in cli("users", "list").stdout


def test_upgrade_says_which_schema(cli: Cli) -> None:
    assert "schema" in cli("db", "upgrade").stderr
    assert (cli.data_dir / "aprendiz.db").is_file()
