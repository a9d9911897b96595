"""A service for the demo: a process of its own, with its own data directory, port and people. Touches nothing else of yours.

The demo uses it as anybody would: over HTTP, with the printed invite. Nothing here reaches into the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.client import ServiceClient
from app.core.errors import AprendizError, Unavailable

if TYPE_CHECKING:
    from app.core.settings import Settings

_MARK = "this folder belongs to aprendiz demo, which deletes it at its next start\n"
_MARK_NAME = "DEMO"
_ADMIN = "admin"
_START_S = 120.0
_STOP_S = 40.0
_PASSWORD = "violet harbour lantern for the demo"  # noqa: S105  # of accounts that live as long as the demo, on loopback


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with an account."""

    name: str
    client: ServiceClient


class DemoService:
    """The service. Use as ``async with`` through `running`."""

    def __init__(self, folder: Path, port: int, invite: str) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self._invite = invite
        self._stack = contextlib.AsyncExitStack()

    async def admin(self) -> Person:
        """The first account, made with the printed invite."""
        return await self._register(_ADMIN, self._invite)

    async def person(self, name: str) -> Person:
        """A further account, invited by the admin."""
        async with ServiceClient(self.url, await self._token(_ADMIN)) as client:
            invite = await client.post("/auth/invites", {"role": "user"})
        return await self._register(name, invite["token"])

    async def until_ready(self) -> None:
        """Waits for the model. Raises Unavailable where it does not come."""
        async with ServiceClient(self.url, None) as client:
            deadline = time.monotonic() + _START_S
            while True:
                with contextlib.suppress(AprendizError):
                    await client.get("/health/ready")
                    return
                if time.monotonic() > deadline:
                    raise Unavailable("The demo's service did not become ready; its log is service.log in the demo's folder.")
                await asyncio.sleep(0.1)

    async def aclose(self) -> None:
        """Ends the people's connections."""
        await self._stack.aclose()

    async def _register(self, name: str, invite: str) -> Person:
        async with ServiceClient(self.url, None) as client:
            await client.post("/auth/register", {"username": name, "password": _PASSWORD, "invite": invite})
        # A login is short-lived and for persons; a key lasts as long as the demo.
        async with ServiceClient(self.url, await self._token(name)) as client:
            scopes = ["predict", "feedback", "read"] + (["admin"] if name == _ADMIN else [])
            key = await client.post("/auth/keys", {"name": "demo", "scopes": scopes})
        return Person(name, await self._stack.enter_async_context(ServiceClient(self.url, key["key"])))

    async def _token(self, name: str) -> str:
        async with ServiceClient(self.url, None) as client:
            token: str = (await client.post("/auth/token", {"username": name, "password": _PASSWORD}))["access_token"]
        return token


def prepare(settings: Settings) -> Path:
    """A fresh folder for the demo inside the data directory, with the configured model in it.

    Raises:
        Unavailable: the folder there is not the demo's own.
    """
    folder = settings.data_dir / "demo"
    if folder.exists():
        if not (folder / _MARK_NAME).is_file():
            raise Unavailable("The folder `demo` in the data directory is not the demo's; move it away first.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, mode=0o700)
    (folder / _MARK_NAME).write_text(_MARK, encoding="utf-8")
    there = settings.data_dir / "models" / settings.model.model
    if there.is_dir():
        # Linked, not copied: it is read only, and may be large.
        shutil.copytree(there, folder / "models" / settings.model.model, copy_function=_link)
    converted = settings.data_dir / "models" / "hf"
    if converted.is_dir():
        shutil.copytree(converted, folder / "models" / "hf", copy_function=_link)
    return folder


@contextlib.asynccontextmanager
async def running(folder: Path, settings: Settings) -> AsyncIterator[DemoService]:
    """Starts the service, and ends it on leaving. Raises Unavailable where it does not start."""
    port = _free_port()
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("APRENDIZ_") and name != "SECRET_KEY"},
        "APRENDIZ_DATA_DIR": str(folder),
        "APRENDIZ_SERVER__PORT": str(port),
        "APRENDIZ_MODEL__PROVIDER": settings.model.provider,
        "APRENDIZ_MODEL__MODEL": settings.model.model,
        "APRENDIZ_MODEL__DEVICE": settings.model.device,
    }
    environ.pop("DATABASE_URL", None)
    with (folder / "service.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.cli.main", "serve", "--pull"),
            # Not in the checkout: neither its config.yaml nor its .env is meant for the demo.
            cwd=folder,
            env=environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
        service: DemoService | None = None
        try:
            service = DemoService(folder, port, await _invite(process))
            await service.until_ready()
            yield service
        finally:
            if service is not None:
                await service.aclose()
            await _stop(process)


async def _invite(process: asyncio.subprocess.Process) -> str:
    """The token in the line with the first invite."""
    if process.stdout is None:
        raise RuntimeError("the output of the service is not piped")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_START_S):
            async for line in process.stdout:
                _, found, token = line.decode().strip().partition("#invite=")
                if found:
                    return token
    raise Unavailable("The demo's service did not start; its log is service.log in the demo's folder.")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _link(source: str, target: str) -> Any:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
