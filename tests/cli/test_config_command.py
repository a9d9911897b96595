"""``aprendiz config`` tells value and origin, and never a secret."""

from __future__ import annotations

import json

from tests.cli.conftest import Cli

SECRET = "canary-canary-canary-canary-canary-canary"


def test_show_tells_where_each_value_comes_from(cli: Cli) -> None:
    (cli.folder / "config.yaml").write_text("server:\n  port: 9001\nmodel:\n  slots: 3\n")
    (cli.folder / ".env").write_text("APRENDIZ_MODEL__SLOTS=4\n")
    done = cli("config", "show", "--changed", "--json", APRENDIZ_LOGGING__LEVEL="DEBUG")
    found = {entry["key"]: (entry["value"], entry["origin"]) for entry in json.loads(done.stdout)}
    assert found["server.port"] == (9001, "config.yaml")
    assert found["model.slots"] == (4, ".env")
    assert found["logging.level"] == ("DEBUG", "environment")
    assert set(found) == {"server.port", "model.slots", "logging.level", "data_dir"}


def test_no_way_of_showing_prints_a_secret(cli: Cli) -> None:
    commands = (["config", "show"], ["config", "show", "--json"], ["config", "explain", "security.secret_key"], ["doctor"])
    for command in commands:
        done = cli(
            *command,
            SECRET_KEY=SECRET,
            DATABASE_URL=f"sqlite:///{cli.folder}/{SECRET}.db",
            code=1 if "doctor" in command else 0,
        )
        assert SECRET not in done.stdout + done.stderr


def test_explain_says_how_to_change_it(cli: Cli) -> None:
    done = cli("config", "explain", "server.public_url")
    assert 'server.public_url = ""' in done.stdout
    assert "APRENDIZ_SERVER__PUBLIC_URL" in done.stdout


def test_explain_knows_the_nearest_name(cli: Cli) -> None:
    assert "did you mean 'model.slots'?" in cli("config", "explain", "model.slot", code=1).stderr


def test_show_refuses_an_unknown_section(cli: Cli) -> None:
    assert "known:" in cli("config", "show", "sever", code=1).stderr
