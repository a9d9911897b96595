"""``aprendiz doctor`` finds what is wrong and says what to do."""

from __future__ import annotations

import http.server
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from tests.acceptance.harness import free_port
from tests.cli.conftest import Cli
from tests.cli.records import adding, user

ECHO = {"APRENDIZ_MODEL__PROVIDER": "echo", "APRENDIZ_MODEL__MODEL": "echo"}


def findings(cli: Cli, *arguments: str, code: int = 0, **environ: str) -> dict[str, dict[str, Any]]:
    extra = {**ECHO, "APRENDIZ_SERVER__PORT": str(free_port()), **environ}
    return {check["name"]: check for check in json.loads(cli("doctor", "--json", *arguments, code=code, **extra).stdout)}


def test_a_fresh_installation_has_nothing_that_fails(cli: Cli) -> None:
    found = findings(cli)
    assert {check["state"] for check in found.values()} <= {"ok", "warn"}
    assert {
        "aprendiz",
        "python",
        "platform",
        "settings",
        "secret key",
        "data directory",
        "disk",
        "memory",
        "open files",
    } <= set(found)
    assert {"clock", "extras", "database", "model", "service"} <= set(found)
    assert not cli.data_dir.exists()  # it changes nothing


def test_deep_asks_the_model(cli: Cli) -> None:
    assert "Answer with one word" in findings(cli, "--deep")["engine"]["found"]


def test_a_missing_model_says_how_to_get_it(cli: Cli) -> None:
    model = findings(cli, code=1, APRENDIZ_MODEL__PROVIDER="llamacpp", APRENDIZ_MODEL__MODEL="smollm2-135m-instruct")["model"]
    assert (model["state"], model["advice"]) == ("fail", "aprendiz models pull smollm2-135m-instruct")


def test_a_secret_key_that_others_can_read_fails(cli: Cli) -> None:
    cli.data_dir.mkdir()
    (cli.data_dir / "secret_key").write_text("k" * 64)
    (cli.data_dir / "secret_key").chmod(0o644)
    assert findings(cli, code=1)["secret key"]["state"] == "fail"
    assert findings(cli, code=1, SECRET_KEY="a" * 40)["secret key"]["found"] == "from environment, easy to guess"


def test_the_database_is_looked_at(cli: Cli) -> None:
    cli.database(adding(user("ada", "admin")))
    found = findings(cli)
    assert found["integrity"]["state"] == "ok"
    assert found["backup"]["advice"].startswith("Make one")
    cli("db", "backup")
    assert findings(cli)["backup"]["state"] == "ok"

    path = cli.data_dir / "aprendiz.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096 * 8)
    assert findings(cli, code=1)["integrity"]["state"] == "fail"


def test_a_stranger_on_the_port_is_found(cli: Cli) -> None:
    with stranger() as port:
        service = findings(cli, code=1, APRENDIZ_SERVER__PORT=str(port))["service"]
    assert "another program" in service["found"]


def test_a_bad_setting_is_a_finding_not_a_crash(cli: Cli) -> None:
    found = findings(cli, code=1, APRENDIZ_MODEL__SLOTS="many")
    assert found.keys() == {"settings"}
    assert "model.slots (from environment)" in found["settings"]["found"]


@contextmanager
def stranger() -> Iterator[int]:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
