"""The child of one run, from its start (or from where it is found) to its outcome: follows its events, pauses it while people
are served, starts it again when it dies, ends it when asked. It knows neither the database nor the phases after the training.

If the service ends, the child lives on: `Supervisor.run` cancelled lets it go, and the next supervisor finds it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from app.core.text import visible
from app.training.child import Child
from app.training.feed import EVENTS, EventFile, Heard
from app.training.folders import CANCEL, LOG, read_json, read_tail, write_json
from app.training.lock import RUN_LOCK, is_held
from app.training.throttle import Throttle

RESULT: Final = "result.json"
_STARTS: Final = "starts.json"
_STARTS_WITHOUT_PROGRESS: Final = 3
_KILLED: Final = -9
_FAILED: Final = 2
_MOST_WORDS: Final = 300
_MOST_LOG: Final = 1 << 20
_KEPT_LOG: Final = 1 << 16
_PATH = re.compile(r"""(?:[A-Za-z]:)?(?:[\w.~+-]*[/\\])+[\w.~+-]*""")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timings:
    """When supervision acts, in seconds; tests use shorter ones."""

    look_s: float = 0.05
    """How often it is asked whether anybody is served."""
    hear_s: float = 0.2
    """How often new events are read."""
    end_s: float = 30.0
    """From SIGTERM to SIGKILL."""
    again_s: float = 2.0
    """Before a child that died is started again."""
    patience_s: float = 30.0
    """Before what serves is asked again, where it could not answer."""
    unnamed_s: float = 10.0
    """How long the holder of the lock may take to say who it is."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child's work ended. ``result``: its ``result.json`` where it is done; ``detail``: why it failed, in words."""

    kind: Literal["done", "failed", "cancelled"]
    detail: str = ""
    result: Mapping[str, Any] | None = None


class Supervisor:
    """Runs one child to its outcome.

    Args:
        folder: of the run, with ``job.json`` in it.
        command: what to start; the folder is appended.
        busy: whether people are being served now.
        hear: takes each event, those of earlier lives of the child first.
        throttle: when the child may compute.
    """

    def __init__(
        self,
        folder: Path,
        *,
        command: Sequence[str],
        busy: Callable[[], bool],
        hear: Callable[[Mapping[str, Any]], None],
        throttle: Throttle,
        timings: Timings,
    ) -> None:
        self._folder = folder
        self._command = command
        self._busy = busy
        self._hear = hear
        self._throttle = throttle
        self._timings = timings
        self._events = EventFile(folder / EVENTS)
        self._told_skipped = 0
        self._child: Child | None = None
        self._cancelled = False
        self._step = 0
        self._last: Mapping[str, Any] | None = None
        self.restarts = 0
        """How often the child was started again here."""
        self.paused_s = 0.0
        """For how long the child has been paused here, in seconds."""

    @property
    def paused(self) -> bool:
        """Whether the child stands still, because people are served."""
        return self._child is not None and self._child.paused

    @property
    def pid(self) -> int | None:
        """The child's process id, while it lives."""
        return None if self._child is None else self._child.pid

    def cancel(self) -> None:
        """Asks the child to end; `run` then returns the outcome ``cancelled``."""
        self._cancelled = True

    async def run(self) -> Outcome:
        """The child's work to its end.

        Raises:
            OSError: the run's folder cannot be read or written, or no process can be started.
            asyncio.CancelledError: the child was let go and lives on.
        """
        await self._catch_up()
        while True:
            child = await self._found()
            if child is None:
                outcome = self._outcome(None) if self._last is not None or self._result() is not None else None
                outcome = outcome or self._given_up()
                if outcome is not None:
                    return outcome
                child = self._start()
            await self._watch(child)
            outcome = self._outcome(child.status)
            if outcome is not None:
                return outcome
            logger.warning("a training process died", extra={"data": {"run": self._folder.name, "status": child.status}})
            self.restarts += 1
            self._last = None
            await self._wait(self._timings.again_s)

    async def _found(self) -> Child | None:
        """The child that lives already. One that holds the lock but has not said who it is gets a moment."""
        deadline = time.monotonic() + self._timings.unnamed_s
        while (child := Child.find(self._folder)) is None and is_held(self._folder / RUN_LOCK):
            if time.monotonic() >= deadline:
                raise OSError("the lock of the run is held by a process that does not say who it is")
            await asyncio.sleep(self._timings.look_s)
        return child

    def _start(self) -> Child:
        known = self._starts()
        starts = known["starts"] + 1 if self._step <= known["step"] else 1
        write_json(self._folder / _STARTS, {"starts": starts, "step": max(self._step, known["step"])})
        return Child.start(self._folder, self._command)

    def _starts(self) -> dict[str, int]:
        """How often it was started since it last came further, and how far it had come then."""
        found = read_json(self._folder / _STARTS) or {}
        return {name: found[name] if isinstance(found.get(name), int) else 0 for name in ("starts", "step")}

    def _given_up(self) -> Outcome | None:
        if self._cancelled:
            return Outcome("cancelled")
        known = self._starts()
        if known["starts"] < _STARTS_WITHOUT_PROGRESS or self._step > known["step"]:
            return None
        return Outcome("failed", f"The training process died {known['starts']} times without coming further. {self._words()}")

    async def _watch(self, child: Child) -> None:
        """Until the child is gone."""
        self._child = child
        hear_at = kill_at = 0.0
        seen = time.monotonic()
        try:
            while not child.gone():
                now = time.monotonic()
                self.paused_s += now - seen if child.paused else 0
                seen = now
                if now >= hear_at:
                    hear_at = now + self._timings.hear_s
                    self._listen()
                if self._cancelled:
                    kill_at = self._end(child, now, kill_at)
                elif self._throttle.may_run(now, busy=self._busy()):
                    child.go_on()
                else:
                    child.pause()
                await asyncio.sleep(self._timings.look_s)
        except BaseException:
            child.let_go()
            raise
        finally:
            self._child = None
        await self._catch_up()

    def _end(self, child: Child, now: float, kill_at: float) -> float:
        """SIGTERM first, SIGKILL when its time is over; returns that time."""
        if not kill_at:
            child.end()
            return now + self._timings.end_s
        if now >= kill_at:
            child.kill()
        return kill_at

    def _listen(self) -> bool:
        """Reads what events there are now, a piece; whether there were any."""
        if not self._cancelled and (self._folder / CANCEL).exists():
            self._cancelled = True
        found = self._events.read()
        for each in found:
            self._take(each)
        if self._events.skipped > self._told_skipped:
            data = {"run": self._folder.name, "lines": self._events.skipped - self._told_skipped}
            logger.warning("events of a run that cannot be read were passed over", extra={"data": data})
            self._told_skipped = self._events.skipped
        self._bound_log()
        return bool(found)

    async def _catch_up(self) -> None:
        heard = True
        while heard:
            heard = self._listen()
            await asyncio.sleep(0)

    def _take(self, heard: Heard) -> None:
        name, step = heard.event["event"], heard.event.get("step")
        if name == "step" and isinstance(step, int):
            self._step = max(self._step, step)
        # Whatever comes after an end (a new life's first words) takes the end back.
        self._last = heard.event if name in ("done", "failed", "cancelled") else None
        self._hear(heard.event)

    def _outcome(self, status: int | None) -> Outcome | None:
        """What has come of a child that is gone; None: it died, and may be started again."""
        if self._cancelled:
            return Outcome("cancelled")
        result = self._result()
        if result is not None:
            return Outcome("done", result=result)
        if self._last is not None and self._last["event"] == "failed":
            detail = self._last.get("detail")
            return Outcome("failed", _plain(detail) if isinstance(detail, str) else self._words())
        if status == _FAILED and not is_held(self._folder / RUN_LOCK):
            return Outcome("failed", f"The training process gave up. {self._words()}")
        if status == 0 and not is_held(self._folder / RUN_LOCK):
            return Outcome("failed", "The training process ended without a result.")
        if status == _KILLED and self._starts()["starts"] >= _STARTS_WITHOUT_PROGRESS and self._step <= self._starts()["step"]:
            return Outcome(
                "failed",
                "The system killed the training process, most likely because memory ran out."
                " Try a smaller batch or max_tokens, or free memory.",
            )
        return None

    def _result(self) -> Mapping[str, Any] | None:
        result = read_json(self._folder / RESULT)
        if result is None or not isinstance(result.get("adapter_hash"), str):
            return None
        return result

    def _words(self) -> str:
        """The last words of the log, as far as they may be shown."""
        lines = read_tail(self._folder / LOG, limit=4096).decode("utf-8", "replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "")
        return f"Its last words: {_plain(said)}" if said else "It said nothing."

    def _bound_log(self) -> None:
        """Cuts a log that has grown too long down to its end. What is printed in that very moment may be lost."""
        path = self._folder / LOG
        if not path.exists() or path.stat().st_size <= _MOST_LOG:
            return
        kept = read_tail(path, limit=_KEPT_LOG)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.ftruncate(fd, 0)  # the child appends, so it goes on at the new end
            os.write(fd, kept)
        finally:
            os.close(fd)

    async def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            await asyncio.sleep(min(self._timings.look_s, seconds))
            if self._cancelled:
                return


def _plain(text: str) -> str:
    """Foreign words as they may be shown: one line, bounded, without paths."""
    return visible(_PATH.sub("…", text[: 4 * _MOST_WORDS]))[:_MOST_WORDS].strip()
