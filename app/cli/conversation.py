"""One conversation with the service: asks, remembers the thread and the last answer, and sends ratings and corrections.

Speaks HTTP through `ServiceClient` and nothing to the person; that is `app.cli.terminal`'s work.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from app.cli.client import ServiceClient
from app.core.errors import InvalidRequest, UpstreamError


@dataclass(frozen=True, slots=True)
class LastAnswer:
    """The answer that ``/good``, ``/bad`` and ``/fix`` mean. ``sources``: a line for each passage, fact and note behind it."""

    id: str
    text: str
    model: str
    finish_reason: str
    tokens: int
    sources: tuple[str, ...] = ()


NEW = "new"
"""As ``conversation_id``: begin one."""


class Conversation:
    """A thread of questions and answers. ``model`` None asks for the service's default; ``recall``: the fields ``memory`` and
    ``documents`` of each question."""

    def __init__(
        self, client: ServiceClient, *, model: str | None = None, recall: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self._client = client
        self.model = model
        self.last: LastAnswer | None = None
        self._recall = recall
        self._id = NEW

    def restart(self) -> None:
        """Forgets the thread: the next question starts a new one."""
        self._id = NEW
        self.last = None

    async def ask(self, text: str) -> AsyncGenerator[str, None]:
        """Yields the answer in pieces; closing it early stops the model. Afterwards `last` is this answer.

        Raises:
            UpstreamError: the answer was cut off. AprendizError: whatever the service refuses, in its words.
        """
        self.last = None
        body: dict[str, Any] = {"prompt": text, "stream": True, "conversation_id": self._id, **self._recall}
        if self.model is not None:
            body["model"] = self.model
        async with contextlib.aclosing(self._client.events("/predict", body)) as events:
            async for name, data in events:
                if name == "delta":
                    yield str(data.get("text", ""))
                elif name == "done":
                    self._keep(data)
                    return
        raise UpstreamError("The answer was cut off before its end. Ask again.")

    async def rate(self, rating: Literal["up", "down"], comment: str = "") -> None:
        """Rates the last answer. Raises InvalidRequest where there is none."""
        await self._send({"rating": rating, **({"comment": comment} if comment else {})})

    async def correct(self, text: str) -> None:
        """Sends the better answer in place of the last one."""
        await self._send({"correction": text})

    async def models(self) -> Any:
        """What ``GET /model`` says."""
        return await self._client.get("/model")

    async def _send(self, feedback: dict[str, Any]) -> None:
        if self.last is None:
            raise InvalidRequest("There is no answer to rate yet.")
        await self._client.post("/feedback", {"prediction_id": self.last.id, **feedback})

    def _keep(self, done: dict[str, Any]) -> None:
        usage = done.get("usage") or {}
        self._id = done.get("conversation_id") or self._id
        self.last = LastAnswer(
            id=str(done["id"]),
            text=str(done.get("text", "")),
            model=str(done.get("model", "")),
            finish_reason=str(done.get("finish_reason", "")),
            tokens=int(usage.get("completion_tokens", 0)),
            sources=tuple(_sources(done)),
        )


def _sources(done: Mapping[str, Any]) -> Iterator[str]:
    """What stood behind an answer, a line each: cited passages with a star."""
    context = done.get("context") or {}
    for each in done.get("citations") or ():
        place = ", ".join(f"{name} {value}" for name, value in each["place"].items())
        yield f"[{each['index']}]{'*' if each['cited'] else ''} {each['name']}{', ' if place else ''}{place}"
    for fact in context.get("facts", ()):
        yield f"I remembered: {fact['text']}"
    for fact in context.get("proposed", ()):
        yield f"Shall I remember this? {fact['text']}  (aprendiz memory keep {fact['id']})"
    left_out = ", ".join(f"{count} {kind}" for kind, count in context.get("left_out", {}).items())
    if left_out:
        yield f"There was no room for: {left_out}."
    yield from context.get("notes", ())
