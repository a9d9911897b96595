"""A real server for every test that wants one: our app on uvicorn in a thread, on a free loopback port, with the echo provider.

`service` is shared by the tests of a module; `serve` starts further ones with other settings. For what needs a process of its
own (signals, memory) see `tests.acceptance.harness`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from fastapi import FastAPI

from app.api.deps import Services
from app.api.server import Server, bound_socket, make_server
from app.core.settings import Settings
from app.db import migrate
from app.db.database import Database, open_database
from app.main import create_app
from app.training.tools import Tools

MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PASSWORD = "a long enough passphrase 4 tests"
_UNLIMITED = "1000000/minute"
_names = itertools.count(1)


def pytest_sessionstart() -> None:
    """Tells `run_tests.sh` that pytest came so far."""
    if began := os.environ.get("PYTEST_BEGAN"):
        Path(began).touch()


@dataclass(frozen=True)
class Account:
    """A registered user with a bearer token."""

    id: str
    username: str
    token: str
    role: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@dataclass
class Service:
    """A running service and helpers to talk to it."""

    url: str
    port: int
    settings: Settings
    app: FastAPI
    server: Server
    output: list[str] = field(default_factory=list)
    _admin: Account | None = None

    @property
    def services(self) -> Services:
        """The parts inside, for tests that look behind the API."""
        services = self.app.state.services
        assert isinstance(services, Services)
        return services

    @property
    def invite(self) -> str:
        """The token of the printed first-run invite."""
        return next(line for line in self.output if "#invite=" in line).partition("#invite=")[2]

    def client(self, account: Account | None = None, **options: Any) -> httpx.Client:
        """A client; close it or use it as a context manager."""
        headers = account.headers if account is not None else {}
        # verify=False: it is plain HTTP, and reading the certificate store takes longer than most tests
        return httpx.Client(base_url=self.url, timeout=20, headers=headers, trust_env=False, verify=False, **options)

    def admin(self) -> Account:
        """The first admin, made through the printed invite on first use."""
        if self._admin is None:
            self._admin = self._register(self.invite, "admin")
        return self._admin

    def user(self) -> Account:
        """A new user, invited by the admin."""
        with self.client(self.admin()) as client:
            invite = client.post("/auth/invites", json={"role": "user"})
        assert invite.status_code == 201, invite.text
        return self._register(invite.json()["token"], "user")

    def predict(self, account: Account, prompt: str = "hello", **more: Any) -> dict[str, Any]:
        """One answer."""
        with self.client(account) as client:
            answer = client.post("/predict", json={"prompt": prompt, **more})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def _register(self, invite: str, role: str) -> Account:
        name = f"{role}-{next(_names)}"
        with self.client() as client:
            made = client.post("/auth/register", json={"username": name, "password": PASSWORD, "invite": invite})
            assert made.status_code == 201, made.text
            token = client.post("/auth/token", json={"username": name, "password": PASSWORD})
            assert token.status_code == 200, token.text
        return Account(made.json()["id"], name, token.json()["access_token"], role)


class Serve(Protocol):
    """Starts a service with settings as ``section={key: value}``."""

    def __call__(
        self,
        *,
        before: Callable[[FastAPI], None] | None = None,
        training_tools: Callable[[Tools], Tools] | None = None,
        **sections: Any,
    ) -> Service: ...


def make_settings(data_dir: Path, **sections: Any) -> Settings:
    """Settings for tests: echo, no embedder, no limits that get in the way, a fixed key; ``sections`` override."""
    tree: dict[str, Any] = {
        "data_dir": data_dir,
        "server": {"port": 0, "grace_s": 2},
        "security": {"secret_key": "k" * 48},
        "rate_limits": dict.fromkeys(("predict", "feedback", "login", "api"), _UNLIMITED),
        "model": {"provider": "echo", "model": "echo"},
        "memory": {"embedder": ""},
        "logging": {"level": "WARNING"},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return Settings.model_validate(tree)


@contextlib.contextmanager
def running(
    settings: Settings,
    before: Callable[[FastAPI], None] | None = None,
    training_tools: Callable[[Tools], Tools] | None = None,
) -> Iterator[Service]:
    """The service in a thread of its own, ready; drained and closed on leaving."""
    output: list[str] = []
    with bound_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        settings = settings.model_copy(update={"server": settings.server.model_copy(update={"port": port})})
        app = create_app(settings, announce=output.append, training_tools=training_tools)
        if before is not None:
            before(app)
        server = make_server(app, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="service")
        thread.start()
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_ready(url, server, thread)
            yield Service(url, port, settings, app, server, output)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the server did not end"


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite database to copy: migrating costs more than most tests."""
    folder = tmp_path_factory.mktemp("template")
    migrate.upgrade(Settings(data_dir=folder))
    return folder / "aprendiz.db"


@pytest.fixture
def settings(tmp_path: Path, migrated_file: Path) -> Settings:
    """Settings with a migrated, empty SQLite database."""
    shutil.copy(migrated_file, tmp_path / "aprendiz.db")
    return Settings(data_dir=tmp_path)


@pytest.fixture
async def sqlite(settings: Settings) -> AsyncIterator[Database]:
    """An open, empty SQLite database."""
    database = open_database(settings)
    await database.open()
    yield database
    await database.aclose()


@pytest.fixture(scope="session")
def model_file() -> Path:
    """The bundled model: ``APRENDIZ_TEST_MODEL``, or what lies in a models directory. Skips without."""
    named = os.environ.get("APRENDIZ_TEST_MODEL")
    data = Path(os.environ.get("APRENDIZ_DATA_DIR", "data"))
    candidates = [Path(named)] if named else [*data.glob(f"models/**/{MODEL_FILE}"), *data.glob("models/**/*smollm2*.gguf")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.absolute()
    pytest.skip("no model: set APRENDIZ_TEST_MODEL to a GGUF file, or run `aprendiz models pull smollm2-135m-instruct`")


@pytest.fixture(scope="session")
def embedder_folder() -> Path:
    """The default embedder, pulled: ``APRENDIZ_TEST_EMBEDDER``, or what lies in a models directory. Skips without."""
    named = os.environ.get("APRENDIZ_TEST_EMBEDDER")
    data = Path(os.environ.get("APRENDIZ_DATA_DIR", "data"))
    own = Path(__file__).parents[1] / ".cache"
    candidates = [Path(named)] if named else [each / "models" / "multilingual-e5-small" for each in (data, own)]
    for candidate in candidates:
        if (candidate / "model.onnx").is_file():
            return candidate.absolute()
    pytest.skip("no embedder: set APRENDIZ_TEST_EMBEDDER to its folder, or run `aprendiz models pull multilingual-e5-small`")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests of a module."""
    with running(make_settings(tmp_path_factory.mktemp("service"))) as running_service:
        yield running_service


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts services of one's own, closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(
            *,
            before: Callable[[FastAPI], None] | None = None,
            training_tools: Callable[[Tools], Tools] | None = None,
            **sections: Any,
        ) -> Service:
            settings = make_settings(tmp_path_factory.mktemp("service"), **sections)
            return stack.enter_context(running(settings, before, training_tools))

        yield start


def _wait_ready(url: str, server: Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and thread.is_alive():
        if server.started:
            with httpx.Client(trust_env=False) as client:
                if client.get(f"{url}/health/ready").status_code == 200:
                    return
        time.sleep(0.02)
    raise AssertionError("the service did not become ready")
