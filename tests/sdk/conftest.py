"""One service process for all stock clients: started as an operator starts it, asked with an API key as a program has it.

The clients come from the vendors and stay as they are. They get an environment without keys, proxies and telemetry of a
developer's, and sockets that go nowhere but to this machine.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import pytest

from tests.acceptance.harness import ServiceProcess

T = TypeVar("T")
_OF_A_DEVELOPER = re.compile(r"(OPENAI|ANTHROPIC|AZURE|LANGCHAIN|LANGSMITH|LLM)_.*|.*_PROXY", re.IGNORECASE)
_ROUTES = ("thinks", "slow", "breaks", "unloadable", "upper")
NO_LIMITS = {f"APRENDIZ_RATE_LIMITS__{name}": "1000000/minute" for name in ("PREDICT", "FEEDBACK", "LOGIN", "API")}


@dataclass(frozen=True)
class Site:
    """The service, and what a program is told of it. ``url`` is without ``/v1``."""

    url: str
    key: str
    read_only: str
    admin: dict[str, str]

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    def running(self) -> float:
        """How many predictions hold a slot."""
        text = httpx.get(f"{self.url}/metrics", headers=self.admin, timeout=5).raise_for_status().text
        return sum(float(each) for each in re.findall(r"^aprendiz_running_predictions\{[^}]*\} (\S+)$", text, re.MULTILINE))

    def wait_until_idle(self) -> None:
        """Until no prediction holds a slot; at most five seconds."""
        deadline = time.monotonic() + 5
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self.running() == 0


def drain(items: Iterable[T], into: list[T]) -> None:
    """Reads ``items`` to their end; ``into`` keeps what came before an error."""
    for item in items:
        into.append(item)


def make_key(url: str, admin: dict[str, str], *scopes: str) -> str:
    """A new API key."""
    made = httpx.post(f"{url}/auth/keys", headers=admin, json={"name": "sdk", "scopes": list(scopes)}, timeout=20)
    assert made.status_code == 201, made.text
    key: str = made.json()["key"]
    return key


def environment(**sections: Any) -> dict[str, str]:
    """Settings for a `ServiceProcess`: what a section holds as JSON, and no rate limits."""
    return NO_LIMITS | {f"APRENDIZ_{name.upper()}": json.dumps(value) for name, value in sections.items()}


def loopback_environment(**more: str) -> dict[str, str]:
    """An environment for a client in a process of its own: a proxy that is not there stands before all other machines."""
    nowhere = dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"
    )
    return {"PATH": os.environ["PATH"], **nowhere, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **more}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    routes: dict[str, Any] = {name: {"targets": [{"model": f"echo/{name}"}], "retries": 0} for name in _ROUTES}
    routes |= {name: {"targets": [{"model": "default"}]} for name in ("gpt-4o-mini", "text-embedding-3-small")}
    more = {"APRENDIZ_MODEL__MAX_LOADED": "8", **environment(routing__models=routes)}
    with ServiceProcess(tmp_path_factory.mktemp("sdk"), environ=more) as process:
        admin = process.admin()
        yield Site(
            process.url,
            make_key(process.url, admin, "predict", "feedback"),
            make_key(process.url, admin, "read"),
            admin,
        )


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if _OF_A_DEVELOPER.fullmatch(name):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LANGSMITH_TRACING", "false")


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up or a connection that leads off this machine fails the test."""
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def look_up_here(host: Any, *args: Any, **more: Any) -> Any:
        _check(host)
        return look_up(host, *args, **more)

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(address[0])
        connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", look_up_here)
    monkeypatch.setattr(socket.socket, "connect", connect_here)


def _check(host: Any) -> None:
    if host not in ("127.0.0.1", "::1", "localhost", b"127.0.0.1", b"localhost", None):
        pytest.fail(f"a client wanted to talk to {host!r}")
