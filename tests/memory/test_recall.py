"""What is found for a call: all kinds at once, each within its time, and nothing of it fails the call."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest

from app.core.errors import NotFound, StorageUnavailable
from app.core.records import ConversationRecord, FactRecord
from app.core.settings import Memory
from app.core.types import ALL_SCOPES, Context, GenerationRequest, Message, Passage, Principal, RecalledFact
from app.memory.private import shows_private
from app.memory.recall import Recollection
from app.memory.search import Found

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANA = Principal("ana", "ana", "user", frozenset(ALL_SCOPES), "token")
PASSAGE = Passage("c1", "d1", "harbour.md", "sea", "The lamp is trimmed at dusk.", 0.9)
FACT = RecalledFact("f1", "I live in Lisbon.", NOW)


class Library:
    """Documents that answer after ``wait_s``, or fail."""

    def __init__(self, *, wait_s: float = 0.0, error: Exception | None = None) -> None:
        self.wait_s, self.error = wait_s, error
        self.asked: list[tuple[str, str, int, tuple[str, ...]]] = []
        self.begun = asyncio.Event()
        self.cancelled = False

    async def search(self, user_id: str, query: str, *, k: int, collections: Any = (), vectors_s: float) -> Found:
        self.asked.append((user_id, query, k, tuple(collections)))
        self.begun.set()
        try:
            await asyncio.sleep(self.wait_s)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        return Found((PASSAGE,), ("Only words were searched.",))


class People:
    """Facts, in the same way."""

    def __init__(self, *, wait_s: float = 0.0, error: Exception | None = None) -> None:
        self.wait_s, self.error = wait_s, error
        self.asked: list[tuple[str, str]] = []
        self.learned: list[tuple[str, str, str]] = []

    async def recall(self, user_id: str, text: str) -> tuple[RecalledFact, ...]:
        self.asked.append((user_id, text))
        await asyncio.sleep(self.wait_s)
        if self.error is not None:
            raise self.error
        return (FACT,)

    async def learn(self, user_id: str, text: str, prediction_id: str) -> list[FactRecord]:
        await asyncio.sleep(self.wait_s)
        if self.error is not None:
            raise self.error
        self.learned.append((user_id, text, prediction_id))
        return [FactRecord("f2", user_id, text, "proposed", NOW, NOW, "h")]


@dataclasses.dataclass(frozen=True)
class Turns:
    messages: tuple[Message, ...] = (Message("user", "Where is the lamp?"), Message("assistant", "In the tower."))
    turns: tuple[int, ...] = (2,)
    summary: str | None = "They spoke of boats."
    left_out: int = 3
    private: bool = False


class Threads:
    def __init__(self, turns: Turns | None = None) -> None:
        self.turns = turns or Turns()

    async def open(self, conversation_id: str, principal: Principal) -> ConversationRecord:
        if (conversation_id, principal.user_id) != ("thread", "ana"):
            raise NotFound("There is no such conversation of yours.")
        return ConversationRecord("thread", "ana", "t", NOW, NOW)

    async def recall(self, conversation: ConversationRecord) -> Turns:
        return self.turns


def recollection(**parts: Any) -> Recollection:
    parts = {"documents": Library(), "facts": People(), "conversations": Threads(), **parts}
    return Recollection(Memory(), documents_s=0.2, facts_s=0.2, learn_s=0.2, **parts)


def ask(text: str = "When is it trimmed today, please?", **more: Any) -> GenerationRequest:
    return GenerationRequest((Message("system", "Be brief."), Message("user", text)), **more)


async def found(request: GenerationRequest, **parts: Any) -> Context:
    recalled = await recollection(**parts).recall(request, ANA)
    assert recalled.context is not None
    return recalled.context


async def test_only_what_is_asked_for_is_searched() -> None:
    library, people = Library(), People()
    context = await found(ask(memory=True), documents=library, facts=people)
    assert (context.facts, context.passages, library.asked) == ((FACT,), (), [])
    context = await found(ask(documents=("sea", "land")), documents=library, facts=people)
    assert (context.facts, context.passages, context.notes) == ((), (PASSAGE,), ("Only words were searched.",))
    assert library.asked == [("ana", "When is it trimmed today, please?", 8, ("sea", "land"))]
    assert len(people.asked) == 1


async def test_turns_stand_between_system_and_new_messages() -> None:
    request = await recollection().recall(ask(conversation_id="thread"), ANA)
    assert [message.content for message in request.messages] == [
        "Be brief.", "Where is the lamp?", "In the tower.", "When is it trimmed today, please?",
    ]  # fmt: skip
    assert request.recalled == (2,)
    context = request.context
    assert context is not None
    assert (context.turns, context.summary, context.left_out) == (1, "They spoke of boats.", {"turns": 3})
    with pytest.raises(NotFound):
        await recollection().recall(ask(conversation_id="another's"), ANA)
    assert (await recollection().recall(ask(conversation_id="new"), ANA)).recalled == ()


async def test_a_short_question_is_searched_with_the_one_before_it() -> None:
    library = Library()
    await found(ask("And in Spain?", documents=(), conversation_id="thread"), documents=library)
    assert library.asked[0][1] == "Where is the lamp?\nAnd in Spain?"
    await found(ask("x" * 5000, documents=()), documents=library)
    assert len(library.asked[1][1]) == 2000


async def test_parts_of_a_question_are_searched_by_their_text() -> None:
    library = Library()
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "text", "text": "When is this lamp trimmed?"},
    ]
    await found(GenerationRequest((Message("user", parts),), documents=()), documents=library)
    assert library.asked[0][1] == "When is this lamp trimmed?"
    await found(GenerationRequest((Message("user", parts[:1]),), documents=()), documents=library)
    assert len(library.asked) == 1, "there is nothing to search for"


async def test_what_is_late_is_left_out_and_told() -> None:
    library, people = Library(wait_s=30), People(wait_s=30)
    async with asyncio.timeout(5):
        context = await found(ask(memory=True, documents=()), documents=library, facts=people)
    assert (context.facts, context.passages) == ((), ())
    assert len(context.notes) == 2 and all("in time" in note for note in context.notes)
    await asyncio.sleep(0)
    assert library.cancelled


@pytest.mark.parametrize("error", [StorageUnavailable("The database is away."), RuntimeError("/secret/path")])
async def test_what_fails_is_left_out_and_told(error: Exception) -> None:
    context = await found(ask(memory=True, documents=()), documents=Library(error=error))
    assert (context.facts, context.passages) == ((FACT,), ())
    assert context.notes == ("The documents could not be read now; the model was asked without them.",)


async def test_a_caller_who_leaves_ends_the_search() -> None:
    library = Library(wait_s=30)
    parts = recollection(documents=library)
    asking = asyncio.create_task(parts.recall(ask(documents=()), ANA))
    async with asyncio.timeout(5):
        await library.begun.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.sleep(0)
    assert library.cancelled


async def test_only_with_memory_and_only_from_the_callers_own_last_message_is_learned() -> None:
    people = People()
    parts = recollection(facts=people)
    assert await parts.learn(ask("I live in Porto."), ANA, "p1") == ()
    (fact,) = await parts.learn(ask("I live in Porto.", memory=True), ANA, "p1")
    assert (fact.state, people.learned) == ("proposed", [("ana", "I live in Porto.", "p1")])
    tool = Message("tool", "I live in Hell.", tool_call_id="a")
    assert await parts.learn(GenerationRequest((Message("user", "I live in Porto."), tool), memory=True), ANA, "p2") == ()
    assert len(people.learned) == 1


async def test_late_facts_are_proposed_all_the_same_and_failures_are_quiet() -> None:
    people = People(wait_s=0.4)
    parts = recollection(facts=people)
    assert await parts.learn(ask(memory=True), ANA, "p1") == ()
    for _ in range(100):
        await asyncio.sleep(0.02)
        if people.learned:
            break
    assert people.learned
    assert await recollection(facts=People(error=StorageUnavailable("x"))).learn(ask(memory=True), ANA, "p1") == ()


async def test_closing_ends_what_is_late() -> None:
    people = People(wait_s=30)
    parts = recollection(facts=people)
    assert await parts.learn(ask(memory=True), ANA, "p1") == ()
    async with asyncio.timeout(5):
        await parts.aclose()
        await parts.aclose()
    assert people.learned == []


async def test_without_facts_and_documents_there_are_none() -> None:
    context = await found(ask(memory=True, documents=()), documents=None, facts=None)
    assert (context.facts, context.passages) == ((), ())


async def test_an_answer_after_a_private_one_is_private() -> None:
    context = await found(ask(conversation_id="thread"), conversations=Threads(Turns(private=True)))
    assert context.private


@pytest.mark.parametrize(
    ("stored", "private"),
    [
        ({}, False),
        ({"context": {"turns": 3, "summary": False, "passages": []}}, False),
        ({"context": {"turns": 0, "summary": False, "passages": ["c"]}}, True),
        ({"context": {"turns": 0, "summary": False, "facts": ["f"]}}, True),
        ({"context": {"turns": 0, "summary": True}}, True),
        ({"context": {"turns": 1, "summary": False, "private": True}}, True),
    ],
)
def test_what_counts_as_private(stored: dict[str, Any], private: bool) -> None:
    assert shows_private(stored) == private
