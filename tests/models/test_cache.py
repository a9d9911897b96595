"""The response cache alone: what is equal, who waits for whom, what is kept, for how long and how much."""

from __future__ import annotations

import asyncio
import dataclasses
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest

from app.core.errors import ShuttingDown
from app.core.metrics import Metrics
from app.core.settings import Cache
from app.core.types import (
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Message,
    ReasoningDelta,
    Sampling,
    TextDelta,
    TokenLogprobs,
    ToolCallDelta,
    Usage,
)
from app.models.cache import Lease, MemoryStore, Question, ResponseCache, key_of, repeatable
from app.models.recording import PIECE, Origin, Recorder, Recording, size_of
from tests.models.doubles import TIMEOUT_S, Clock, until

END = Finished("stop", Usage(3, 2))
ORIGIN = Origin("p", "m", "v1")


def question(key: str = "k", user_id: str = "ana", version: str = "v1", **more: Any) -> Question:
    return Question(key, user_id, frozenset({version}), **more)


class House:
    """A cache with a clock that stands still."""

    def __init__(self, *, waiting: int = 100, wait_s: float = 1000, **settings: Any) -> None:
        self.clock, self.metrics = Clock(), Metrics()
        self.cache = ResponseCache(Cache(**settings), metrics=self.metrics, waiting=waiting, wait_s=wait_s, clock=self.clock)

    def count(self, result: str) -> float:
        return self.metrics.registry.get_sample_value("aprendiz_cache_total", {"result": result}) or 0.0

    @property
    def size(self) -> float:
        return self.metrics.registry.get_sample_value("aprendiz_cache_bytes") or 0.0

    async def lease(self, asked: Question) -> Lease:
        found = await self.cache.ask(asked)
        assert isinstance(found, Lease)
        return found

    async def recording(self, asked: Question) -> Recording:
        found = await self.cache.ask(asked)
        assert isinstance(found, Recording)
        return found

    async def store(self, asked: Question, text: str = "yes") -> None:
        await answer(await self.lease(asked), text)


async def answer(lease: Lease, text: str = "yes", *, end: Finished | None = END, fallback: str | None = None) -> None:
    lease.note([TextDelta(text)])
    if end is not None:
        lease.note([end])
    (version,) = lease.question.versions
    await lease.keep(Origin("p", "m", version, fallback=fallback))


def text_of(recording: Recording) -> str:
    return "".join(event.text for event in recording.events if isinstance(event, TextDelta))


ASKED = GenerationRequest(
    (Message("system", "Be short."), Message("user", "Hi")), sampling=Sampling(temperature=0, tools=({"a": {"b": 1, "c": 2}},))
)


def test_equal_questions_have_equal_keys_whatever_does_not_shape_the_answer() -> None:
    same = dataclasses.replace(
        ASKED,
        conversation_id="c",
        request_id="r",
        model="other",
        cache="use",
        max_age_s=3,
        prediction_id="p",
        door={"x": 1},
        whole=True,
    )
    assert key_of(same, "ana", ["a/b"]) == key_of(ASKED, "ana", ["a/b"])


OTHER_VALUES: dict[str, Any] = {
    "max_tokens": 3,
    "temperature": 0.1,
    "top_p": 0.5,
    "stop": ("x",),
    "seed": 1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "logit_bias": {"1": 2.0},
    "logprobs": 2,
    "response_format": {"type": "json_object"},
    "tools": ({"a": {"c": 2, "b": 1}},),
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "top_k": 3,
    "reasoning_effort": "low",
    "thinking": {"type": "adaptive"},
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Sampling)])
def test_every_sampling_parameter_counts(name: str) -> None:
    sampling = dataclasses.replace(ASKED.sampling, **{name: OTHER_VALUES[name]})
    assert key_of(dataclasses.replace(ASKED, sampling=sampling), "ana", ["a/b"]) != key_of(ASKED, "ana", ["a/b"])


@pytest.mark.parametrize(
    "changes",
    [
        {"content": "Ho"},
        {"content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant"},
        {"name": "n"},
        {"tool_calls": ({"id": "1"},)},
        {"tool_call_id": "1"},
        {"reasoning": ({"type": "thinking", "thinking": "Hm"},)},
        {"content": "\ud800"},
    ],
)
def test_every_part_of_a_message_counts(changes: dict[str, Any]) -> None:
    other = dataclasses.replace(ASKED, messages=(ASKED.messages[0], dataclasses.replace(ASKED.messages[1], **changes)))
    assert key_of(other, "ana", ["a/b"]) != key_of(ASKED, "ana", ["a/b"])


def test_whose_by_whom_and_raw_count() -> None:
    keys = {
        key_of(ASKED, "ana", ["a/b"]),
        key_of(ASKED, "bea", ["a/b"]),
        key_of(ASKED, "ana", ["a/c"]),
        key_of(ASKED, "ana", ["a/b", "a/c"]),
        key_of(ASKED, "ana", ["a/c", "a/b"]),
        key_of(dataclasses.replace(ASKED, raw=True), "ana", ["a/b"]),
        key_of(dataclasses.replace(ASKED, truncate=True), "ana", ["a/b"]),
        key_of(dataclasses.replace(ASKED, messages=ASKED.messages[1:]), "ana", ["a/b"]),
    }
    assert len(keys) == 8


@pytest.mark.parametrize(
    ("sampling", "default", "seeds", "expected"),
    [
        (Sampling(temperature=0), 0.2, False, True),
        (Sampling(), 0, False, True),
        (Sampling(), 0.2, True, False),
        (Sampling(temperature=0.1), 0, True, False),
        (Sampling(seed=0, temperature=1), 0.2, True, True),
        (Sampling(seed=7), 0.2, False, False),
    ],
)
def test_what_is_repeatable(sampling: Sampling, default: float, seeds: bool, expected: bool) -> None:
    assert repeatable(sampling, default, seeds=seeds) is expected


async def test_the_first_asks_and_the_second_gets_it_again() -> None:
    house = House()
    await house.store(question(), "yes")
    again = await house.recording(question())
    assert (text_of(again), again.finished, again.origin) == ("yes", END, ORIGIN)
    await house.lease(question("another"))
    assert (house.count("miss"), house.count("hit")) == (2, 1)
    assert house.size > 0


async def test_an_answer_of_a_version_that_nothing_means_now_is_none() -> None:
    house = House()
    await house.store(question())
    await house.lease(question(version="v2"))


async def test_answers_grow_old() -> None:
    house = House(ttl_s=60)
    await house.store(question())
    house.clock.advance(30)
    assert text_of(await house.recording(question(max_age_s=30))) == "yes"
    (await house.lease(question(max_age_s=29))).abandon()
    house.clock.advance(29)
    await house.recording(question())
    house.clock.advance(1)
    (await house.lease(question())).abandon()
    assert house.size == 0


async def test_what_is_too_old_goes_although_nobody_asks() -> None:
    house = House(ttl_s=60)
    await house.store(question("a"))
    house.clock.advance(40)
    await house.store(question("b"))
    house.clock.advance(30)
    await house.cache.sweep()
    (await house.lease(question("a"))).abandon()
    await house.recording(question("b"))
    house.clock.advance(60)
    await house.cache.sweep()
    assert house.size == 0


async def test_refresh_asks_anew_and_keeps_the_new() -> None:
    house = House()
    await house.store(question(), "old")
    lease = await house.lease(question(refresh=True))
    assert text_of(await house.recording(question())) == "old"
    await answer(lease, "new")
    assert text_of(await house.recording(question())) == "new"


async def test_a_refresh_does_not_wait_for_another_call() -> None:
    house = House()
    first, second = await house.lease(question()), await house.lease(question(refresh=True))
    await answer(second, "second")
    await answer(first, "first")
    assert text_of(await house.recording(question())) == "first"


async def test_many_at_once_ask_once() -> None:
    house = House()
    lease = await house.lease(question())
    others = [asyncio.create_task(house.cache.ask(question())) for _ in range(49)]
    theirs = await house.lease(question("k of bea", "bea"))
    await asyncio.sleep(0)
    assert not any(task.done() for task in others)
    await answer(lease, "once")
    async with asyncio.timeout(TIMEOUT_S):
        found = await asyncio.gather(*others)
    assert [text_of(each) for each in found if isinstance(each, Recording)] == ["once"] * 49
    assert (house.count("miss"), house.count("wait"), house.count("hit")) == (2, 49, 0)
    theirs.abandon()


@pytest.mark.parametrize("how", ["abandon", "no end", "too large"])
async def test_who_waits_for_nothing_becomes_the_first(how: str) -> None:
    house = House(max_mb=1)
    lease = await house.lease(question())
    others = [asyncio.create_task(house.cache.ask(question())) for _ in range(5)]
    await asyncio.sleep(0)
    if how == "abandon":
        lease.abandon()
        lease.abandon()
    elif how == "no end":
        await answer(lease, end=None)
    else:
        await answer(lease, "x" * 2**20)
    async with asyncio.timeout(TIMEOUT_S):
        done, waiting = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        (next_lease,) = [task.result() for task in done]
        assert isinstance(next_lease, Lease) and len(waiting) == 4
        await answer(next_lease, "at last")
        found = await asyncio.gather(*waiting)
    assert [text_of(each) for each in found if isinstance(each, Recording)] == ["at last"] * 4


async def test_who_leaves_while_it_waits_takes_nobody_along() -> None:
    house = House(waiting=3)
    lease = await house.lease(question())
    others = [asyncio.create_task(house.cache.ask(question())) for _ in range(3)]
    await asyncio.sleep(0)
    others[1].cancel()
    await asyncio.wait([others[1]])
    assert others[1].cancelled()
    others.append(asyncio.create_task(house.cache.ask(question())))  # into the place that became free
    await asyncio.sleep(0)
    await answer(lease)
    found = await asyncio.gather(others[0], others[2], others[3])
    assert all(isinstance(each, Recording) for each in found)


async def test_too_many_that_wait_ask_by_themselves() -> None:
    house = House(waiting=2)
    lease = await house.lease(question())
    waiting = [asyncio.create_task(house.cache.ask(question())) for _ in range(2)]
    await asyncio.sleep(0)
    alone = await house.lease(question())
    await answer(alone, "alone")
    # The others wait on for the call that they found; whoever comes now has the answer.
    assert text_of(await house.recording(question())) == "alone"
    await answer(lease, "first")
    assert {text_of(each) for each in await asyncio.gather(*waiting) if isinstance(each, Recording)} == {"first"}


async def test_who_waits_too_long_asks_by_itself() -> None:
    house = House(wait_s=0.01)
    lease = await house.lease(question())
    waiting = asyncio.create_task(house.cache.ask(question()))
    await asyncio.sleep(0)
    house.clock.advance(1)
    async with asyncio.timeout(TIMEOUT_S):
        alone = await waiting
    assert isinstance(alone, Lease) and alone is not lease
    lease.abandon()
    alone.abandon()


async def test_a_service_that_ends_lets_nobody_wait() -> None:
    house = House()
    lease = await house.lease(question())
    waiting = [asyncio.create_task(house.cache.ask(question())) for _ in range(3)]
    await asyncio.sleep(0)
    house.cache.refuse(lambda: ShuttingDown("Going down."))
    async with asyncio.timeout(TIMEOUT_S):
        errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in errors] == [ShuttingDown] * 3
    assert len(set(map(id, errors))) == 3
    with pytest.raises(ShuttingDown):
        await house.cache.ask(question())
    await answer(lease)


@pytest.mark.parametrize(
    ("reason", "fallback", "kept"),
    [
        ("stop", None, True),
        ("length", None, True),
        ("tool_calls", None, True),
        ("content_filter", None, False),
        ("error", None, False),
        ("cancelled", None, False),
        ("stop", "upstream-timeout", False),
        ("stop", "hedged", False),
        ("stop", "context-overflow", True),
    ],
)
async def test_what_is_kept_and_what_only_those_get_who_wait(reason: FinishReason, fallback: str | None, kept: bool) -> None:
    house = House()
    lease = await house.lease(question())
    waiting = asyncio.create_task(house.cache.ask(question()))
    await asyncio.sleep(0)
    await answer(lease, end=Finished(reason, Usage()), fallback=fallback)
    shared = await waiting
    assert isinstance(shared, Recording) and shared.origin.fallback == fallback
    assert isinstance(await house.cache.ask(question()), Recording if kept else Lease)


async def test_purging_a_version_or_a_user_also_stops_what_is_being_given() -> None:
    house = House()
    await house.store(question("a", "ana", "v1"))
    await house.store(question("b", "ana", "v2"))
    await house.store(question("c", "bea", "v1"))
    size = house.size
    open_v1, open_ana = await house.lease(question("d", "bea", "v1")), await house.lease(question("e", "ana", "v3"))
    await house.cache.purge("v1")
    assert 0 < house.size < size
    await house.recording(question("b", "ana", "v2"))
    (await house.lease(question("a", "ana", "v1"))).abandon()
    await house.cache.purge_user("ana")
    assert house.size == 0
    for lease in (open_v1, open_ana):
        await answer(lease)
    assert house.size == 0


async def test_the_longest_unused_go_first() -> None:
    house = House(max_mb=1)
    text = "x" * 60_000
    for n in range(16):
        await house.store(question(f"k{n}"), text)
    await house.recording(question("k0"))
    for n in range(16, 24):
        await house.store(question(f"k{n}"), text)
        assert house.size <= 2**20
    await house.recording(question("k0"))
    await house.recording(question("k23"))
    await house.lease(question("k1"))


async def test_a_store_takes_no_entry_that_is_too_large_and_counts_replaced_ones_once() -> None:
    store = MemoryStore(Cache(max_mb=1))
    small = Recording(ORIGIN, (TextDelta("x"), END))
    await store.put("k", small, user_id="u")
    size = store.size
    await store.put("k", small, user_id="u")
    assert store.size == size > 0
    await store.put("k", dataclasses.replace(small, events=(TextDelta("x" * 70_000), END)), user_id="u")
    assert store.size == 0
    assert await store.get("k") is None


def test_pieces_that_came_one_by_one_are_joined_and_nothing_changes_places() -> None:
    recorder = Recorder(10**6)
    logprobs = TokenLogprobs(({"token": "b", "logprob": -0.5},))
    recorder.note([ReasoningDelta("H"), ReasoningDelta("m"), ReasoningDelta("", signature="s"), ReasoningDelta("More")])
    recorder.note([TextDelta("a"), TextDelta("b"), logprobs, TextDelta("c")])
    recorder.note([ToolCallDelta(0, "id", "f"), ToolCallDelta(0, arguments='{"x"'), ToolCallDelta(0, arguments=":1}")])
    recorder.note([ToolCallDelta(1, "id2", "g"), ToolCallDelta(0, arguments=" ")])
    recorder.note([END])
    recording = recorder.recording(ORIGIN)
    assert recording is not None
    assert list(recording.events) == [
        ReasoningDelta("Hm"),
        ReasoningDelta("", signature="s"),
        ReasoningDelta("More"),
        TextDelta("ab"),
        logprobs,
        TextDelta("c"),
        ToolCallDelta(0, "id", "f", '{"x":1}'),
        ToolCallDelta(1, "id2", "g"),
        ToolCallDelta(0, arguments=" "),
        END,
    ]


def test_a_long_answer_comes_again_in_several_pieces() -> None:
    recorder = Recorder(10**6)
    recorder.note([TextDelta("ñ" * 10) for _ in range(1000)])
    recorder.note([END])
    recording = recorder.recording(ORIGIN)
    assert recording is not None and text_of(recording) == "ñ" * 10_000
    assert [len(event.text) <= PIECE for event in recording.events if isinstance(event, TextDelta)] == [True] * 5


def heap(kind: str) -> tuple[Sequence[Event], Sampling]:
    if kind == "text":
        return [TextDelta("x" * n) for n in range(1500, 2000)], Sampling()
    if kind == "wide text":
        return [TextDelta("日" * n) for n in range(1500, 2000)], Sampling()
    if kind == "tools":
        tools = tuple(
            {"type": "function", "function": {"name": f"f{n}", "parameters": {"a": [n + 1000.5]}}} for n in range(500)
        )
        return [ToolCallDelta(n, f"id{n}", f"f{n}", f"{n}" * 30) for n in range(500)], Sampling(tools=tools)
    top = [{"token": f"t{n}", "logprob": n / 7, "bytes": [n + 300]} for n in range(1000)]
    return [TokenLogprobs(tuple(top[n : n + 2])) for n in range(0, 1000, 2)], Sampling()


@pytest.mark.parametrize("kind", ["text", "wide text", "tools", "logprobs"])
def test_the_size_of_an_entry_is_honest(kind: str) -> None:
    heap(kind)
    tracemalloc.start()
    events, sampling = heap(kind)
    recording = Recording(dataclasses.replace(ORIGIN, sampling=sampling), (*events, END))
    del events
    real = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 0.8 * real <= size_of(recording) <= 2 * real


async def test_a_lease_forgets_what_became_too_large() -> None:
    house = House(max_mb=1)
    lease = await house.lease(question())
    for _ in range(100):
        lease.note([TextDelta("x" * 10_000)])
    lease.note([END])
    await lease.keep(ORIGIN)
    assert house.size == 0
    await until(lease.outcome.done)
    assert lease.outcome.result() is None
