"""What is found for one call: turns of its conversation, facts, passages of documents, all kinds together.

It finds and does not choose: what of it fits a model's context is `app.models.context`'s, how it is written out
`app.models.showing`'s. Only a conversation that is not the caller's fails a call: what is late or away is left out, and a note
says so.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Final, Protocol, TypeVar

from app.core.errors import AprendizError
from app.core.records import ConversationRecord, FactRecord
from app.core.settings import Memory
from app.core.types import Context, GenerationRequest, Message, Passage, Principal, RecalledFact

logger = logging.getLogger(__name__)

NEW: Final = "new"
"""As ``conversation_id``: begin one; it has no turns."""
DOCUMENTS_S: Final = 2.0
FACTS_S: Final = 1.0
LEARN_S: Final = 1.0
_VECTORS_SHARE: Final = 0.6
"""Of the time for documents: while the embedder is being loaded, or hangs, words alone still find in time."""
_QUERY: Final = 2000
"""Characters of a question that are searched for: its last ones, where most people ask."""
_SHORT: Final = 5
"""A question of fewer words may mean something only together with the one before it."""
_TOKENS_EACH: Final = 96
"""Of a passage, rather too few: more are found than will fit, and fitting chooses."""
_MOST_PASSAGES: Final = 20

T = TypeVar("T")


class Found(Protocol):
    """Passages, the best first, and what the caller should know of the search."""

    @property
    def passages(self) -> tuple[Passage, ...]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


class Documents(Protocol):
    """What is used of `app.memory.documents.DocumentLibrary`."""

    async def search(self, user_id: str, query: str, *, k: int, collections: Sequence[str] = (), vectors_s: float) -> Found: ...


class Facts(Protocol):
    """What is used of `app.memory.facts.FactMemory`."""

    async def recall(self, user_id: str, text: str) -> tuple[RecalledFact, ...]: ...
    async def learn(self, user_id: str, text: str, prediction_id: str) -> list[FactRecord]: ...


class Recalled(Protocol):
    """Earlier turns: their messages, how many each turn has, what came before them, how many turns are not among them.

    ``private``: one of them was answered with facts or documents (`app.memory.private.shows_private`).
    """

    @property
    def messages(self) -> tuple[Message, ...]: ...
    @property
    def turns(self) -> tuple[int, ...]: ...
    @property
    def summary(self) -> str | None: ...
    @property
    def left_out(self) -> int: ...
    @property
    def private(self) -> bool: ...


class Conversations(Protocol):
    """What is used of `app.memory.conversations.ConversationMemory`."""

    async def open(self, conversation_id: str, principal: Principal) -> ConversationRecord: ...
    async def recall(self, conversation: ConversationRecord) -> Recalled: ...


class Notes(Protocol):
    """What is used of `app.memory.summaries.Summaries`."""

    def note(self, conversation_id: str, user_id: str) -> None: ...


class Recollection:
    """Finds what calls ask for, and takes note of what they leave behind.

    Args:
        settings: section ``memory``.
        documents, facts, conversations: where to find it; None: there are none.
        summaries: hears of each answered turn; None: nobody sums up.
        documents_s, facts_s, learn_s: longest time for each, in seconds.
    """

    def __init__(
        self,
        settings: Memory,
        *,
        documents: Documents | None = None,
        facts: Facts | None = None,
        conversations: Conversations,
        summaries: Notes | None = None,
        documents_s: float = DOCUMENTS_S,
        facts_s: float = FACTS_S,
        learn_s: float = LEARN_S,
    ) -> None:
        self._documents = documents
        self._facts = facts
        self._conversations = conversations
        self._summaries = summaries
        self._most = min(max(settings.context_tokens // _TOKENS_EACH, 1), _MOST_PASSAGES)
        self._documents_s, self._facts_s, self._learn_s = documents_s, facts_s, learn_s
        self._late: set[asyncio.Task[Any]] = set()

    async def recall(self, request: GenerationRequest, principal: Principal) -> GenerationRequest:
        """``request`` with ``context``, and with the turns of its conversation between system messages and the new ones.

        Raises NotFound where the conversation is absent or another's, and StorageUnavailable where it cannot be read.
        """
        own = request
        context = request.context or Context()
        if request.conversation_id not in (None, NEW):
            request, context = await self._with_turns(request, principal)
        query = _query(request.messages)
        (facts, facts_note), (found, found_note) = await asyncio.gather(
            self._recall_facts(own, principal.user_id, query), self._search(own, principal.user_id, query)
        )
        notes = [note for note in (facts_note, found_note) if note is not None]
        if found is not None:
            notes += found.notes
        context = dataclasses.replace(
            context, facts=facts, passages=() if found is None else found.passages, notes=tuple(notes)
        )
        return dataclasses.replace(request, context=context)

    async def learn(self, request: GenerationRequest, principal: Principal, prediction_id: str) -> tuple[FactRecord, ...]:
        """The facts that the caller's last message states, now proposed. Never raises; what is late is proposed all the same.

        Args:
            request: as the caller made it, before `recall`.
            prediction_id: of the answer, stored.
        """
        last = request.messages[-1]
        if self._facts is None or not request.memory or last.role != "user":
            return ()
        learned, _ = await self._within(
            self._learn_s, "facts", self._facts.learn(principal.user_id, _text(last.content), prediction_id), finish=True
        )
        return tuple(learned or ())

    def note(self, conversation_id: str, principal: Principal) -> None:
        """Says that a turn of a conversation was answered."""
        if self._summaries is not None:
            self._summaries.note(conversation_id, principal.user_id)

    async def aclose(self) -> None:
        """Ends what was late. May be called twice."""
        late = list(self._late)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def _with_turns(self, request: GenerationRequest, principal: Principal) -> tuple[GenerationRequest, Context]:
        conversation = await self._conversations.open(str(request.conversation_id), principal)
        recalled = await self._conversations.recall(conversation)
        system = [message for message in request.messages if message.role in ("system", "developer")]
        turns = [message for message in request.messages if message.role not in ("system", "developer")]
        request = dataclasses.replace(
            request,
            messages=(*system, *recalled.messages, *turns),
            conversation_id=conversation.id,
            recalled=recalled.turns,
        )
        left_out = {"turns": recalled.left_out} if recalled.left_out else {}
        return request, Context(
            summary=recalled.summary, turns=len(recalled.turns), left_out=left_out, private=recalled.private
        )

    async def _recall_facts(
        self, request: GenerationRequest, user_id: str, query: str
    ) -> tuple[tuple[RecalledFact, ...], str | None]:
        if self._facts is None or not request.memory or not query:
            return (), None
        facts, note = await self._within(self._facts_s, "facts", self._facts.recall(user_id, query))
        return facts or (), note

    async def _search(self, request: GenerationRequest, user_id: str, query: str) -> tuple[Found | None, str | None]:
        if self._documents is None or request.documents is None or not query:
            return None, None
        search = self._documents.search(
            user_id, query, k=self._most, collections=request.documents, vectors_s=_VECTORS_SHARE * self._documents_s
        )
        return await self._within(self._documents_s, "documents", search)

    async def _within(
        self, seconds: float, what: str, work: Coroutine[Any, Any, T], *, finish: bool = False
    ) -> tuple[T | None, str | None]:
        """What ``work`` gives within ``seconds``, or None and a note. Late work is cancelled, or with ``finish`` goes on."""
        task = asyncio.create_task(work)
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        try:
            done, _ = await asyncio.wait((task,), timeout=seconds)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            task.add_done_callback(_heard)
            if not finish:
                task.cancel()
            logger.warning("memory was late", extra={"data": {"what": what, "seconds": seconds}})
            return None, f"The {what} did not answer in time; the model was asked without them."
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            return task.result(), None
        if isinstance(error, AprendizError):
            logger.warning("memory failed", extra={"data": {"what": what, "error": error.slug}})
        else:
            logger.error("memory failed unexpectedly", exc_info=error, extra={"data": {"what": what}})
        return None, f"The {what} could not be read now; the model was asked without them."


def _heard(task: asyncio.Task[Any]) -> None:
    """Takes the error of work that nobody waits for any more."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("late memory failed", extra={"data": {"error": type(error).__name__}})


def _query(messages: Sequence[Message]) -> str:
    """What to search for: the last question; with the one before it where it is short ("and in Spain?")."""
    asked = [text for message in messages if message.role == "user" and (text := _text(message.content).strip())]
    if not asked:
        return ""
    if len(asked[-1].split()) < _SHORT and len(asked) > 1:
        return f"{asked[-2]}\n{asked[-1]}"[-_QUERY:]
    return asked[-1][-_QUERY:]


def _text(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in content if part.get("type") == "text" and "text" in part)
    return content or ""
