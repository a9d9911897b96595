"""``aprendiz docs`` against a real service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli.docs import _files, place
from tests.cli.conftest import Cli
from tests.conftest import Service, make_settings, running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("home")
    with running(make_settings(home / "data", memory={"embedder": "echo/echo", "document_mb": 1})) as service:
        service.admin()
        yield service


@pytest.fixture
def cli(served: Service, tmp_path: Path) -> Cli:
    environ = {"APRENDIZ_SERVER__PORT": str(served.port), "APRENDIZ_DATA_DIR": str(served.settings.data_dir)}
    return Cli(tmp_path, environ)


def test_a_document_from_upload_to_deletion(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "lamp.md").write_text("# Lamps\n\nThe keeper trims the violet lamp.\n")
    done = cli("docs", "add", "lamp.md", "--collection", "sea", "--json")
    (added,) = json.loads(done.stdout)
    assert (added["state"], added["collection"], added["path"]) == ("ready", "sea", "lamp.md")
    found = cli("docs", "search", "who trims the violet lamp?").stdout
    assert "lamp.md, section Lamps" in found
    assert "      The keeper trims the violet lamp." in found
    hits = json.loads(cli("docs", "search", "violet", "--json", "-c", "sea").stdout)["hits"]
    assert hits[0]["document_id"] == added["id"]
    assert "Nothing was found." in cli("docs", "search", "violet", "-c", "other").stderr
    assert added["id"] in cli("docs", "list").stdout
    assert json.loads(cli("docs", "list", "--json", "-c", "other").stdout) == []
    assert json.loads(cli("docs", "show", added["id"], "--json").stdout)["name"] == "lamp.md"
    assert "lamp.md" in cli("docs", "show", added["id"]).stdout
    assert f"{added['id']}: ready" in cli("docs", "reindex", added["id"]).stderr
    assert "pass --yes" in cli("docs", "delete", added["id"], code=2).stderr
    assert "1 document(s) deleted." in cli("docs", "delete", added["id"], "--yes").stderr
    assert json.loads(cli("docs", "list", "--json").stdout) == []


def test_a_folder_and_what_of_it_is_passed_over(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.txt").write_text("first text")
    (folder / "inner" / "b.CSV").write_text("name,height\nlamp,3\n")
    (folder / "c.png").write_bytes(b"\x89PNG")
    (folder / "empty.md").touch()
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "link.txt").symlink_to("/etc/passwd")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 broken")
    done = cli("docs", "add", "folder", "-c", "folder", code=1)
    assert "folder/a.txt" in done.stdout
    assert "b.CSV" in done.stdout
    assert "failed" in done.stdout
    for reason in ("Passed over: 1 (.png: not a format that is read)", "1 (empty)", "1 (hidden)", "1 (a link)"):
        assert reason in done.stderr
    assert "3 document(s) deleted." in cli("docs", "delete", "--collection", "folder", "--yes").stderr
    assert "There is no such collection." in cli("docs", "delete", "--collection", "folder", "--yes", code=1).stderr


def test_what_is_refused_stops_nothing_else(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "large.txt").write_bytes(b"x" * (3 << 20))
    (tmp_path / "small.txt").write_text("small")
    done = cli("docs", "add", "large.txt", "absent.txt", "small.txt", "--json", code=1)
    large, absent, small = json.loads(done.stdout)
    assert large["state"] == absent["state"] == "refused"
    assert "bytes" in large["error"] or "MiB" in large["error"]
    assert "cannot be read" in absent["error"]
    assert small["state"] == "ready"


def test_wrong_usage(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert "nothing to send" in cli("docs", "add", "none", code=2).stderr
    assert "no id of a document" in cli("docs", "show", "../model", code=1).stderr
    assert "no id of a document" in cli("docs", "delete", "x", "--yes", code=1).stderr
    assert "Name documents" in cli("docs", "delete", "--yes", code=2).stderr
    (tmp_path / "a.txt").write_text("a")
    assert "collection" in cli("docs", "add", "a.txt", "-c", "Not Good", code=1).stdout


def test_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    files, skipped = _files([tmp_path / "a.txt", tmp_path, tmp_path / "a.txt"])
    assert files == [tmp_path / "a.txt"]
    assert skipped == {}


def test_places_read_well() -> None:
    assert place({"name": "a.pdf", "page": 3, "collection": "x", "chunk": "1"}) == "a.pdf, page 3"
    assert place({"name": "a.csv"}) == "a.csv"
