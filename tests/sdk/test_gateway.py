"""The stock clients through this service to other people's models, each in its own format and in the other's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.acceptance.harness import ServiceProcess
from tests.sdk.conftest import environment, make_key
from tests.vendors.anthropic_server import KEY, MODEL, AnthropicServer, as_stream, events, message, sse, text, tool_use
from tests.vendors.anthropic_server import failure as anthropic_failure
from tests.vendors.openai_server import Completion, OpenAIServer, ToolCall, failure

OPENAI_KEY = "sk-canary-2718281828"
CLAUDE, GPT = f"far-claude/{MODEL}", "far-openai/gpt-4o"
PARAMETERS: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
CLAUDES_TOOL: Any = {"name": "weather", "input_schema": PARAMETERS}
OF_CLAUDE = {
    529: openai.InternalServerError,
    401: openai.InternalServerError,  # our key at the upstream is none of the caller's business
    404: openai.NotFoundError,
    400: openai.BadRequestError,
}
OF_OPENAI = {
    "rate_limit": anthropic.OverloadedError,  # it is our limit there, not the caller's here
    "invalid_key": anthropic.InternalServerError,
    "context_length": anthropic.BadRequestError,
}
HELLO: Any = [{"role": "user", "content": "hello there"}]


pytestmark = pytest.mark.asyncio(loop_scope="module")


class City(BaseModel):
    city: str


@dataclass(frozen=True)
class Far:
    """Both vendors' doubles, and both vendors' clients of the service before them."""

    claude: AnthropicServer
    gpt: OpenAIServer
    openai: AsyncOpenAI
    anthropic: AsyncAnthropic


def failing() -> Iterator[tuple[str, Any]]:
    """A route for each failure: what fails is left alone for a while."""
    for upstream, cases in (("claude", OF_CLAUDE), ("openai", OF_OPENAI)):
        for name in (f"{case}-{stream}" for case in cases for stream in (0, 1)):
            yield f"{upstream}-{name}", {"targets": [{"model": f"far-{upstream}/{name}"}], "retries": 0}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def far(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Far]:
    async with AnthropicServer() as claude, OpenAIServer(key=OPENAI_KEY) as gpt:
        entries = {
            "far-claude": {"kind": "claude", "base_url": claude.url, "models": ["*"], "api_key_env": "FAR_CLAUDE"},
            "far-openai": {"base_url": gpt.url, "models": ["*"], "api_key_env": "FAR_OPENAI"},
        }
        keys = {"FAR_CLAUDE": KEY, "FAR_OPENAI": OPENAI_KEY}
        environ = environment(providers__upstreams=entries, routing__models=dict(failing()), cache__ttl_s=0) | keys
        process = ServiceProcess(tmp_path_factory.mktemp("gateway"), environ=environ)
        try:
            await asyncio.to_thread(process.start)
            key = await asyncio.to_thread(lambda: make_key(process.url, process.admin(), "predict"))
            async with (
                AsyncOpenAI(base_url=f"{process.url}/v1", api_key=key, max_retries=0) as gpts,
                AsyncAnthropic(base_url=process.url, api_key=key, max_retries=0) as claudes,
            ):
                yield Far(claude, gpt, gpts, claudes)
        finally:
            await asyncio.to_thread(process.stop)
        assert not any(key in line for key in keys.values() for line in [*process.log, *process.output])


@pytest.mark.parametrize("model", [CLAUDE, GPT])
async def test_openais_package(far: Far, model: str) -> None:
    answer = await far.openai.chat.completions.create(model=model, messages=HELLO, temperature=0.5)
    assert answer.choices[0].message.content == "hello there"
    assert answer.usage is not None
    assert answer.usage.total_tokens > 0
    stream = await far.openai.chat.completions.create(
        model=model, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello there"
    assert chunks[-1].usage is not None
    parsed = await far.openai.chat.completions.parse(model=model, messages=HELLO, response_format=City)
    assert parsed.choices[0].message.parsed == City(city="hello there")
    async with far.openai.responses.stream(model=model, input="hello there") as events:
        assert (await events.get_final_response()).output_text == "hello there"


@pytest.mark.parametrize("model", [CLAUDE, GPT])
async def test_anthropics_package(far: Far, model: str) -> None:
    answer = await far.anthropic.messages.create(model=model, max_tokens=99, messages=HELLO)
    assert [block.text for block in answer.content if block.type == "text"] == ["hello there"]
    assert answer.stop_reason == "end_turn"
    async with far.anthropic.messages.stream(model=model, max_tokens=99, messages=HELLO, system="Repeat.") as stream:
        assert "".join([piece async for piece in stream.text_stream]) == "hello there"
        assert (await stream.get_final_message()).usage.output_tokens > 0
    parsed = await far.anthropic.messages.parse(model=model, max_tokens=99, messages=HELLO, output_format=City)
    assert parsed.parsed_output == City(city="hello there")
    assert (await far.anthropic.messages.count_tokens(model=model, messages=HELLO)).input_tokens >= 2


async def test_a_turn_with_tools_of_openais_package_at_claude(far: Far) -> None:
    call = message(text("Let me see."), tool_use("toolu_1", "weather", city="Rome"), stop_reason="tool_use")
    for streamed in (False, True):
        far.claude.push(call)
        if streamed:
            async with far.openai.chat.completions.stream(model=CLAUDE, messages=HELLO, tools=[TOOL]) as stream:
                answer: Any = await stream.get_final_completion()
        else:
            answer = await far.openai.chat.completions.create(model=CLAUDE, messages=HELLO, tools=[TOOL])
        (choice,) = answer.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
        (made,) = choice.message.tool_calls
        assert (made.id, json.loads(made.function.arguments)) == ("toolu_1", {"city": "Rome"})
        turns = [*HELLO, choice.message, {"role": "tool", "tool_call_id": made.id, "content": "sunny"}]
        far.claude.push(message(text("It is sunny.")))
        last = await far.openai.chat.completions.create(model=CLAUDE, messages=turns, tools=[TOOL])
        assert last.choices[0].message.content == "It is sunny."
        kinds = [[block["type"] for block in turn["content"]] for turn in far.claude.received[-1].body["messages"]]
        assert kinds == [["text"], ["text", "tool_use"], ["tool_result"]]


async def test_a_turn_with_tools_of_anthropics_package_at_openai(far: Far) -> None:
    answer: anthropic.types.Message
    call = Completion(tool_calls=[ToolCall("weather", ('{"ci', 'ty": "Rome"}'))])
    for streamed in (False, True):
        far.gpt.push(call)
        if streamed:
            async with far.anthropic.messages.stream(model=GPT, max_tokens=99, messages=HELLO, tools=[CLAUDES_TOOL]) as stream:
                answer = await stream.get_final_message()
        else:
            answer = await far.anthropic.messages.create(model=GPT, max_tokens=99, messages=HELLO, tools=[CLAUDES_TOOL])
        assert answer.stop_reason == "tool_use"
        (made,) = [block for block in answer.content if block.type == "tool_use"]
        assert (made.name, made.input) == ("weather", {"city": "Rome"})
        result = {"type": "tool_result", "tool_use_id": made.id, "content": "sunny"}
        turns: Any = [*HELLO, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
        far.gpt.push(Completion(text="It is sunny."))
        last = await far.anthropic.messages.create(model=GPT, max_tokens=99, messages=turns, tools=[CLAUDES_TOOL])
        assert [block.text for block in last.content if block.type == "text"] == ["It is sunny."]
        assert [turn["role"] for turn in far.gpt.received[-1].body["messages"]][-3:] == ["user", "assistant", "tool"]


@pytest.mark.parametrize("stream", [False, True])
async def test_claudes_failures_at_openais_package(far: Far, stream: bool) -> None:
    for status, kind in OF_CLAUDE.items():
        far.claude.push(anthropic_failure(status, "words of a third party"))
        with pytest.raises(kind) as raised:
            await far.openai.chat.completions.create(model=f"claude-{status}-{int(stream)}", messages=HELLO, stream=stream)
        assert type(raised.value) is kind
        assert "third party" not in str(raised.value)


@pytest.mark.parametrize("stream", [False, True])
async def test_openais_failures_at_anthropics_package(far: Far, stream: bool) -> None:
    for name, kind in OF_OPENAI.items():
        far.gpt.push(failure(name))
        model = f"openai-{name}-{int(stream)}"
        with pytest.raises(kind) as raised:
            await far.anthropic.messages.create(model=model, max_tokens=99, messages=HELLO, stream=stream)
        assert type(raised.value) is kind


async def test_a_cut_stream_is_an_error_in_both_packages(far: Far) -> None:
    pieces = sse(list(events(message(text("one two three four five")))))
    far.claude.push(as_stream(pieces[:6], cut=True, pause_s=0.02))
    found: list[str] = []
    with pytest.raises(openai.APIError):
        await collect(await far.openai.chat.completions.create(model=CLAUDE, messages=HELLO, stream=True), found)
    assert found
    far.gpt.push(Completion(text="one two three", pieces=("one ", "two ", "three"), cut_after=3, pause_s=0.02))
    found.clear()
    with pytest.raises(anthropic.APIError):
        await collect(await far.anthropic.messages.create(model=GPT, max_tokens=99, messages=HELLO, stream=True), found)
    assert found


async def test_leaving_cuts_the_upstream(far: Far) -> None:
    far.claude.push(as_stream(sse(list(events(message(text("word " * 400))))), pause_s=0.05))
    stream = await far.openai.chat.completions.create(model=CLAUDE, messages=HELLO, stream=True)
    await anext(stream)
    left = far.claude.left
    await stream.close()
    for _ in range(200):
        if far.claude.left > left:
            return
        await asyncio.sleep(0.02)
    pytest.fail("the upstream still answers")


async def collect(stream: Any, into: list[Any]) -> None:
    async for piece in stream:
        into.append(piece)
