"""Two speeds: corrections that a reviewer approved are shown to the model with similar questions, until a run has learned them.

What is approved lies in this process's memory, the newest five thousand, and follows the database: at once after a review here,
within a second after one elsewhere. Pending, rejected, replaced and deleted corrections are never here. Who approves one shows
it to everybody who asks something similar. How it gets into a prompt is decided in `app.models`; nothing is trained here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from app.core.errors import AprendizError
from app.core.records import FeedbackRecord, PredictionRecord
from app.core.settings import Training
from app.core.types import Example, Message
from app.memory.private import shows_private
from app.memory.similarity import TextIndex, words_of

logger = logging.getLogger(__name__)

LEAST: Final = 0.62
"""How alike two questions must be."""
_POLL_S: Final = 1.0
_START_S: Final = 0.5
_AT_ONCE: Final = 50
"""Texts that are indexed before others get their turn."""
_ABSORBED_S: Final = 30.0
_MOST_VERSIONS: Final = 64
_MOST_PROMPT: Final = 2000
_FOLLOW_UP: Final = 3
"""A question within a conversation stands for itself only if it has so many telling words ("And in Spain?" has one)."""


class ExampleStore(Protocol):
    """The repository (`app.db.examples`)."""

    async def state(self) -> tuple[int, datetime | None]:
        """Changes whenever what is approved does."""

    async def ids(self) -> dict[str, datetime | None]:
        """Ids of what is approved, and when each was reviewed."""

    async def records(self, ids: Sequence[str]) -> list[tuple[FeedbackRecord, PredictionRecord]]:
        """These, each with the prediction it corrects."""

    async def absorbed(self, version: str) -> frozenset[str]:
        """Ids of the feedback that this version was trained on."""


@dataclass(frozen=True, slots=True)
class _Known:
    """``system``: the system message under which the question was asked. ``reviewed_at``: tells one review from the next."""

    example: Example
    system: str
    reviewed_at: datetime | None


class ExampleMemory:
    """Approved corrections, by similarity.

    Args:
        store: the repository.
        settings: section ``training``; ``examples`` is how many are shown at most, 0: none.
        clock: seconds, monotonic.
    """

    def __init__(self, store: ExampleStore, settings: Training, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._most = settings.examples
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._unfit: dict[str, datetime | None] = {}
        self._index: TextIndex[str] = TextIndex()
        self._state: tuple[int, datetime | None] | None = None
        self._absorbed: dict[str, tuple[frozenset[str], float]] = {}
        self._lock = asyncio.Lock()
        self._poller: asyncio.Task[None] | None = None
        self._failing = False

    def __len__(self) -> int:
        return len(self._known)

    async def start(self) -> None:
        """Reads what is approved, and goes on looking every second. Never raises: what cannot be read now is read later."""
        if not self._most:
            return
        first = asyncio.create_task(self.refresh())
        self._poller = asyncio.create_task(self._poll(first), name="examples")
        await asyncio.wait([first], timeout=_START_S)  # with thousands, the first questions go without: nobody waits longer

    async def aclose(self) -> None:
        """Stops looking. May be called twice."""
        poller, self._poller = self._poller, None
        if poller is not None:
            poller.cancel()
            await asyncio.wait([poller])

    async def note(self, record: FeedbackRecord) -> None:
        """After a review here: when this returns, the next question is answered with it, or without it. Never raises."""
        await self.refresh()

    async def refresh(self) -> None:
        """Reads again what is approved. Never raises."""
        if not self._most:
            return
        try:
            async with self._lock:
                await self._read()
            self._failing = False
        except AprendizError as error:
            if not self._failing:
                logger.error(
                    "approved corrections cannot be read; those known are shown", extra={"data": {"error": error.slug}}
                )
            self._failing = True

    async def recall(self, messages: Sequence[Message], version: str | None) -> tuple[Example, ...]:
        """What to show with this conversation to a model of ``version``, the most similar last. Never raises.

        Not what that version was trained on, and nothing from under other instructions: a caller with a system message of its
        own gets what was corrected under the same one.
        """
        if not self._known or not messages or messages[-1].role != "user":
            return ()
        text, system = _text(messages[-1].content), _system([message.to_wire() for message in messages])
        if text is None or system is None or _is_follow_up(text, any(message.role == "assistant" for message in messages)):
            return ()
        found = self._index.search(text, least=LEAST)
        if not found:
            return ()
        learned = frozenset() if version is None else await self._learned(version)
        chosen: dict[str, Example] = {}
        for feedback_id, _ in found:
            known = self._known.get(feedback_id)  # it may have gone while we asked for the version
            if known is None or feedback_id in learned or (system and known.system != system):
                continue
            same = " ".join(known.example.prompt.casefold().split())
            if same not in chosen or chosen[same].id < feedback_id:  # of several answers to one question, the newest
                chosen[same] = known.example
        return tuple(list(chosen.values())[: self._most][::-1])

    async def _poll(self, first: asyncio.Task[None]) -> None:
        await first
        while True:
            await asyncio.sleep(_POLL_S)
            with contextlib.suppress(AprendizError):  # told by `refresh`, which reads the same
                if self._failing or await self._store.state() != self._state:
                    await self.refresh()

    async def _read(self) -> None:
        state = await self._store.state()
        if state == self._state:
            return
        approved = await self._store.ids()
        had: dict[str, datetime | None] = {key: each.reviewed_at for key, each in self._known.items()} | self._unfit
        self._forget([key for key in had if approved.get(key, _GONE) != had[key]])
        new = [key for key in approved if key not in self._known and key not in self._unfit]
        fresh = dict.fromkeys(new)
        for number, (said, prediction) in enumerate(await self._store.records(new)):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            known = _known(said, prediction)
            if known is not None:
                del fresh[said.id]
                self._known[said.id] = known
                self._index.add(said.id, known.example.prompt)
        self._unfit.update({key: approved[key] for key in fresh})
        self._state = state

    def _forget(self, ids: Sequence[str]) -> None:
        for feedback_id in ids:
            self._unfit.pop(feedback_id, None)
            if self._known.pop(feedback_id, None) is not None:
                self._index.remove(feedback_id)

    async def _learned(self, version: str) -> frozenset[str]:
        found = self._absorbed.get(version)
        if found is not None and self._clock() - found[1] < _ABSORBED_S:
            return found[0]
        try:
            learned = await self._store.absorbed(version)
        except AprendizError as error:
            logger.warning("what a version was trained on cannot be read", extra={"data": {"error": error.slug}})
            return frozenset() if found is None else found[0]
        if len(self._absorbed) >= _MOST_VERSIONS:
            self._absorbed.pop(next(iter(self._absorbed)))
        self._absorbed[version] = (learned, self._clock())
        return learned


_GONE: Final = datetime.min


def _known(said: FeedbackRecord, prediction: PredictionRecord) -> _Known | None:
    """The example that a correction makes, or None: only a plain question and a plain answer show what to say."""
    answer = said.correction if said.edited is None else said.edited
    asked = prediction.input
    sampling: Mapping[str, Any] = asked.get("sampling", {})
    form = (sampling.get("response_format") or {}).get("type", "text")
    if said.review != "approved" or not answer or asked.get("raw") or sampling.get("tools") or form != "text":
        return None
    if shows_private(asked):
        return None  # made with one user's facts or documents, it may hold their words: nobody else is shown them
    messages: Sequence[Mapping[str, Any]] = asked.get("messages", ())
    if not messages or messages[-1].get("role") != "user":
        return None
    prompt, system = _text(messages[-1].get("content")), _system(messages)
    if prompt is None or system is None or len(prompt) > _MOST_PROMPT:
        return None
    if _is_follow_up(prompt, any(message.get("role") == "assistant" for message in messages)):
        return None
    return _Known(Example(said.id, prompt, answer), system, said.reviewed_at)


def _is_follow_up(text: str, later: bool) -> bool:
    """Whether a question means something only together with what was said before."""
    return words_of(text).telling < (_FOLLOW_UP if later else 1)


def _system(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The instructions of a conversation, without regard to white space; None where they are no text."""
    texts = [_text(message.get("content")) for message in messages if message.get("role") in ("system", "developer")]
    return None if None in texts else " ".join(" ".join(text or "" for text in texts).split())


def _text(content: str | list[dict[str, Any]] | None) -> str | None:
    """A message's text, or None where it holds more than that, or nothing."""
    if isinstance(content, list):
        if any(part.get("type") != "text" for part in content):
            return None
        content = "".join(str(part.get("text", "")) for part in content)
    return content if content and content.strip() else None
