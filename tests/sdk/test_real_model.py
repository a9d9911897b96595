"""The stock clients on the bundled model: what its grammar enforces reaches them as the objects they promise."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import openai
import pytest
from anthropic import Anthropic
from anthropic.types import MessageParam
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field

from tests.acceptance.harness import ServiceProcess, install
from tests.sdk.conftest import NO_LIMITS, Site, make_key

pytestmark = pytest.mark.model


class Place(BaseModel):
    """Where somebody lives."""

    city: Annotated[str, Field(max_length=20)]
    people: Annotated[int, Field(ge=0, le=9)]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Iterator[Site]:
    data = tmp_path_factory.mktemp("real")
    name = install(model_file, data, "small")
    more = {"APRENDIZ_MODEL__CONTEXT_TOKENS": "1024", "APRENDIZ_MODEL__SLOTS": "4", **NO_LIMITS}
    with ServiceProcess(data, provider="llamacpp", model=name, environ=more) as process:
        admin = process.admin()
        key = make_key(process.url, admin, "predict", "feedback")
        yield Site(process.url, key, key, admin)


def said(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_openai(real: Site) -> None:
    messages: list[ChatCompletionMessageParam] = said("I live in Rome with two friends.")
    with OpenAI(base_url=real.v1, api_key=real.key, max_retries=0) as client:
        parsed = client.chat.completions.parse(model="default", messages=messages, response_format=Place, temperature=0)
        assert isinstance(parsed.choices[0].message.parsed, Place)
        tool = openai.pydantic_function_tool(Place)
        called = client.chat.completions.parse(
            model="default", messages=messages, tools=[tool], tool_choice="required", temperature=0, max_tokens=64
        )
        (call,) = called.choices[0].message.tool_calls or []
        assert isinstance(call.function.parsed_arguments, Place)
        response = client.responses.parse(model="default", input="I live in Rome.", text_format=Place, temperature=0)
        assert isinstance(response.output_parsed, Place)

        seeded = [
            client.chat.completions.create(model="default", messages=said("A word."), seed=7, temperature=1, max_tokens=8)
            for _ in range(2)
        ]
        assert seeded[0].choices[0].message.content == seeded[1].choices[0].message.content
        likeliest = [
            client.chat.completions.create(model="default", messages=said("A word."), temperature=1, top_p=0, max_tokens=8)
            for _ in range(2)
        ]
        assert likeliest[0].choices[0].message.content == likeliest[1].choices[0].message.content
        chunks = list(
            client.chat.completions.create(model="default", messages=said("Count."), max_tokens=12, logprobs=True, stream=True)
        )
        told = [chunk.choices[0] for chunk in chunks if chunk.choices]
        entries = [entry for choice in told if choice.logprobs for entry in choice.logprobs.content or []]
        assert "".join(choice.delta.content or "" for choice in told) == "".join(entry.token for entry in entries)
        assert 0 < len(entries) <= 12


@pytest.mark.slow
async def test_leaving_frees_the_engine(real: Site) -> None:
    async with AsyncOpenAI(base_url=real.v1, api_key=real.key, max_retries=0) as client:
        streams = [
            await client.chat.completions.create(
                model="default", messages=said("Tell a long story."), stream=True, max_tokens=800
            )
            for _ in range(4)
        ]
        for stream in streams:
            await anext(stream)
            await stream.close()
        await asyncio.to_thread(real.wait_until_idle)
        after = await client.chat.completions.create(model="default", messages=said("Hello."), max_tokens=4)
        assert after.usage is not None
        assert after.usage.completion_tokens <= 4


def test_anthropic(real: Site) -> None:
    messages: list[MessageParam] = said("I live in Rome with two friends.")
    with contextlib.closing(Anthropic(base_url=real.url, api_key=real.key, max_retries=0)) as client:
        parsed = client.messages.parse(model="default", max_tokens=64, messages=messages, output_format=Place)
        assert isinstance(parsed.parsed_output, Place)
        with client.messages.stream(model="default", max_tokens=12, messages=said("Count.")) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert [block.text for block in final.content if block.type == "text"] == [text]
        assert 0 < final.usage.output_tokens <= 12
        counted = client.messages.count_tokens(model="default", messages=said("Count."))
        assert counted.input_tokens == final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0)
        called = client.messages.create(
            model="default",
            max_tokens=64,
            messages=messages,
            tools=[{"name": "place", "input_schema": Place.model_json_schema()}],
            tool_choice={"type": "any"},
        )
        (use,) = [block for block in called.content if block.type == "tool_use"]
        assert isinstance(Place.model_validate(use.input), Place)
