"""The Python package ``openai`` on chat completions: whole, streamed, tools, parsed answers, probabilities."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from tests.sdk.conftest import Site

WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
}


class Place(BaseModel):
    city: str
    people: int
    tags: list[str]


class Weather(BaseModel):
    """The weather of a city."""

    city: str


@pytest.fixture
def client(site: Site) -> Iterator[OpenAI]:
    with OpenAI(base_url=site.v1, api_key=site.key, max_retries=0) as made:
        yield made


@pytest.fixture
async def asynchronous(site: Site) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=site.v1, api_key=site.key, max_retries=0) as made:
        yield made


def said(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def test_a_whole_answer_and_its_rating(site: Site, client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default",
        messages=[
            {"role": "system", "content": "Repeat."},
            {"role": "user", "content": [{"type": "text", "text": "one two three"}]},
        ],
        max_completion_tokens=50,
        temperature=0,
        top_p=0.9,
        seed=7,
        user="someone",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
    )
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "one two three", "stop")
    assert choice.message.tool_calls is None
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (4, 3, 7)
    assert answer.usage.prompt_tokens_details is not None
    rated = httpx.post(
        f"{site.url}/feedback",
        headers={"Authorization": f"Bearer {site.key}"},
        json={"prediction_id": answer.id, "rating": "up"},
        timeout=10,
    )
    assert rated.status_code == 201, rated.text


def test_headers_of_a_raw_response(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="default", messages=said("hello"))
    assert raw.headers["x-request-id"]
    assert int(raw.headers["x-ratelimit-limit-requests"]) > int(raw.headers["x-ratelimit-remaining-requests"]) > 0
    assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
    answer = raw.parse()
    assert answer._request_id == raw.headers["x-request-id"]
    assert answer.choices[0].message.content == "hello"


def test_a_stream_with_usage(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="default", messages=said("one two three"), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two three"
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


def test_the_stream_helper_tells_events_and_puts_the_answer_together(client: OpenAI) -> None:
    with client.chat.completions.stream(model="default", messages=said("one two three"), logprobs=True) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    kinds = [event.type for event in events]
    assert [event.delta for event in events if event.type == "content.delta"] == ["", "one", " two", " three"]
    assert kinds.count("content.done") == 1
    assert "logprobs.content.delta" in kinds
    assert final.choices[0].message.content == "one two three"
    assert final.choices[0].logprobs is not None
    assert [entry.token for entry in final.choices[0].logprobs.content or []] == ["one", " two", " three"]


async def test_asynchronous(asynchronous: AsyncOpenAI) -> None:
    async def streamed(text: str) -> str:
        found = []
        async with await asynchronous.chat.completions.create(model="default", messages=said(text), stream=True) as stream:
            async for chunk in stream:
                found.append(chunk.choices[0].delta.content or "")
        return "".join(found)

    async def whole(text: str) -> str | None:
        return (await asynchronous.chat.completions.create(model="default", messages=said(text))).choices[0].message.content

    wanted = [f"answer number {number}" for number in range(20)]
    assert await asyncio.gather(*map(streamed, wanted)) == wanted
    assert await asyncio.gather(*map(whole, wanted)) == wanted


async def test_the_asynchronous_stream_helper_parses(asynchronous: AsyncOpenAI) -> None:
    async with asynchronous.chat.completions.stream(model="default", messages=said("Rome"), response_format=Place) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert kinds.count("content.done") == 1
    assert final.choices[0].message.parsed == Place(city="Rome", people=0, tags=[])


def test_a_turn_with_tools(client: OpenAI) -> None:
    messages = said('call weather {"city": "Rome"}\ncall clock {}')
    answer = client.chat.completions.create(model="default", messages=messages, tools=[WEATHER, CLOCK])
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls = choice.message.tool_calls or []
    found = [(call.function.name, json.loads(call.function.arguments)) for call in calls if call.type == "function"]
    assert found == [("weather", {"city": "Rome"}), ("clock", {})]
    messages.append(choice.message)  # type: ignore[arg-type]  # as the vendor's own examples do
    messages += [
        {"role": "tool", "tool_call_id": call.id, "content": text} for call, text in zip(calls, ("sunny", "noon"), strict=True)
    ]
    last = client.chat.completions.create(model="default", messages=messages, tools=[WEATHER, CLOCK])
    assert last.choices[0].message.content == "sunny\nnoon"
    assert last.choices[0].finish_reason == "stop"


def test_tool_choice(client: OpenAI) -> None:
    def names(**more: object) -> list[str]:
        answer = client.chat.completions.create(model="default", tools=[WEATHER, CLOCK], **more)  # type: ignore[call-overload]
        return [call.function.name for call in answer.choices[0].message.tool_calls or []]

    both = said("call weather {}\ncall clock {}")
    assert names(messages=said("hello"), tool_choice="auto") == []
    assert names(messages=said("hello"), tool_choice="required") == ["weather"]
    assert names(messages=said("hello"), tool_choice={"type": "function", "function": {"name": "clock"}}) == ["clock"]
    assert names(messages=both, tool_choice="none") == []
    assert names(messages=both) == ["weather", "clock"]
    assert names(messages=both, parallel_tool_calls=False) == ["weather"]
    only = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "clock"}}]},
    }
    assert names(messages=said("hello"), tool_choice=only) == ["clock"]


def test_streamed_tool_calls_come_in_pieces_and_are_parsed(client: OpenAI) -> None:
    tool = openai.pydantic_function_tool(Weather, name="weather")
    text = 'call weather {"city": "the city of Rome"}\ncall weather {"city": "Lima"}'
    with client.chat.completions.stream(model="default", messages=said(text), tools=[tool]) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    pieces = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert len(pieces) > len(done) == 2
    assert [event.index for event in done] == [0, 1]
    calls = final.choices[0].message.tool_calls or []
    assert [call.function.parsed_arguments for call in calls] == [Weather(city="the city of Rome"), Weather(city="Lima")]
    assert len({call.id for call in calls}) == 2


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the package's, where a parsed message goes back
def test_answers_and_calls_parsed_into_pydantic_models(client: OpenAI) -> None:
    answer = client.chat.completions.parse(model="default", messages=said("Rome"), response_format=Place)
    assert answer.choices[0].message.parsed == Place(city="Rome", people=0, tags=[])
    called = client.chat.completions.parse(
        model="default",
        messages=said("Lima"),
        tools=[openai.pydantic_function_tool(Weather)],
        tool_choice="required",
    )
    (call,) = called.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == Weather(city="Lima")
    turns: Any = [*said("Lima"), called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    last = client.chat.completions.parse(model="default", messages=turns, tools=[openai.pydantic_function_tool(Weather)])
    assert last.choices[0].message.content == "sunny"
    turns = [*said("Rome"), answer.choices[0].message, *said("and then")]
    assert client.chat.completions.create(model="default", messages=turns).choices[0].message.content == "and then"
    anything = client.chat.completions.create(model="default", messages=said("x"), response_format={"type": "json_object"})
    assert json.loads(anything.choices[0].message.content or "") == {"echo": "x"}
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="default", messages=said("a b"), response_format=Place, max_tokens=1)


def test_several_choices_stops_and_probabilities(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default", messages=said("one two three four"), n=3, stop=["three"], logprobs=True, top_logprobs=1, seed=1
    )
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(index, "one two") for index in range(3)]
    for choice in answer.choices:
        assert choice.logprobs is not None
        (first, _) = choice.logprobs.content or []
        assert (first.token, first.logprob, len(first.top_logprobs)) == ("one", 0, 1)
    cut = client.chat.completions.create(model="default", messages=said("one two three"), max_tokens=2)
    assert (cut.choices[0].finish_reason, cut.choices[0].message.content) == ("length", "one two")
    streamed = client.chat.completions.create(model="default", messages=said("one two"), n=2, stream=True)
    texts = ["", ""]
    for chunk in streamed:
        for part in chunk.choices:
            texts[part.index] += part.delta.content or ""
    assert texts == ["one two", "one two"]


def test_visible_thinking(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="thinks", messages=said("why"), reasoning_effort="low")
    message = answer.choices[0].message
    assert message.content == "why"
    assert message.model_dump()["reasoning_content"] == "I was asked: why"
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 4


def test_images_and_sounds_are_taken_where_the_model_takes_them(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "see"},
                    {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}},
                ],
            }
        ],
    )
    assert answer.choices[0].message.content == "see [image_url]"


async def test_leaving_a_stream_frees_its_place(site: Site, asynchronous: AsyncOpenAI) -> None:
    await asyncio.to_thread(site.wait_until_idle)
    long = said("word " * 500)
    stream = await asynchronous.chat.completions.create(model="slow", messages=long, stream=True)
    async for _ in stream:
        break
    assert await asyncio.to_thread(site.running) == 1
    await stream.close()
    await asyncio.to_thread(site.wait_until_idle)
    waiting = asyncio.create_task(asynchronous.chat.completions.create(model="slow", messages=long))
    for _ in range(200):
        if await asyncio.to_thread(site.running):
            break
        await asyncio.sleep(0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.to_thread(site.wait_until_idle)
