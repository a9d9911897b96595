"""An engine: a worker process that holds a model, started, watched, restarted and ended.

`Engine` supervises one worker (a module under ``app/providers/workers``) that speaks the OpenAI format on a private Unix
socket, or on a loopback port where there are none. It knows nothing of requests, queues or models: providers get a
`WireClient` from `Engine.client` and talk through it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.core.errors import AprendizError, EngineUnavailable, ModelLoadFailed
from app.core.types import EngineState
from app.providers.base import EngineStatus
from app.providers.process import Worker, new_log, spawn
from app.providers.wire import WireClient

_MAX_SOCKET_PATH_BYTES = 100
_UNIX_SOCKETS = hasattr(socket, "AF_UNIX")
_LOG_TAIL = 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timings:
    """When supervision acts, in seconds. Tests use shorter ones."""

    health_interval_s: float = 5
    health_timeout_s: float = 5
    wedged_after_s: float = 30
    """Silence of the health check after which the worker is killed."""
    backoff_first_s: float = 0.5
    backoff_max_s: float = 30
    stable_after_s: float = 60
    """Health for so long wipes out earlier failures."""
    max_failures: int = 5
    retry_failed_s: float = 60
    """After `max_failures` in a row: next attempt on its own. A demand brings it forward to `backoff_max_s`."""
    term_grace_s: float = 3


class Engine:
    """One supervised worker.

    Args:
        worker: the module to run, as ``app.providers.workers.llamacpp_worker``.
        config: goes to the worker by stdin, with ``socket`` or ``host``, ``api_key`` and ``memory_mb`` added
            (see `workers.child`).
        label: the model's public name, for logs.
        runtime_dir: for the socket; mode 0700.
        load_timeout_s: longest time to become ready.
        read_timeout_s: longest silence within an answer.
        memory_mb: address space of the process in MiB; 0 sets no limit.
        env: environment on top of `process.base_environment`; no secrets.
        on_state: hears every change of state.
    """

    def __init__(
        self,
        worker: str,
        config: Mapping[str, Any],
        *,
        label: str,
        runtime_dir: Path,
        load_timeout_s: float,
        on_state: Callable[[EngineState], None],
        read_timeout_s: float = 300,
        memory_mb: int = 0,
        env: Mapping[str, str] | None = None,
        timings: Timings | None = None,
    ) -> None:
        self._module = worker
        self._config = dict(config)
        self._label = label
        self._runtime_dir = runtime_dir
        self._load_timeout_s = load_timeout_s
        self._read_timeout_s = read_timeout_s
        self._memory_mb = memory_mb
        self._env = dict(env or {})
        self._timings = timings or Timings()
        self._on_state = on_state
        self._state = EngineState.STOPPED
        self._log = new_log()
        self._worker: Worker | None = None
        self._client: WireClient | None = None
        self._socket: Path | None = None
        self._own_dir: Path | None = None
        self._facts: Mapping[str, Any] = {}
        self._error: str | None = None
        self._restarts = 0
        self._failures = 0
        self._retry_at = 0.0
        self._demand = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._closed = False

    # -- for providers ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts the worker and returns when it is ready; from then on it is watched and restarted. Called once.

        Raises:
            ModelLoadFailed, UnknownModel: the worker gave up, died or took too long. It is gone then; there is no second try.
        """
        self._set(EngineState.STARTING)
        try:
            await self._launch()
        except BaseException as error:
            await self._teardown()
            self._remove_own_dir()
            self._closed = True
            self._error = error.detail if isinstance(error, AprendizError) else "The start was broken off."
            self._set(EngineState.FAILED)
            raise
        self._set(EngineState.READY)
        self._supervisor = asyncio.create_task(self._supervise(), name=f"engine {self._label}")

    def client(self) -> WireClient:
        """The client of the worker that runs now; ask again for each request.

        Raises:
            EngineUnavailable: the engine is not ready; ``retry_after`` says when it may be.
        """
        worker = self._worker
        if self._client is not None and self._state is EngineState.READY and worker is not None and not worker.exited.done():
            return self._client
        if self._state is EngineState.FAILED:
            self._demand.set()
        raise self._unavailable()

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the worker reported with `Child.listening`."""
        return self._facts

    def status(self) -> EngineStatus:
        """The state now, without waiting for anything."""
        worker = self._worker
        alive = worker is not None and not worker.exited.done()
        return EngineStatus(
            state=self._state,
            pid=worker.pid if worker is not None and alive else None,
            restarts=self._restarts,
            rss_bytes=worker.rss_bytes() if worker is not None and alive else None,
            device=self._facts.get("device"),
            error=self._error,
            log=tuple(self._log),
        )

    async def aclose(self) -> None:
        """Ends the worker and everything around it. Never raises; may be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        await self._teardown()
        self._remove_own_dir()
        self._set(EngineState.STOPPED)

    # -- one life -----------------------------------------------------------------------------------------------------

    async def _launch(self) -> None:
        """Starts a worker and waits until it is ready. On an error the caller tears down."""
        key = secrets.token_urlsafe(32)
        config = {**self._config, "api_key": key, "memory_mb": self._memory_mb}
        if _UNIX_SOCKETS:
            self._socket = self._socket_path()
            config["socket"] = str(self._socket)
        else:
            config["host"] = "127.0.0.1"
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._load_timeout_s):
                self._worker = worker = await spawn(self._module, config, cwd=self._runtime_dir, env=self._env, log=self._log)
                events: set[asyncio.Future[Any]] = {worker.listening, worker.exited}
                await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
                if not worker.listening.done():
                    raise self._load_error(worker)
                self._facts = worker.listening.result()
                self._client = self._connect(key)
                await self._until_healthy(worker, self._client)
        except TimeoutError:
            raise ModelLoadFailed(
                f"The model was not ready after {self._load_timeout_s:g} s. "
                "Raise model.load_timeout_s, or take a smaller model."
            ) from None
        data = {"model": self._label, "pid": worker.pid, "seconds": round(time.monotonic() - began, 3)}
        logger.info("engine ready", extra={"data": data})

    def _connect(self, key: str) -> WireClient:
        path = None if self._socket is None else str(self._socket)
        base_url = "http://engine" if path is not None else f"http://127.0.0.1:{int(self._facts['port'])}"
        return WireClient(
            base_url,
            socket=path,
            api_key=key,
            read_timeout_s=self._read_timeout_s,
            lost=self._cut,
            keep_alive=False,
        )

    async def _until_healthy(self, worker: Worker, client: WireClient) -> None:
        pause = 0.01
        while not await client.healthy(timeout_s=self._timings.health_timeout_s):
            await asyncio.wait({worker.exited}, timeout=pause)
            if worker.exited.done():
                raise self._load_error(worker)
            pause = min(pause * 1.5, 0.25)

    def _load_error(self, worker: Worker) -> AprendizError:
        status = worker.exit_status
        data = {"model": self._label, "status": status, "log": list(self._log)[-_LOG_TAIL:]}
        logger.warning("engine stopped while it loaded", extra={"data": data})
        if worker.failure is not None:
            return worker.failure
        return ModelLoadFailed(
            f"The engine stopped while it loaded the model ({_how(status)}). The file may be damaged or of an unknown kind, "
            "or memory too small; the engine's log, open to administrators, says more."
        )

    async def _teardown(self) -> None:
        """Ends the current life, if any: cuts its streams, its process group, its socket file."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop(self._timings.term_grace_s)
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.unlink(missing_ok=True)
            self._socket = None

    # -- supervision --------------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        while True:
            await self._until_down()
            await self._recover()

    async def _until_down(self) -> None:
        """Returns when the worker is gone or must go."""
        worker, client, timings = self._worker, self._client, self._timings
        if worker is None or client is None:
            return
        ready_at = last_ok = time.monotonic()
        misses = 0
        while True:
            await asyncio.wait({worker.exited}, timeout=timings.health_interval_s)
            if worker.exited.done():
                self._error = f"The engine process ended ({_how(worker.exit_status)})."
                return
            if await client.healthy(timeout_s=timings.health_timeout_s):
                last_ok, misses = time.monotonic(), 0
                if last_ok - ready_at >= timings.stable_after_s:
                    self._failures = 0
                continue
            misses += 1
            # Two misses at least: after a pause of the whole machine the first check alone proves nothing.
            if misses >= 2 and time.monotonic() - last_ok >= timings.wedged_after_s:
                self._error = "The engine process stopped responding and was killed."
                return

    async def _recover(self) -> None:
        """From a dead or wedged worker to a ready one, however long it takes."""
        self._set(EngineState.RESTARTING)
        data = {"model": self._label, "error": self._error, "log": list(self._log)[-_LOG_TAIL:]}
        logger.error("engine down", extra={"data": data})
        while True:
            await self._teardown()
            self._failures += 1
            await self._pause()
            self._restarts += 1
            try:
                await self._launch()
            except AprendizError as error:
                self._error = error.detail
                continue
            self._error = None
            self._set(EngineState.READY)
            return

    async def _pause(self) -> None:
        timings = self._timings
        if self._failures < timings.max_failures:
            delay = min(timings.backoff_first_s * 2 ** (self._failures - 1), timings.backoff_max_s)
            self._retry_at = time.monotonic() + delay
            await asyncio.sleep(delay)
            return
        self._error = f"The engine failed {self._failures} times in a row. Last: {self._error}"
        self._set(EngineState.FAILED)
        self._retry_at = time.monotonic() + timings.backoff_max_s
        await asyncio.sleep(timings.backoff_max_s)
        self._demand.clear()  # only a demand from now on: those before were told to come back about now
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(timings.retry_failed_s - timings.backoff_max_s, 0)):
                await self._demand.wait()
        self._set(EngineState.RESTARTING)

    # -- small parts --------------------------------------------------------------------------------------------------

    def _set(self, state: EngineState) -> None:
        if state is self._state:
            return
        self._state = state
        self._on_state(state)

    def _unavailable(self) -> EngineUnavailable:
        wait = max(self._retry_at - time.monotonic(), 0) + 1
        if self._state is EngineState.FAILED:
            return EngineUnavailable("The model engine keeps failing; an administrator must look at its log.", retry_after=wait)
        if self._state is EngineState.STOPPED:
            return EngineUnavailable("The model engine is stopped.", retry_after=wait)
        return EngineUnavailable("The model engine is starting. Try again in a moment.", retry_after=wait)

    def _cut(self) -> EngineUnavailable:
        """The error for a request whose connection broke."""
        return EngineUnavailable(
            "The engine stopped while it answered; it is being restarted. Try again in a moment.", retry_after=2
        )

    def _socket_path(self) -> Path:
        name = f"e{secrets.token_hex(4)}.sock"
        path = self._runtime_dir / name
        if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
            return path
        if self._own_dir is None:  # the kernel takes about 107 bytes
            self._own_dir = Path(tempfile.mkdtemp(prefix="aprendiz-"))
        return self._own_dir / name

    def _remove_own_dir(self) -> None:
        if self._own_dir is not None:
            shutil.rmtree(self._own_dir, ignore_errors=True)
            self._own_dir = None


def _how(status: int) -> str:
    return f"signal {_signal_name(-status)}" if status < 0 else f"exit status {status}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
