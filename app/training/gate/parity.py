"""Parity: whether the version that serves is the one that was trained, by log-probabilities of the same texts on both sides.

The trained side is asked in a child process (`app.training.worker.score`), since it needs torch. Served weights are quantised
and trained ones are not, so the two never agree exactly: what counts is whether the candidate's sides differ more than those of
the current version, where that has the same base. An adapter that is not applied, or applied to the wrong weights, differs by
far.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.core.errors import EngineUnavailable
from app.core.types import GenerationRequest, ModelSpec
from app.providers.process import base_environment
from app.training.child import NICE
from app.training.folders import Folders, read_json, read_tail, write_json
from app.training.gate.evidence import Guard, LimitGuard, Unmeasured
from app.training.gate.statistics import mean

COMMAND: Final = (sys.executable, "-P", "-m", "app.training.worker.score")
TOLERANCE: Final = 0.1
"""Nats per token that the two sides may differ by, on top of twice what they differ by for the current version."""
_MOST_BEFORE: Final = 0.2
"""The current version counts with no more: one that is itself served otherwise than it was trained excuses nothing."""
_LONGEST_S: Final = 600.0
_MOST_TOKENS: Final = 1024
_MOST_LOG: Final = 2000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt with an answer, and the log-probabilities of its tokens as served by both versions."""

    request: GenerationRequest
    completion: str
    old: Sequence[float]
    new: Sequence[float]


class Parity:
    """Asks the trained side.

    Args:
        folders: where adapters lie.
        command: the child; paths of the request and of the answer are appended.
    """

    def __init__(self, folders: Folders, *, command: Sequence[str] = COMMAND, longest_s: float = _LONGEST_S) -> None:
        self._folders = folders
        self._command = command
        self._longest_s = longest_s

    async def measure(
        self, folder: Path, items: Sequence[Item], *, old: ModelSpec, new: ModelSpec, template: str | None
    ) -> list[Guard]:
        """The guards ``parity`` and ``template``.

        ``folder``: the run's own, with its ``job.json``; ``template``: hash of the served chat template.

        Raises:
            EngineUnavailable: the child was killed, or took too long; the judgement can be repeated.
            OSError: files cannot be written.
        """
        job = await asyncio.to_thread(read_json, folder / "job.json")
        if job is None:
            return [Unmeasured("parity", "The run's own record of what it trained is gone.", passes=False)]
        alike = (old.provider, old.model) == (new.provider, new.model)
        names = [name for name in (new.adapter, old.adapter if alike else None) if name]
        request = {
            "base": job["base"],
            "chat_template": job.get("chat_template"),
            "threads": job.get("threads") or os.cpu_count() or 1,
            "device": job.get("device", "auto"),
            "dtype": "auto",
            "max_tokens": _MOST_TOKENS,
            "adapters": {name: str(self._folders.adapter(name).resolve()) for name in names},
            "items": [_item(each) for each in items],
        }
        found = await self._asked(folder, request)
        if isinstance(found, str):
            return [Unmeasured("parity", f"The trained side could not be asked: {found}", passes=False)]
        return _compared(found, items, (old.adapter or "") if alike else None, new.adapter or "", template)

    async def _asked(self, folder: Path, request: Mapping[str, Any]) -> Mapping[str, Any] | str:
        """The child's answer, or in words why there is none."""
        place = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="score.", dir=folder))
        try:
            await asyncio.to_thread(write_json, place / "request.json", request)
            code = await self._run(place)
            found = await asyncio.to_thread(read_json, place / "answer.json") if code == 0 else None
            if found is not None and isinstance(found.get("scores"), dict):
                return found
            tail = await asyncio.to_thread(read_tail, place / "log", limit=_MOST_LOG)
            logger.warning(
                "the trained side gave no answer", extra={"data": {"status": code, "log": tail.decode(errors="replace")}}
            )
            return "it ended without an answer; the service's log says why."
        finally:
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)

    async def _run(self, place: Path) -> int:
        with (place / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                str(place / "request.json"),
                str(place / "answer.json"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=place,
                env=base_environment(),
                start_new_session=True,
            )
        try:
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
            async with asyncio.timeout(self._longest_s):
                code = await process.wait()
        except TimeoutError:
            raise EngineUnavailable("The trained side took too long to be compared with the served one.") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if code < 0:
            raise EngineUnavailable("The trained side was killed while it was compared with the served one.")
        return code


def _item(item: Item) -> dict[str, Any]:
    prompt = [each.to_wire() for each in item.request.messages]
    tools = [dict(each) for each in item.request.sampling.tools]
    asked: dict[str, Any] = {"prompt": prompt, "completion": [{"role": "assistant", "content": item.completion}]}
    return {**asked, "tools": tools} if tools else asked


def _compared(
    found: Mapping[str, Any], items: Sequence[Item], old: str | None, new: str, template: str | None
) -> list[Guard]:  # fmt: skip
    """``old``: None where the current version has another base, whose weights the trained side does not have."""
    now = _differences(found["scores"].get(new), [each.new for each in items])
    was = [0.0] if old is None else _differences(found["scores"].get(old), [each.old for each in items])
    if not was or not now:
        return [Unmeasured("parity", "The trained side could score none of the texts.", passes=False)]
    limit = 2 * min(mean(was), _MOST_BEFORE) + TOLERANCE
    before = "the current version has another base" if old is None else f"the current version's by {mean(was):.3f}"
    words = (
        f"Trained and served log-probabilities differ by {mean(now):.3f} nats per token; {before}; at most {limit:.3f} is "
        "allowed."
    )
    return [LimitGuard("parity", mean(now), limit, detail=words), _template(found.get("template_hash"), template)]


def _differences(trained: object, served: Sequence[Sequence[float]]) -> list[float]:
    """Mean difference per token of each text that both sides scored. One side may also count what ends the turn."""
    if not isinstance(trained, list) or len(trained) != len(served):
        return []
    found = []
    for one, other in zip(trained, served, strict=True):
        theirs = one.get("logprobs") if isinstance(one, dict) else None
        if isinstance(theirs, list) and theirs and other and abs(len(theirs) - len(other)) <= 2:
            found.append(mean([abs(a - b) for a, b in zip(theirs, other, strict=False)]))
    return found


def _template(trained: object, served: str | None) -> Guard:
    if served is None or not isinstance(trained, str):
        return Unmeasured("template", "The hash of one of the two chat templates is not known.", passes=False)
    same = trained == served
    words = "It was trained with the chat template that serves." if same else "It was trained with another chat template."
    return LimitGuard("template", float(same), 1.0, at_least=True, detail=words)
