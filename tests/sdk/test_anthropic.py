"""The Python package ``anthropic`` on the Messages API: whole, streamed, tools, thinking, parsed answers, counts, models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from anthropic import Anthropic, AsyncAnthropic, beta_async_tool, beta_tool
from anthropic.types import MessageParam, ToolParam
from pydantic import BaseModel

from tests.sdk.conftest import Site

WEATHER: ToolParam = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CLOCK: ToolParam = {"name": "clock", "input_schema": {"type": "object", "properties": {}}}


class Place(BaseModel):
    city: str
    people: int
    tags: list[str]


@pytest.fixture
def client(site: Site) -> Iterator[Anthropic]:
    with Anthropic(base_url=site.url, api_key=site.key, max_retries=0) as made:
        yield made


@pytest.fixture
async def asynchronous(site: Site) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=site.url, api_key=site.key, max_retries=0) as made:
        yield made


def said(text: str) -> list[MessageParam]:
    return [{"role": "user", "content": text}]


def test_a_whole_answer_and_its_rating(site: Site, client: Anthropic) -> None:
    answer = client.messages.create(
        model="default",
        max_tokens=50,
        system=[{"type": "text", "text": "Repeat.", "cache_control": {"type": "ephemeral"}}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "one two three"}]}],
        metadata={"user_id": "someone"},
        service_tier="auto",
    )
    assert (answer.type, answer.role, answer.stop_reason) == ("message", "assistant", "end_turn")
    assert [block.text for block in answer.content if block.type == "text"] == ["one two three"]
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (4, 3)
    assert answer._request_id
    rated = httpx.post(
        f"{site.url}/feedback",
        headers={"Authorization": f"Bearer {site.key}"},
        json={"prediction_id": answer.id, "rating": "down", "correction": "Better."},
        timeout=10,
    )
    assert rated.status_code == 201, rated.text


def test_bearer_tokens_and_raw_responses(site: Site) -> None:
    with Anthropic(base_url=site.url, auth_token=site.key, max_retries=0) as client:
        raw = client.messages.with_raw_response.create(model="default", max_tokens=9, messages=said("hello"))
    assert raw.headers["request-id"]
    assert (
        int(raw.headers["anthropic-ratelimit-requests-limit"]) > int(raw.headers["anthropic-ratelimit-requests-remaining"]) > 0
    )
    assert raw.http_request.headers["authorization"] == f"Bearer {site.key}"
    assert "x-api-key" not in raw.http_request.headers
    assert raw.parse()._request_id == raw.headers["request-id"]


def test_stops_limits_and_both_versions(client: Anthropic) -> None:
    stopped = client.messages.create(model="default", max_tokens=50, messages=said("one two three"), stop_sequences=["three"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "three")
    cut = client.messages.create(model="default", max_tokens=2, messages=said("one two three"))
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)
    older = client.messages.create(
        model="default",
        max_tokens=9,
        messages=said("older"),
        extra_headers={"anthropic-version": "2023-06-01"},
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 5},
    )
    assert [block.text for block in older.content if block.type == "text"] == ["older"]


def test_a_plain_stream(client: Anthropic) -> None:
    stream = client.messages.create(model="default", max_tokens=50, messages=said("one two three"), stream=True)
    kinds = [event.type for event in stream]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert kinds.count("content_block_delta") == 3


def test_the_stream_helper(client: Anthropic) -> None:
    with client.messages.stream(model="default", max_tokens=50, system="Repeat.", messages=said("one two three")) as stream:
        assert list(stream.text_stream) == ["one", " two", " three"]
        final = stream.get_final_message()
        assert stream.get_final_text() == "one two three"
    assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == ("end_turn", 4, 3)
    with client.messages.stream(model="default", max_tokens=50, messages=said("a b")) as stream:
        kinds = [event.type for event in stream]
        assert stream.request_id
    assert kinds.count("text") == 2
    assert kinds[-1] == "message_stop"


async def test_asynchronous(asynchronous: AsyncAnthropic) -> None:
    async def streamed(text: str) -> str:
        async with asynchronous.messages.stream(model="default", max_tokens=50, messages=said(text)) as stream:
            return "".join([piece async for piece in stream.text_stream])

    async def whole(text: str) -> str:
        answer = await asynchronous.messages.create(model="default", max_tokens=50, messages=said(text))
        return "".join(block.text for block in answer.content if block.type == "text")

    wanted = [f"answer number {number}" for number in range(20)]
    assert await asyncio.gather(*map(streamed, wanted)) == wanted
    assert await asyncio.gather(*map(whole, wanted)) == wanted


def test_a_turn_with_tools(client: Anthropic) -> None:
    messages = said('call weather {"city": "Rome"}\ncall clock {}')
    answer = client.messages.create(model="default", max_tokens=99, messages=messages, tools=[WEATHER, CLOCK])
    assert answer.stop_reason == "tool_use"
    calls = [block for block in answer.content if block.type == "tool_use"]
    assert [(call.name, call.input) for call in calls] == [("weather", {"city": "Rome"}), ("clock", {})]
    messages.append({"role": "assistant", "content": answer.content})
    messages.append(
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": calls[0].id, "content": "sunny"},
                {"type": "tool_result", "tool_use_id": calls[1].id, "content": [{"type": "text", "text": "noon"}]},
            ],
        }
    )
    last = client.messages.create(model="default", max_tokens=99, messages=messages, tools=[WEATHER, CLOCK])
    assert [block.text for block in last.content if block.type == "text"] == ["sunny\nnoon"]
    assert last.stop_reason == "end_turn"


def test_tool_choice(client: Anthropic) -> None:
    def names(text: str, **more: object) -> list[str]:
        answer = client.messages.create(
            model="default",
            max_tokens=99,
            messages=said(text),
            tools=[WEATHER, CLOCK],
            **more,  # type: ignore[call-overload]
        )
        return [block.name for block in answer.content if block.type == "tool_use"]

    both = "call weather {}\ncall clock {}"
    assert names("hello", tool_choice={"type": "auto"}) == []
    assert names("hello", tool_choice={"type": "any"}) == ["weather"]
    assert names("hello", tool_choice={"type": "tool", "name": "clock"}) == ["clock"]
    assert names(both, tool_choice={"type": "none"}) == []
    assert names(both, tool_choice={"type": "auto", "disable_parallel_tool_use": True}) == ["weather"]


def test_streamed_tool_calls_come_in_pieces(client: Anthropic) -> None:
    text = 'call weather {"city": "the city of Rome"}\ncall clock {}'
    with client.messages.stream(model="default", max_tokens=99, messages=said(text), tools=[WEATHER, CLOCK]) as stream:
        pieces = [event for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert len(pieces) > 2
    found = [(block.name, block.input) for block in final.content if block.type == "tool_use"]
    assert found == [("weather", {"city": "the city of Rome"}), ("clock", {})]


def test_the_tool_runner(client: Anthropic) -> None:
    @beta_tool
    def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: its name.
        """
        return f"sunny in {city}"

    runner = client.beta.messages.tool_runner(
        model="default", max_tokens=99, messages=[{"role": "user", "content": 'call weather {"city": "Rome"}'}], tools=[weather]
    )
    steps = [message.stop_reason for message in runner]
    assert steps == ["tool_use", "end_turn"]
    final = client.beta.messages.tool_runner(
        model="default", max_tokens=99, messages=[{"role": "user", "content": 'call weather {"city": "Rome"}'}], tools=[weather]
    ).until_done()
    assert [block.text for block in final.content if block.type == "text"] == ["sunny in Rome"]


async def test_the_asynchronous_tool_runner_streams(asynchronous: AsyncAnthropic) -> None:
    @beta_async_tool
    async def weather(city: str) -> str:
        """The weather of a city."""
        return f"sunny in {city}"

    runner = asynchronous.beta.messages.tool_runner(
        model="default",
        max_tokens=99,
        messages=[{"role": "user", "content": 'call weather {"city": "Rome"}'}],
        tools=[weather],
        stream=True,
    )
    said_back = [piece async for stream in runner async for piece in stream.text_stream]
    assert "".join(said_back) == "sunny in Rome"


def test_thinking(client: Anthropic) -> None:
    thinking = client.messages.create(model="thinks", max_tokens=2000, messages=said("why"), thinking={"type": "adaptive"})
    assert [block.type for block in thinking.content] == ["thinking", "text"]
    assert thinking.content[0].type == "thinking"
    assert thinking.content[0].thinking == "I was asked: why"
    with client.messages.stream(
        model="thinks", max_tokens=2000, messages=said("why"), thinking={"type": "enabled", "budget_tokens": 1024}
    ) as stream:
        thoughts = [event.thinking for event in stream if event.type == "thinking"]
        final = stream.get_final_message()
    assert "".join(thoughts) == "I was asked: why"
    turns: list[MessageParam] = [*said("why"), {"role": "assistant", "content": final.content}, *said("and now")]
    again = client.messages.create(model="thinks", max_tokens=2000, messages=turns, thinking={"type": "disabled"})
    assert [block.type for block in again.content] == ["text"]


def test_answers_parsed_into_pydantic_models(client: Anthropic) -> None:
    answer = client.messages.parse(model="default", max_tokens=99, messages=said("Rome"), output_format=Place)
    assert answer.parsed_output == Place(city="Rome", people=0, tags=[])
    turns: list[MessageParam] = [*said("Rome"), {"role": "assistant", "content": answer.content}, *said("and then")]
    last = client.messages.create(model="default", max_tokens=99, messages=turns)
    assert [block.text for block in last.content if block.type == "text"] == ["and then"]
    with client.messages.stream(model="default", max_tokens=99, messages=said("Lima"), output_format=Place) as stream:
        assert stream.get_final_message().parsed_output == Place(city="Lima", people=0, tags=[])


def test_images_and_documents(client: Anthropic) -> None:
    answer = client.messages.create(
        model="default",
        max_tokens=99,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
                    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A letter."}},
                    {"type": "text", "text": "see"},
                ],
            }
        ],
    )
    assert [block.text for block in answer.content if block.type == "text"] == ["[image_url] [document] see"]


def test_counts_and_models(client: Anthropic) -> None:
    count = client.messages.count_tokens(model="default", system="S", messages=said("one two three"), tools=[CLOCK])
    assert count.input_tokens >= 4
    names = [model.id for model in client.models.list(limit=2)]
    assert {"default", "thinks", "echo/echo"} <= set(names)
    assert client.models.retrieve("default").display_name == "default"
    assert client.models.retrieve("echo/echo").id == "echo/echo"


async def test_leaving_a_stream_frees_its_place(site: Site, asynchronous: AsyncAnthropic) -> None:
    await asyncio.to_thread(site.wait_until_idle)
    async with asynchronous.messages.stream(model="slow", max_tokens=900, messages=said("word " * 500)) as stream:
        async for _ in stream.text_stream:
            break
        assert await asyncio.to_thread(site.running) == 1
    await asyncio.to_thread(site.wait_until_idle)
