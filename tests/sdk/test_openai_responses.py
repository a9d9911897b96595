"""The Python package ``openai`` on the Responses API: whole, streamed, parsed, tools, conversations that are kept here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import FunctionToolParam, ResponseStreamEvent
from pydantic import BaseModel

from tests.sdk.conftest import Site, drain, make_key

WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Place(BaseModel):
    city: str
    people: int


class Weather(BaseModel):
    """The weather of a city."""

    city: str


@pytest.fixture
def client(site: Site) -> Iterator[OpenAI]:
    with OpenAI(base_url=site.v1, api_key=site.key, max_retries=0) as made:
        yield made


def test_a_whole_response_and_its_rating(site: Site, client: OpenAI) -> None:
    answer = client.responses.create(
        model="default",
        instructions="Repeat.",
        input="one two three",
        max_output_tokens=50,
        temperature=0,
        metadata={"a": "b"},
        truncation="disabled",
    )
    assert (answer.object, answer.status, answer.output_text) == ("response", "completed", "one two three")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (4, 3)
    assert (answer.metadata, answer.instructions, answer.error, answer.incomplete_details) == (
        {"a": "b"},
        "Repeat.",
        None,
        None,
    )
    rated = httpx.post(
        f"{site.url}/feedback",
        headers={"Authorization": f"Bearer {site.key}"},
        json={"prediction_id": answer.id, "rating": "up"},
        timeout=10,
    )
    assert rated.status_code == 201, (answer.id, rated.text)
    cut = client.responses.create(model="default", input="one two three", max_output_tokens=2)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_the_stream_and_its_helper(client: OpenAI) -> None:
    kinds = [event.type for event in client.responses.create(model="default", input="one two", stream=True)]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    with client.responses.stream(model="default", input="one two") as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots == ["one", "one two"]
    assert (final.status, final.output_text) == ("completed", "one two")


def test_parsed(client: OpenAI) -> None:
    answer = client.responses.parse(model="default", input="Rome", text_format=Place)
    assert answer.output_parsed == Place(city="Rome", people=0)
    with client.responses.stream(model="default", input="Lima", text_format=Place) as stream:
        assert stream.get_final_response().output_parsed == Place(city="Lima", people=0)
    called = client.responses.parse(
        model="default", input="Lima", tools=[openai.pydantic_function_tool(Weather)], tool_choice="required"
    )
    (call,) = [item for item in called.output if item.type == "function_call"]
    assert call.parsed_arguments == Weather(city="Lima")
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    turns: Any = [{"role": "user", "content": "Lima"}, *called.output, result]
    assert client.responses.create(model="default", input=turns).output_text == "sunny"
    turns = [{"role": "user", "content": "Rome"}, *answer.output, {"role": "user", "content": "and then"}]
    assert client.responses.create(model="default", input=turns).output_text == "and then"


def test_a_loop_with_tools_by_items_and_by_id(client: OpenAI) -> None:
    items: list[Any] = [{"role": "user", "content": 'call weather {"city": "Rome"}'}]
    answer = client.responses.create(model="default", input=items, tools=[WEATHER])
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments), call.status) == ("weather", {"city": "Rome"}, "completed")
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    by_items = client.responses.create(model="default", input=items + answer.output + [result], tools=[WEATHER])
    by_id = client.responses.create(model="default", previous_response_id=answer.id, input=[result], tools=[WEATHER])
    assert (by_items.output_text, by_id.output_text) == ("sunny", "sunny")
    assert by_id.previous_response_id == answer.id
    with client.responses.stream(model="default", input=items, tools=[WEATHER]) as stream:
        kinds = [event.type for event in stream]
    assert kinds.count("response.function_call_arguments.done") == 1
    assert kinds.count("response.function_call_arguments.delta") > 1
    named = client.responses.create(
        model="default", input="x", tools=[WEATHER], tool_choice={"type": "function", "name": "weather"}
    )
    assert [item.type for item in named.output] == ["function_call"]


def test_what_is_kept(site: Site, client: OpenAI) -> None:
    first = client.responses.create(model="default", input="one")
    second = client.responses.create(model="default", previous_response_id=first.id, input="two")
    read = client.responses.retrieve(second.id)
    assert (read.id, read.output_text, read.previous_response_id) == (second.id, "two", first.id)
    texts = [
        part.text
        for item in client.responses.input_items.list(second.id, order="asc")
        if item.type == "message"
        for part in item.content
        if part.type in ("input_text", "output_text")
    ]
    assert texts == ["one", "one", "two"]
    assert client.responses.input_tokens.count(model="default", input="one two").input_tokens >= 2
    with OpenAI(base_url=site.v1, api_key=site.read_only, max_retries=0) as reader:
        assert reader.responses.retrieve(first.id).output_text == "one"
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    with pytest.raises(openai.NotFoundError) as raised:
        client.responses.create(model="default", previous_response_id=second.id, input="x")
    assert (raised.value.code, raised.value.param) == ("previous_response_not_found", "previous_response_id")
    unkept = client.responses.create(model="default", input="one", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_thinking(client: OpenAI) -> None:
    answer = client.responses.create(model="thinks", input="why", reasoning={"effort": "low", "summary": "auto"})
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output_text == "why"
    with client.responses.stream(model="thinks", input="why", reasoning={"summary": "auto"}) as stream:
        kinds = [event.type for event in stream]
    assert "response.reasoning_summary_text.delta" in kinds


def test_failures(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model="default", input="x", background=True)
    assert raised.value.param == "background"
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model="default", input="x", tools=[{"type": "web_search"}])
    assert (raised.value.param or "").startswith("tools")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.create(model="gpt-9", input="x")
    assert unknown.value.code == "model_not_found"
    events: list[ResponseStreamEvent] = []
    stream = client.responses.create(model="breaks", input="one two three four five", stream=True)
    with pytest.raises(openai.APIError) as broken:
        drain(stream, events)
    assert broken.value.code == "engine_unavailable"
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert events[-1].response.error.code == "server_error"


async def test_asynchronous(site: Site) -> None:
    async with AsyncOpenAI(base_url=site.v1, api_key=site.key, max_retries=0) as client:
        answer = await client.responses.create(model="default", input="hello")
        assert (await client.responses.retrieve(answer.id)).output_text == "hello"
        async with client.responses.stream(model="default", input="one two") as stream:
            found = [event.delta async for event in stream if event.type == "response.output_text.delta"]
    assert "".join(found) == "one two"


def test_other_peoples_responses_are_not_there(site: Site, client: OpenAI) -> None:
    answer = client.responses.create(model="default", input="mine")
    invite = httpx.post(f"{site.url}/auth/invites", headers=site.admin, json={"role": "user"}, timeout=10).json()["token"]
    words = "some quiet words for eve"
    body = {"username": "eve", "password": words, "invite": invite}
    assert httpx.post(f"{site.url}/auth/register", json=body, timeout=20).status_code == 201
    token = httpx.post(f"{site.url}/auth/token", data={"username": "eve", "password": words}, timeout=20).json()["access_token"]
    key = make_key(site.url, {"Authorization": f"Bearer {token}"}, "predict")
    with OpenAI(base_url=site.v1, api_key=key, max_retries=0) as other, pytest.raises(openai.NotFoundError):
        other.responses.retrieve(answer.id)
