"""Which approved corrections are shown with which question. The repository is a dict with the contract of `app.db.examples`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.core.errors import StorageUnavailable
from app.core.ids import uuid7
from app.core.records import FeedbackRecord, PredictionRecord
from app.core.settings import Training
from app.core.types import Message
from app.memory.examples import ExampleMemory

NOW = datetime(2026, 11, 23, tzinfo=UTC)
SYSTEM = {"role": "system", "content": "You are Aprendiz."}


class Store:
    """Approved corrections in a dict."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[FeedbackRecord, PredictionRecord]] = {}
        self.learned: dict[str, frozenset[str]] = {}
        self.asked = 0
        self.broken = False

    def add(self, prompt: str, answer: str, **more: Any) -> str:
        given: list[dict[str, Any]] = more.pop("messages", [SYSTEM, {"role": "user", "content": prompt}])
        asked = {"messages": given, "sampling": more.pop("sampling", {}), **more.pop("input", {})}
        prediction = PredictionRecord(
            uuid7(), "u", NOW, "echo", "echo", "v", asked, "wrong", "stop", 1, 1, 0.0, None, 1.0
        )  # fmt: skip
        said = FeedbackRecord(
            uuid7(), prediction.id, "u", NOW, correction=answer, review="approved", reviewed_at=NOW + timedelta(len(self.held))
        )
        # Ids of one millisecond have no order; what came later shall have the later one.
        said = replace(said, id=f"{len(self.held):08x}{said.id[8:]}", **more)
        self.held[said.id] = (said, prediction)
        return said.id

    async def state(self) -> tuple[int, datetime | None]:
        if self.broken:
            raise StorageUnavailable("broken")
        return len(self.held), max((said.reviewed_at for said, _ in self.held.values() if said.reviewed_at), default=None)

    async def ids(self) -> dict[str, datetime | None]:
        return {key: said.reviewed_at for key, (said, _) in self.held.items()}

    async def records(self, ids: Sequence[str]) -> list[tuple[FeedbackRecord, PredictionRecord]]:
        self.asked += len(ids)
        return [self.held[key] for key in ids]

    async def absorbed(self, version: str) -> frozenset[str]:
        return self.learned.get(version, frozenset())


def question(text: str, *earlier: tuple[str, str], system: str | None = None) -> list[Message]:
    head = [] if system is None else [Message("system", system)]
    turns = [message for user, reply in earlier for message in (Message("user", user), Message("assistant", reply))]
    return [*head, *turns, Message("user", text)]


async def memory_of(store: Store, examples: int = 2) -> ExampleMemory:
    memory = ExampleMemory(store, Training(examples=examples))
    await memory.refresh()
    return memory


async def answers(memory: ExampleMemory, text: str, version: str | None = None, **more: Any) -> list[str]:
    return [example.answer for example in await memory.recall(question(text, **more), version)]


async def test_a_similar_question_gets_the_approved_answer_and_another_none() -> None:
    store = Store()
    store.add("What is the guest wifi password?", "It is bluefish.")
    memory = await memory_of(store)
    assert await answers(memory, "wifi password for guests?") == ["It is bluefish."]
    assert await answers(memory, "How long do we keep invoices?") == []
    assert await answers(memory, "the guest wifi password for Orion 4?", None) == await answers(memory, "What?") == []


async def test_the_most_similar_comes_last_and_no_more_than_asked_for() -> None:
    store = Store()
    store.add("Where is the spare key of the server room?", "In the red box.")
    store.add("Where is the spare key of the server room in Lisbon?", "At the reception.")
    store.add("Where is the spare key of the server room cabinet?", "There is none.")
    memory = await memory_of(store)
    found = await answers(memory, "where is the spare key of the server room?")
    assert len(found) == 2
    assert found[-1] == "In the red box."
    assert await answers(await memory_of(store, 0), "where is the spare key of the server room?") == []


async def test_the_reviewers_words_stand_in_place_of_the_raters_and_the_newest_of_several() -> None:
    store = Store()
    store.add("How long do we keep invoices?", "Ten years.")
    store.add("how long do we  keep invoices?", "for ever", edited="Eleven years.")
    assert await answers(await memory_of(store), "How long do we keep invoices?") == ["Eleven years."]


async def test_what_is_not_approved_any_more_or_gone_is_not_shown() -> None:
    store = Store()
    first = store.add("How long do we keep invoices?", "Ten years.")
    memory = await memory_of(store)
    said, prediction = store.held.pop(first)
    await memory.note(said)
    assert await answers(memory, "How long do we keep invoices?") == []
    store.held[first] = (replace(said, edited="Eleven years.", reviewed_at=NOW + timedelta(9)), prediction)
    await memory.refresh()
    assert await answers(memory, "How long do we keep invoices?") == ["Eleven years."]
    store.held[first] = (replace(said, edited="Twelve years.", reviewed_at=NOW + timedelta(10)), prediction)
    await memory.refresh()
    assert await answers(memory, "How long do we keep invoices?") == ["Twelve years."]


async def test_what_a_version_has_learned_is_shown_to_the_others_only() -> None:
    store = Store()
    key = store.add("How long do we keep invoices?", "Eleven years.")
    store.learned["trained"] = frozenset({key})
    memory = await memory_of(store)
    assert await answers(memory, "How long do we keep invoices?", "trained") == []
    assert await answers(memory, "How long do we keep invoices?", "base") == ["Eleven years."]
    assert await answers(memory, "How long do we keep invoices?", None) == ["Eleven years."]


@pytest.mark.parametrize(
    "more",
    [
        {"review": "pending"},
        {"review": "rejected"},
        {"input": {"raw": True}},
        {"sampling": {"tools": [{"type": "function", "function": {"name": "f"}}]}},
        {"sampling": {"response_format": {"type": "json_object"}}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        {"messages": [{"role": "user", "content": "invoices?"}, {"role": "assistant", "content": "How long do"}]},
        {"messages": [SYSTEM, {"role": "user", "content": "x " * 2000 + "How long do we keep invoices?"}]},
        {"messages": []},
        {"correction": None},
    ],
)  # fmt: skip
async def test_only_a_plain_question_with_a_plain_answer_is_an_example(more: dict[str, Any]) -> None:
    store = Store()
    store.add("How long do we keep invoices?", "Eleven years.", **more)
    memory = await memory_of(store)
    assert await answers(memory, "How long do we keep invoices?") == []
    assert len(memory) == 0
    await memory.refresh()
    assert store.asked == 1, "it is not read again and again"


async def test_a_follow_up_means_nothing_by_itself() -> None:
    store = Store()
    before = [{"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": "Paris"}]
    store.add("", "Madrid", messages=[*before, {"role": "user", "content": "And of Spain?"}])
    store.add("", "Eleven years.", messages=[*before, {"role": "user", "content": "How long does Acme keep paper invoices?"}])
    memory = await memory_of(store)
    assert await answers(memory, "and of Spain?") == []
    assert await answers(memory, "How long does Acme keep paper invoices?") == ["Eleven years."]
    store.add("What about lunch?", "At noon.")
    await memory.refresh()
    assert await answers(memory, "What about lunch?") == ["At noon."]
    asked = question("What about lunch?", ("Is there a party?", "Yes."))
    assert await memory.recall(asked, None) == ()


async def test_own_instructions_get_what_was_corrected_under_the_same() -> None:
    store = Store()
    store.add("How long do we keep invoices?", "Eleven years.")
    memory = await memory_of(store)
    assert await answers(memory, "How long do we keep invoices?", system="Answer as a pirate.") == []
    assert await answers(memory, "How long do we keep invoices?", system="You are \n Aprendiz.") == ["Eleven years."]


async def test_a_conversation_that_does_not_end_with_a_question_gets_none() -> None:
    store = Store()
    store.add("How long do we keep invoices?", "Eleven years.")
    memory = await memory_of(store)
    asked = [*question("How long do we keep invoices?"), Message("assistant", "We keep")]
    assert await memory.recall(asked, None) == await memory.recall([], None) == ()


async def test_it_follows_changes_elsewhere_within_a_second_and_survives_a_database_that_does_not_answer() -> None:
    store = Store()
    memory = ExampleMemory(store, Training())
    store.broken = True
    await memory.start()
    try:
        store.broken = False
        key = store.add("How long do we keep invoices?", "Eleven years.")
        assert await _until(memory, ["Eleven years."]) < 2
        store.broken = True
        await memory.refresh()
        assert await answers(memory, "How long do we keep invoices?") == ["Eleven years."]
        store.broken = False
        del store.held[key]
        assert await _until(memory, []) < 2
    finally:
        await memory.aclose()
        await memory.aclose()


async def _until(memory: ExampleMemory, expected: list[str]) -> float:
    began = time.monotonic()
    while await answers(memory, "How long do we keep invoices?") != expected:
        assert time.monotonic() - began < 10
        await asyncio.sleep(0.02)
    return time.monotonic() - began
