"""Conversations: which earlier turns go into the next prompt.

A turn is one stored prediction: what was newly said in it, and the answer. There is no second store of turns, so what was
rated is what is recalled. What the oldest turns were about stands in the conversation's summary, which `app.memory.summaries`
makes. Turns are bounded here by number and length; the cut by tokens is `app.models.context`'s, which has the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from app.core.errors import NotFound
from app.core.ids import is_uuid7, uuid7
from app.core.records import ConversationRecord, PredictionRecord
from app.core.settings import Memory
from app.core.types import Message, Principal
from app.memory.private import shows_private

_TITLE = 80
MOST_TURNS: Final = 200
_CHARACTERS_PER_TOKEN = 12
"""More than text has: what is longer than the budget in tokens allows under any tokenizer need not be read."""
_LEAST_CHARACTERS = 4096


class ConversationStore(Protocol):
    """The repository of conversations."""

    async def create(self, conversation: ConversationRecord) -> None:
        """Adds one."""

    async def get(self, conversation_id: str, *, user_id: str) -> ConversationRecord | None:
        """A user's own, or None."""

    async def touch(self, conversation_id: str, *, now: datetime) -> None:
        """Notes that it was used."""

    async def count_turns(self, conversation_id: str, *, user_id: str, after: str | None = None) -> int:
        """How many whole answers it has behind the id ``after``."""


class PredictionStore(Protocol):
    """The repository of predictions."""

    async def of_conversation(
        self, conversation_id: str, *, user_id: str, limit: int = 100, after: str | None = None
    ) -> list[PredictionRecord]:
        """The newest whole answers of a user's conversation, oldest first; ``after``: those behind this id."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """Earlier turns of a conversation.

    ``turns``: how many of ``messages`` each turn has, oldest first. ``summary``: what those before were about. ``left_out``:
    turns that are neither here nor in the summary.
    """

    messages: tuple[Message, ...]
    turns: tuple[int, ...]
    summary: str | None = None
    left_out: int = 0
    private: bool = False
    """One of them was answered with facts or documents; see `app.memory.private.shows_private`."""


class ConversationMemory:
    """Opens conversations and recalls their turns.

    Args:
        conversations, predictions: the repositories.
        settings: section ``memory``.
    """

    def __init__(self, conversations: ConversationStore, predictions: PredictionStore, settings: Memory) -> None:
        self._conversations = conversations
        self._predictions = predictions
        self._characters = max(settings.history_tokens * _CHARACTERS_PER_TOKEN, _LEAST_CHARACTERS)
        self._none = settings.history_tokens == 0

    def begin(self, principal: Principal, first_text: str) -> ConversationRecord:
        """A new conversation, titled after ``first_text``. Not stored before `keep`: a call may yet be refused."""
        now = datetime.now(UTC)
        return ConversationRecord(uuid7(), principal.user_id, title_of(first_text), now, now)

    async def keep(self, conversation: ConversationRecord) -> None:
        """Stores a conversation that `begin` gave."""
        await self._conversations.create(conversation)

    async def open(self, conversation_id: str, principal: Principal) -> ConversationRecord:
        """The principal's conversation of that id, which is noted as used. Raises NotFound: absent, or another's."""
        found = None
        if is_uuid7(conversation_id):
            found = await self._conversations.get(conversation_id, user_id=principal.user_id)
        if found is None:
            raise NotFound("There is no such conversation of yours.", field="conversation_id")
        await self._conversations.touch(found.id, now=datetime.now(UTC))
        return found

    async def recall(self, conversation: ConversationRecord) -> Recalled:
        """The newest whole turns that the summary does not cover, as many as may fit, with the summary."""
        owner, after = conversation.user_id, conversation.summary_until
        limit = 0 if self._none else MOST_TURNS
        found = await self._predictions.of_conversation(conversation.id, user_id=owner, limit=limit, after=after)
        total = len(found)
        if total == limit:
            total = await self._conversations.count_turns(conversation.id, user_id=owner, after=after)
        kept: list[list[Message]] = []
        room, private = self._characters, False
        for prediction in reversed(found):
            turn = turn_of(prediction)
            room -= sum(len(text_of(message)) for message in turn)
            if room < 0:
                break
            kept.append(turn)
            private = private or shows_private(prediction.input)
        # A turn that answers a tool call means nothing without the turn that made the call.
        while kept and kept[-1][0].role == "tool":
            kept.pop()
        kept.reverse()
        messages = tuple(message for turn in kept for message in turn)
        return Recalled(messages, tuple(map(len, kept)), conversation.summary, total - len(kept), private)


def turn_of(prediction: PredictionRecord) -> list[Message]:
    """What one prediction added to its conversation: the messages after the last answer in its input, and its own answer.

    Its stored input also holds the turns that were recalled then, and system messages; neither is repeated.
    """
    wire = [each for each in prediction.input.get("messages", ()) if each.get("role") not in ("system", "developer")]
    after = next((index for index in range(len(wire), 0, -1) if wire[index - 1].get("role") == "assistant"), 0)
    answer = Message("assistant", prediction.output or None, tool_calls=prediction.tool_calls)
    if not prediction.output and not prediction.tool_calls:
        answer = Message("assistant", "")
    return [*(_message(each) for each in wire[after:]), answer]


def title_of(text: str) -> str:
    """A title from the first words of a conversation: one line of at most 80 characters."""
    line = " ".join(text.split())
    if len(line) > _TITLE:
        line = line[: _TITLE - 1].rsplit(" ", 1)[0] + "…"
    return line or "New conversation"


def _message(wire: Mapping[str, Any]) -> Message:
    return Message(
        wire["role"],
        wire.get("content"),
        wire.get("name"),
        tuple(wire.get("tool_calls") or ()),
        wire.get("tool_call_id"),
    )


def text_of(message: Message) -> str:
    """The words of a message, those of its tool calls too."""
    content = message.content
    text = content if isinstance(content, str) else " ".join(str(part.get("text", "")) for part in content or ())
    return text + "".join(str(call.get("function", call)) for call in message.tool_calls)
