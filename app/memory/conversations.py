"""Conversations: which earlier turns go into the next prompt.

A turn is one stored prediction: what was newly said in it, and the answer. There is no second store of turns, so what was
rated is what is recalled. No summaries and no search here; only the newest turns that fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from app.core.errors import NotFound
from app.core.ids import is_uuid7, uuid7
from app.core.records import ConversationRecord, PredictionRecord
from app.core.settings import Memory
from app.core.types import Message, Principal

_TITLE = 80
_CHARACTERS_PER_TOKEN = 3
_MESSAGE_TOKENS = 4
"""What a chat template writes around one message."""
_MOST_TURNS = 200


class ConversationStore(Protocol):
    """The repository of conversations."""

    async def create(self, conversation: ConversationRecord) -> None:
        """Adds one."""

    async def get(self, conversation_id: str, *, user_id: str) -> ConversationRecord | None:
        """A user's own, or None."""

    async def touch(self, conversation_id: str, *, now: datetime) -> None:
        """Notes that it was used."""


class PredictionStore(Protocol):
    """The repository of predictions."""

    async def of_conversation(self, conversation_id: str, *, user_id: str, limit: int = 100) -> list[PredictionRecord]:
        """The newest whole answers of a user's conversation, oldest first."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """What goes into the prompt. ``tokens``: as counted or estimated; ``left_out``: earlier turns that did not fit."""

    messages: tuple[Message, ...]
    turns: int
    left_out: int
    tokens: int


class ConversationMemory:
    """Opens conversations and recalls their turns.

    Args:
        conversations, predictions: the repositories.
        settings: section ``memory``.
        count: tokens of a text; an estimate of three characters a token unless given.
    """

    def __init__(
        self,
        conversations: ConversationStore,
        predictions: PredictionStore,
        settings: Memory,
        *,
        count: Callable[[str], int] | None = None,
    ) -> None:
        self._conversations = conversations
        self._predictions = predictions
        self._settings = settings
        self._count = count or estimate

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

    async def history(self, conversation: ConversationRecord, budget: int | None = None) -> list[Message]:
        """The messages of `recall`, oldest first."""
        return list((await self.recall(conversation, budget)).messages)

    async def recall(self, conversation: ConversationRecord, budget: int | None = None) -> Recalled:
        """The newest whole turns within ``budget`` tokens (``memory.history_tokens`` unless told), and how many were left
        out."""
        budget = self._settings.history_tokens if budget is None else budget
        predictions = await self._predictions.of_conversation(conversation.id, user_id=conversation.user_id, limit=_MOST_TURNS)
        turns = [turn_of(prediction) for prediction in predictions]
        kept: list[list[Message]] = []
        spent = 0
        for turn in reversed(turns):
            cost = sum(self._count(_text(message)) + _MESSAGE_TOKENS for message in turn)
            if spent + cost > budget:
                break
            spent += cost
            kept.append(turn)
        # A turn that answers a tool call means nothing without the turn that made the call.
        while kept and kept[-1] and kept[-1][0].role == "tool":
            spent -= sum(self._count(_text(message)) + _MESSAGE_TOKENS for message in kept.pop())
        messages = tuple(message for turn in reversed(kept) for message in turn)
        return Recalled(messages, len(kept), len(turns) - len(kept), spent)


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


def estimate(text: str) -> int:
    """Tokens of ``text``, guessed high rather than low: three characters each."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


def _message(wire: Mapping[str, Any]) -> Message:
    return Message(
        wire["role"],
        wire.get("content"),
        wire.get("name"),
        tuple(wire.get("tool_calls") or ()),
        wire.get("tool_call_id"),
    )


def _text(message: Message) -> str:
    content = message.content
    text = content if isinstance(content, str) else " ".join(str(part.get("text", "")) for part in content or ())
    return text + "".join(str(call.get("function", call)) for call in message.tool_calls)
