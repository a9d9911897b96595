"""Rehearsal: what the base itself answers to ordinary questions, learnt beside the feedback, so that nothing is forgotten.

A few dozen corrections, seen several times at a learning rate that makes them stick, would bend every other answer towards
them. So each optimizer step also takes some of these rows (Robins 1995, "Catastrophic forgetting, rehearsal and
pseudorehearsal"). The answers come from the base on the served stack, once for each base and system prompt. Nothing here came
from a user, and none of the questions is one of the gate's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from importlib import resources
from pathlib import Path
from typing import Any, Final, Protocol

from app.core.errors import InvalidRequest
from app.core.types import Answer, GenerationRequest, Message, ModelSpec, Sampling, VersionInfo
from app.training.folders import make_private, write_bytes

_PROMPTS: Final = "rehearsal_prompts.json"
_MAX_TOKENS: Final = 64
_AT_ONCE: Final = 8
_TEMPERATURE: Final = 1.0
_SEED: Final = 1


class Trial(Protocol):
    """What is used of `app.models.trial.Trial`."""

    version: VersionInfo

    async def answer(self, request: GenerationRequest) -> Answer: ...


class Models(Protocol):
    """What is used of `app.models.model_manager.ModelManager`."""

    def trial(self, spec: ModelSpec) -> AbstractAsyncContextManager[Any]: ...


class Rehearsal:
    """Rows to rehearse.

    Args:
        models: where the base is asked.
        folder: where its answers are kept.
        system_prompt: what it is served with.
    """

    def __init__(self, models: Models, folder: Path, *, system_prompt: str) -> None:
        self._models = models
        self._folder = folder
        self._system_prompt = system_prompt

    async def rows(self, base: ModelSpec) -> Path:
        """The file with the rows of a base (a spec without adapter), asked for where they are not there yet.

        A row: ``{"kind": "sft", "prompt": [messages], "completion": [message], "cut": bool}``; of one that is cut, the end is
        not to be learnt.

        Raises what a trial raises, and OSError.
        """
        async with self._models.trial(base) as trial:
            path = self._folder / f"{self._name(trial.version)}.jsonl"
            if await asyncio.to_thread(path.is_file):
                return path
            places = asyncio.Semaphore(_AT_ONCE)
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._row(trial, places, prompt)) for prompt in prompts()]
            except ExceptionGroup as several:  # one failure is as good as the other
                raise several.exceptions[0] from several
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for task in tasks if (row := task.result()) is not None]
        await asyncio.to_thread(make_private, self._folder)
        await asyncio.to_thread(write_bytes, path, "".join(lines).encode())
        return path

    def _name(self, version: VersionInfo) -> str:
        parts = (version.id, self._system_prompt, _MAX_TOKENS, _TEMPERATURE, _SEED, prompts())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    async def _row(self, trial: Trial, places: asyncio.Semaphore, prompt: str) -> dict[str, Any] | None:
        messages = [Message("system", self._system_prompt)] if self._system_prompt else []
        messages.append(Message("user", prompt))
        # Sampled as the model speaks, not its likeliest words: learning those would make it sure of itself everywhere.
        sampling = Sampling(max_tokens=_MAX_TOKENS, temperature=_TEMPERATURE, seed=_SEED)
        async with places:
            with contextlib.suppress(InvalidRequest):  # a template that takes no system message, say: then there is no such row
                answer = await trial.answer(GenerationRequest(tuple(messages), sampling=sampling))
                if answer.text.strip() and answer.finish_reason in ("stop", "length"):
                    return {
                        "kind": "sft",
                        "prompt": [message.to_wire() for message in messages],
                        "completion": [{"role": "assistant", "content": answer.text}],
                        "cut": answer.finish_reason == "length",
                    }
        return None


def prompts() -> Sequence[str]:
    """The questions."""
    text = resources.files("app.training").joinpath(_PROMPTS).read_text(encoding="utf-8")
    found: list[str] = json.loads(text)["prompts"]
    return found
