"""The child process of a store: started at the first call, spoken to in frames, killed when it hangs, started again.

It knows nothing of partitions. A call whose child dies raises `ChildGone`: what the child knew is lost, and whoever calls
begins again. The child's side is `app.memory.workers.vectors_worker`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from app.core.errors import AprendizError, ShuttingDown, Unavailable
from app.memory.vectors import wire
from app.providers.process import Worker, new_log, spawn

_MODULE = "app.memory.workers.vectors_worker"
_START_S = 60.0
_BACKOFF_FIRST_S = 0.2
_BACKOFF_MAX_S = 30.0
_GRACE_S = 2.0
_LOG_TAIL = 20
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ANONYMIZED_TELEMETRY": "False"}

logger = logging.getLogger(__name__)


class ChildGone(Exception):
    """The child died, or was killed, before it answered."""


class StoreProcess:
    """One supervised child.

    Args:
        config: goes to the child by stdin; no secrets but what it needs.
        silent_s: how long it may answer nothing while it is asked something, before it is killed.
    """

    def __init__(self, config: Mapping[str, Any], *, silent_s: float = 30) -> None:
        self._config = dict(config)
        self._silent_s = silent_s
        self._log = new_log()
        self._starting: asyncio.Task[_Life] | None = None
        self._life: _Life | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._closed = False
        self.lives = 0
        """How often it was started."""
        self.error: str | None = None

    async def call(self, request: wire.Request, *, timeout_s: float) -> wire.Reply:
        """The child's answer.

        Raises:
            ChildGone: it died. Unavailable: no answer in time, or it does not start.
        """
        frame = await asyncio.to_thread(wire.frame, request) if _is_long(request) else wire.frame(request)
        try:
            async with asyncio.timeout(timeout_s):
                life = await self._alive()
                answer = await life.ask(frame)
        except TimeoutError:
            if self._life is not None and self._life.silent_for() >= self._silent_s:
                logger.error("a store of vectors hangs and is killed")
                await self._end()
            raise Unavailable("The search for vectors did not answer in time. Try again in a moment.", retry_after=2) from None
        self._failures = 0
        return answer

    @property
    def pid(self) -> int | None:
        """Of the child that runs now."""
        life = self._life
        return None if life is None or life.gone else life.worker.pid

    def rss_bytes(self) -> int | None:
        """Its resident memory."""
        life = self._life
        return None if life is None or life.gone else life.worker.rss_bytes()

    @property
    def log(self) -> tuple[str, ...]:
        """The last lines that it wrote, for operators."""
        return tuple(self._log)

    async def aclose(self) -> None:
        """Ends it. Never raises; may be called twice."""
        self._closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._end()

    async def _alive(self) -> _Life:
        life = self._life
        if life is not None and not life.gone:
            return life
        if self._closed:
            raise ShuttingDown("The service is shutting down.", retry_after=5)
        if self._starting is None:
            wait = self._retry_at - time.monotonic()
            if self._failures > 1 and wait > 0:
                raise Unavailable(self.error or "The search for vectors is being restarted.", retry_after=wait + 1)
            # The next start waits only when this life, too, answers nothing.
            self._failures += 1
            self._retry_at = time.monotonic() + min(_BACKOFF_FIRST_S * 2 ** min(self._failures, 10), _BACKOFF_MAX_S)
            self._starting = asyncio.create_task(self._begin(), name="vectors start")
            self._starting.add_done_callback(self._started)
        # Shielded: whoever waits may leave, and the others still want it.
        return await asyncio.shield(self._starting)

    async def _begin(self) -> _Life:
        await self._end()
        self._life = life = await self._start()
        return life

    def _started(self, task: asyncio.Task[_Life]) -> None:
        self._starting = None
        if not task.cancelled():
            task.exception()  # read here: nobody may be left to read it

    async def _start(self) -> _Life:
        folder = Path(tempfile.mkdtemp(prefix="aprendiz-v-"))
        worker: Worker | None = None
        try:
            config = {**self._config, "socket": str(folder / "s")}
            async with asyncio.timeout(_START_S):
                worker = await spawn(_MODULE, config, cwd=folder, env=_ENVIRONMENT, log=self._log)
                events: set[asyncio.Future[Any]] = {worker.listening, worker.exited}
                await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
                if not worker.listening.done():
                    raise worker.failure or Unavailable("The search for vectors could not be started.", retry_after=5)
                reader, writer = await asyncio.open_unix_connection(str(folder / "s"))
        except BaseException as error:
            if worker is not None:
                await worker.stop(0)
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, Exception):
                raise self._start_failure(error) from None
            raise
        self.lives += 1
        self.error = None
        return _Life(worker, reader, writer, folder)

    def _start_failure(self, error: Exception) -> AprendizError:
        detail = error.detail if isinstance(error, AprendizError) else "The search for vectors could not be started."
        self.error = detail
        logger.error("a store of vectors did not start", extra={"data": {"error": detail, "log": list(self._log)[-_LOG_TAIL:]}})
        return Unavailable(detail, retry_after=5)

    async def _end(self) -> None:
        life, self._life = self._life, None
        if life is not None:
            await life.end()


class _Life:
    """One running child and the connection to it."""

    def __init__(self, worker: Worker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, folder: Path) -> None:
        self.worker = worker
        self.gone = False
        self._reader, self._writer, self._folder = reader, writer, folder
        self._waiting: deque[asyncio.Future[wire.Reply]] = deque()
        self._heard = time.monotonic()
        self._task = asyncio.create_task(self._read(), name="vectors")

    async def ask(self, frame: bytes) -> wire.Reply:
        """One request, one answer. Raises ChildGone."""
        if self.gone:
            raise ChildGone
        if not self._waiting:
            self._heard = time.monotonic()
        answer: asyncio.Future[wire.Reply] = asyncio.get_running_loop().create_future()
        # No await between the two: answers come in the order of the frames.
        self._waiting.append(answer)
        self._writer.write(frame)
        with contextlib.suppress(ConnectionError):  # the reader sees it too, and tells all that wait
            await self._writer.drain()
        return await answer

    def silent_for(self) -> float:
        """Seconds since it last answered, where somebody waits; else 0."""
        return time.monotonic() - self._heard if self._waiting else 0.0

    async def end(self) -> None:
        """Kills the process and frees all that waits."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.worker.stop(_GRACE_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _read(self) -> None:
        try:
            while True:
                header = await self._reader.readexactly(wire.HEADER_BYTES)
                body = await self._reader.readexactly(wire.length(header))
                self._heard = time.monotonic()
                answer = self._waiting.popleft()
                if not answer.done():  # who asked may have left
                    answer.set_result(wire.reply(body))
        except (OSError, EOFError, ValueError, IndexError, msgspec.MsgspecError) as error:
            logger.warning(
                "a store of vectors is gone", extra={"data": {"pid": self.worker.pid, "error": type(error).__name__}}
            )
        finally:
            self.gone = True
            self._writer.close()
            for each in self._waiting:
                if not each.done():
                    each.set_exception(ChildGone())
                    each.exception()  # read here: nobody may be left to read it
            self._waiting.clear()


def _is_long(request: wire.Request) -> bool:
    return isinstance(request, wire.Compare | wire.Put) and len(request.rows) > 1000
