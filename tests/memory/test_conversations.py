"""Which earlier turns go into the next prompt: on a real database, and rule by rule."""

from __future__ import annotations

import dataclasses
import itertools
from datetime import UTC, datetime
from typing import Any

import pytest

from app.core.errors import NotFound
from app.core.ids import uuid7
from app.core.records import ConversationRecord, PredictionRecord, UserRecord
from app.core.settings import Memory
from app.core.types import ALL_SCOPES, Message, Principal
from app.db.conversations import Conversations
from app.db.database import Database
from app.db.predictions import Predictions
from app.db.users import Users
from app.memory.conversations import MOST_TURNS, ConversationMemory, Recalled, title_of, turn_of

NOW = datetime(2026, 1, 2, tzinfo=UTC)
MOMENTS = itertools.count(1_700_000_000_000)
"""Ids sort by milliseconds; tests are faster than that."""


def user(name: str) -> Principal:
    return Principal(name, name, "user", frozenset(ALL_SCOPES), "session")


def said(conversation: ConversationRecord, messages: list[dict[str, Any]], output: str, **more: Any) -> PredictionRecord:
    base = PredictionRecord(
        id=uuid7(now_ms=next(MOMENTS)), user_id=conversation.user_id, created_at=NOW, provider="echo", model="echo",
        version="v",
        input={"messages": messages, "sampling": {}}, output=output, finish_reason="stop", prompt_tokens=1,
        completion_tokens=1, queue_ms=0, first_token_ms=1, total_ms=1, conversation_id=conversation.id,
    )  # fmt: skip
    return dataclasses.replace(base, **more)


def u(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def a(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.fixture
async def database(sqlite: Database) -> Database:
    for name in ("ana", "bea"):
        await Users(sqlite).create(UserRecord(name, name, "user", "hash", NOW))
    return sqlite


def memory_of(database: Database, tokens: int = 1024) -> ConversationMemory:
    return ConversationMemory(Conversations(database), Predictions(database), Memory(history_tokens=tokens))


def contents(recalled: Recalled) -> list[Any]:
    return [message.content for message in recalled.messages]


async def begun(memory: ConversationMemory, name: str, text: str) -> ConversationRecord:
    conversation = memory.begin(user(name), text)
    await memory.keep(conversation)
    return conversation


async def test_a_conversation_grows_by_its_predictions(database: Database) -> None:
    memory = memory_of(database)
    conversation = await begun(memory, "ana", "  What is\nthe sky? ")
    assert conversation.title == "What is the sky?"
    assert await memory.recall(conversation) == Recalled((), ())
    await Predictions(database).add(said(conversation, [{"role": "system", "content": "Be kind."}, u("Hi")], "Hello"))
    same = await memory.open(conversation.id, user("ana"))
    assert (same.id, same.title) == (conversation.id, conversation.title)
    recalled = await memory.recall(same)
    assert recalled.messages == (Message("user", "Hi"), Message("assistant", "Hello"))
    # The next prediction stores what was recalled, too; it must not come back twice.
    await Predictions(database).add(said(conversation, [u("Hi"), a("Hello"), u("And now?")], "More"))
    recalled = await memory.recall(same)
    assert contents(recalled) == ["Hi", "Hello", "And now?", "More"]
    assert (recalled.turns, recalled.left_out, recalled.summary) == ((2, 2), 0, None)


async def test_opening_notes_the_use(database: Database) -> None:
    memory = memory_of(database)
    conversation = await begun(memory, "ana", "x")
    await memory.open(conversation.id, user("ana"))
    found = await Conversations(database).get(conversation.id, user_id="ana")
    assert found is not None and found.updated_at >= conversation.updated_at


@pytest.mark.parametrize("name", ["bea", "ana"])
async def test_anothers_and_an_absent_one_are_the_same(database: Database, name: str) -> None:
    memory = memory_of(database)
    conversation = await begun(memory, "ana", "secret plans")
    asked = conversation.id if name == "bea" else uuid7()
    with pytest.raises(NotFound) as caught:
        await memory.open(asked, user(name))
    assert caught.value.detail == "There is no such conversation of yours."


@pytest.mark.parametrize("conversation_id", ["", "x", "../x", "a\0b", "1" * 5000, "00000000-0000-4000-8000-000000000000"])
async def test_what_is_no_id_is_not_looked_up(database: Database, conversation_id: str) -> None:
    with pytest.raises(NotFound):
        await memory_of(database).open(conversation_id, user("ana"))


async def test_failed_and_cut_answers_are_not_recalled(database: Database) -> None:
    memory = memory_of(database)
    conversation = await begun(memory, "ana", "x")
    for status in ("error", "cancelled"):
        await Predictions(database).add(said(conversation, [u("bad")], "half", status=status))
    assert await memory.recall(conversation) == Recalled((), ())


async def test_what_a_summary_covers_is_not_recalled_again(database: Database) -> None:
    memory, conversations = memory_of(database), Conversations(database)
    conversation = await begun(memory, "ana", "x")
    turns = [said(conversation, [u(f"question {index}")], f"answer {index}") for index in range(4)]
    for turn in turns:
        await Predictions(database).add(turn)
    summed = await conversations.summarise(conversation, "They counted.", covered=[each.id for each in turns[:3]])
    assert summed is not None
    recalled = await memory.recall(await memory.open(conversation.id, user("ana")))
    assert contents(recalled) == ["question 3", "answer 3"]
    assert (recalled.turns, recalled.summary, recalled.left_out) == ((2,), "They counted.", 0)


async def test_more_than_could_ever_fit_is_not_read(database: Database) -> None:
    memory = memory_of(database, 400)
    conversation = await begun(memory, "ana", "x")
    await Predictions(database).add(said(conversation, [u("old")], "short"))
    await Predictions(database).add(said(conversation, [u("x" * 10_000)], "long"))
    await Predictions(database).add(said(conversation, [u("new")], "short"))
    recalled = await memory.recall(conversation)
    assert contents(recalled) == ["new", "short"], "no holes in the middle"
    assert recalled.left_out == 2
    none = await memory_of(database, 0).recall(conversation)
    assert (none.messages, none.turns, none.left_out) == ((), (), 3)


async def test_turns_beyond_the_most_are_counted(database: Database) -> None:
    memory = memory_of(database, 100_000)
    conversation = await begun(memory, "ana", "x")
    for index in range(MOST_TURNS + 7):
        await Predictions(database).add(said(conversation, [u(str(index))], "ok"))
    recalled = await memory.recall(conversation)
    assert (len(recalled.turns), recalled.left_out) == (MOST_TURNS, 7)
    assert recalled.messages[0].content == "7"


async def test_a_tool_result_is_never_recalled_without_its_call(database: Database) -> None:
    memory = memory_of(database, 400)
    conversation = await begun(memory, "ana", "x")
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    first = said(conversation, [u("time? " + "x" * 5000)], "", tool_calls=(call,))
    result = {"role": "tool", "content": "noon", "tool_call_id": "c1"}
    second = said(conversation, [u("time?"), {**a(""), "tool_calls": [call]}, result], "It is noon.")
    for prediction in (first, second):
        await Predictions(database).add(prediction)
    assert (await memory.recall(conversation)).messages == ()
    whole = await memory_of(database).recall(conversation)
    assert [message.role for message in whole.messages] == ["user", "assistant", "tool", "assistant"]
    assert whole.turns == (2, 2)
    assert whole.messages[1].tool_calls == (call,)
    assert whole.messages[2].tool_call_id == "c1"


def test_the_turn_of_a_prediction_is_what_was_new_in_it() -> None:
    conversation = ConversationRecord("c", "ana", "t", NOW, NOW)
    turn = turn_of(said(conversation, [{"role": "developer", "content": "x"}, u("1"), a("2"), u("3"), u("4")], "5"))
    assert [(message.role, message.content) for message in turn] == [("user", "3"), ("user", "4"), ("assistant", "5")]
    assert turn_of(said(conversation, [], ""))[0].content == ""


def test_titles() -> None:
    assert title_of("") == "New conversation"
    long = title_of("word " * 100)
    assert len(long) <= 80 and long.endswith("…")
    assert len(title_of("x" * 500)) <= 80
