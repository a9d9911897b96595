"""``aprendiz memory`` against a real service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from app.core.ids import uuid7
from tests.cli.conftest import Cli
from tests.cli.service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(Cli(tmp_path_factory.mktemp("service"))) as running:
        yield running


def listed(service: Service, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(service.cli("memory", "list", "--json", *options).stdout)
    return found


def test_a_fact_is_added_edited_and_deleted(service: Service) -> None:
    assert service.cli("memory", "add", "I live in Madrid.").stderr.endswith(": kept\n")
    [fact] = listed(service)
    assert (fact["text"], fact["state"]) == ("I live in Madrid.", "kept")
    assert "I live in Madrid." in service.cli("memory", "list").stdout
    assert listed(service, "--proposed") == []
    service.cli("memory", "edit", fact["id"], "I live in Lugo.\x1b[31m", code=1)
    service.cli("memory", "edit", fact["id"], "I live in Lugo.")
    assert service.cli("memory", "keep", fact["id"]).stderr.endswith(": kept\n")
    assert [each["text"] for each in listed(service)] == ["I live in Lugo."]
    service.cli("memory", "delete", fact["id"])
    assert listed(service) == []


def test_clearing_asks_first(service: Service) -> None:
    service.cli("memory", "add", "I live in Madrid.")
    assert "--yes" in service.cli("memory", "clear", code=2).stderr
    assert len(listed(service)) == 1
    service.cli("memory", "clear", "--yes")
    assert listed(service) == []


def test_what_is_not_there(service: Service) -> None:
    for command in (("keep",), ("delete",), ("edit",)):
        rest = ("x y",) if command == ("edit",) else ()
        assert "There is no such fact" in service.cli("memory", *command, uuid7(), *rest, code=1).stderr
        assert "That is no id of a fact" in service.cli("memory", *command, "../users", *rest, code=1).stderr
    assert "501 characters" in service.cli("memory", "add", "x" * 501, code=1).stderr
