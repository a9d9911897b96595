"""The echo provider: what it says, and that it keeps to limits like any other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from app.core.errors import EngineUnavailable, InvalidRequest, ModelLoadFailed, UnknownModel
from app.core.types import (
    Answer,
    EmbeddingRequest,
    EngineState,
    GenerationRequest,
    Message,
    ModelSpec,
    Sampling,
    TextDelta,
    fold,
)
from app.providers.base import LoadedModel, ProviderContext
from app.providers.contract import ask, verify
from app.providers.echo import EchoProvider

MakeContext = Callable[..., ProviderContext]


async def opened(make_context: MakeContext, name: str = "echo", **model: Any) -> LoadedModel:
    return await EchoProvider(make_context(**model)).open(ModelSpec("echo", name), on_state=lambda state: None)


async def said(model: LoadedModel, text: str, **sampling: Any) -> Answer:
    return await fold(model.stream(GenerationRequest((Message("user", text),), sampling=Sampling(**sampling))))


@pytest.mark.parametrize("name", ["echo", "upper+slow", "reverse+tag-a", "thinks"])
async def test_fulfils_the_contract(make_context: MakeContext, name: str) -> None:
    assert await verify(lambda: opened(make_context, name)) == []


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("echo", "Hola,  mundo\nñ 🙂", "Hola,  mundo\nñ 🙂"),
        ("upper", "Hola mundo", "HOLA MUNDO"),
        ("reverse", "a b c", "c b a"),
        ("tag-v2", "a  b", "v2:a  v2:b"),
        ("upper+tag-x", "a b", "x:A x:B"),
        ("echo", "  ", "Hello. I repeat what you say."),
    ],
)
async def test_says_what_its_name_says(make_context: MakeContext, name: str, text: str, answer: str) -> None:
    assert (await said(await opened(make_context, name), text)).text == answer


async def test_tag_is_on_every_piece(make_context: MakeContext) -> None:
    model = await opened(make_context, "tag-v2")
    pieces = [event.text async for event in model.stream(ask("a b c d")) if isinstance(event, TextDelta)]
    assert len(pieces) == 4
    assert all("v2:" in piece for piece in pieces)


async def test_last_user_message_in_parts(make_context: MakeContext) -> None:
    model = await opened(make_context)
    parts: list[dict[str, Any]] = [{"type": "text", "text": "two"}, {"type": "text", "text": "parts"}]
    messages = (Message("user", "one"), Message("tool", "y"), Message("user", parts), Message("assistant", "x"))
    assert (await fold(model.stream(GenerationRequest(messages)))).text == "two parts"


async def test_limits_and_usage(make_context: MakeContext) -> None:
    model = await opened(make_context)
    answer = await said(model, "a b c d", max_tokens=2)
    assert (answer.text, answer.finish_reason) == ("a b", "length")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 2)
    assert (await said(model, "a b c d", max_tokens=4)).finish_reason == "stop"
    assert (await said(model, "a b c d", stop=("c", "d"))).text == "a b"
    room = await said(model, "w " * 300)
    assert (room.usage.completion_tokens, room.finish_reason) == (212, "length"), "512 tokens of context, 300 of them prompt"
    with pytest.raises(InvalidRequest, match="512"):
        await said(model, "w " * 512)


async def test_each_name_is_a_version(make_context: MakeContext) -> None:
    names = ("echo", "upper", "tag-a", "tag-b")
    ids = {(await opened(make_context, name)).version.id for name in names}
    assert len(ids) == len(names)
    assert (await opened(make_context)).version.id == (await opened(make_context)).version.id


@pytest.mark.parametrize("name", ["", "nonsense", "echo+", "tag-", "tag-a b", "echo+" * 20 + "echo"])
async def test_unknown_names(make_context: MakeContext, name: str) -> None:
    with pytest.raises(UnknownModel, match="tag-NAME"):
        await opened(make_context, name)


async def test_drills(make_context: MakeContext) -> None:
    with pytest.raises(ModelLoadFailed):
        await opened(make_context, "unloadable")
    model = await opened(make_context, "breaks")
    stream = model.stream(ask("a b c d e f"))
    for _ in range(3):
        await anext(stream)
    with pytest.raises(EngineUnavailable):
        await anext(stream)


async def test_closing_ends_open_streams(make_context: MakeContext) -> None:
    states: list[EngineState] = []
    model = await EchoProvider(make_context()).open(ModelSpec("echo", "slow"), on_state=states.append)
    stream = model.stream(ask("a " * 100, max_tokens=100))
    await anext(stream)
    await model.aclose()
    with pytest.raises(EngineUnavailable):
        async with asyncio.timeout(5):
            await fold(stream)
    assert states == [EngineState.STARTING, EngineState.READY, EngineState.STOPPED]


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize(
    ("response_format", "value"),
    [
        ({"type": "json_object"}, {"echo": "hi"}),
        ({"type": "json_schema"}, {"echo": "hi"}),
        (
            form({"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}, "b": {}}, "required": ["a"]}),
            {"a": 3},
        ),
        (form({"type": "array", "items": {"type": "boolean"}, "minItems": 2}), [False, False]),
        (form({"enum": ["x", "y"]}), "x"),
        (form({"anyOf": [{"type": "string", "minLength": 4}]}), "hi.."),
        (form({"$defs": {"n": {"type": ["number", "null"]}}, "$ref": "#/$defs/n"}), 0),
        (form({"type": "null"}), None),
    ],
)
async def test_json(make_context: MakeContext, response_format: dict[str, Any], value: Any) -> None:
    answer = await said(await opened(make_context), "hi", response_format=response_format)
    assert json.loads(answer.text) == value


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "http://127.0.0.1/x"},
        {"type": "array", "minItems": 10**9, "items": {"type": "array", "minItems": 10**9}},
        {"type": "object", "required": "text"},
        {"type": "object", "properties": 3, "required": ["a"]},
        {"type": "string", "maxLength": "x"},
        {"anyOf": 3},
        {"enum": {"a": 1}},
        {"type": "array", "minItems": 1e400},
    ],
)
async def test_bad_schemas_are_refused_or_bounded(make_context: MakeContext, schema: Any) -> None:
    model = await opened(make_context)
    with pytest.raises(InvalidRequest):
        await said(model, "hi", response_format=form(schema))


TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]},
        },
    }
    for name in ("first", "second")
)
NAMED = {"type": "function", "function": {"name": "second"}}


@pytest.mark.parametrize(
    ("text", "choice", "parallel", "calls"),
    [
        ('call second {"a": {"b": 1}}', "auto", None, [("second", {"a": {"b": 1}})]),
        ('please\ncall first {"a": 1}\ncall second {"b": 2}', None, None, [("first", {"a": 1}), ("second", {"b": 2})]),
        ('call first {"a": 1}\ncall second {"b": 2}', None, False, [("first", {"a": 1})]),
        ("call first", None, None, [("first", {})]),
        ("call first {broken", None, None, [("first", {})]),
        ("call third {}", None, None, []),
        ("call first {}", "none", None, []),
        ("hello", "required", None, [("first", {"n": 3})]),
        ("hello", NAMED, None, [("second", {"n": 3})]),
        ('call first {}\ncall second {"x": 1}', NAMED, None, [("second", {"x": 1})]),
    ],
)
async def test_tools_are_called_when_asked_or_forced(
    make_context: MakeContext, text: str, choice: Any, parallel: bool | None, calls: list[tuple[str, Any]]
) -> None:
    answer = await said(await opened(make_context), text, tools=TOOLS, tool_choice=choice, parallel_tool_calls=parallel)
    found = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in answer.tool_calls]
    assert found == calls
    assert answer.finish_reason == ("tool_calls" if calls else "stop")
    assert (answer.text == "") == bool(calls)
    ids = [call["id"] for call in answer.tool_calls]
    assert len(set(ids)) == len(ids)


async def test_what_a_tool_answered_is_said_back(make_context: MakeContext) -> None:
    model = await opened(make_context)
    messages = (
        Message("user", "call first {}"),
        Message("assistant", None),
        Message("tool", "it is"),
        Message("tool", "seven"),
    )
    answer = await fold(model.stream(GenerationRequest(messages, sampling=Sampling(tools=TOOLS))))
    assert (answer.text, answer.tool_calls) == ("it is\nseven", ())


async def test_thinking_comes_first_and_counts(make_context: MakeContext) -> None:
    model = await opened(make_context, "thinks")
    answer = await said(model, "a b")
    assert (answer.reasoning, answer.text) == ("I was asked: a b", "a b")
    assert (answer.usage.reasoning_tokens, answer.usage.completion_tokens) == (5, 7)
    assert (await said(model, "a b", reasoning_effort="none")).reasoning == ""
    assert (await said(model, "a b", thinking={"type": "disabled"})).reasoning == ""
    cut = await said(model, "a b", max_tokens=3)
    assert (cut.text, cut.finish_reason, cut.usage.reasoning_tokens) == ("", "length", 3)


async def test_every_token_is_certain(make_context: MakeContext) -> None:
    answer = await said(await opened(make_context), "ñ b", logprobs=1)
    assert [entry["token"] for entry in answer.logprobs] == ["ñ", " b"]
    assert answer.logprobs[0]["bytes"] == [195, 177]
    assert all(entry["logprob"] == 0.0 and len(entry["top_logprobs"]) == 1 for entry in answer.logprobs)


async def test_says_which_stop_ended_it(make_context: MakeContext) -> None:
    model = await opened(make_context)
    assert (await said(model, "a b c", stop=("c", "b"))).stop_sequence == "b"
    assert (await said(model, "a b c", stop=("z",))).stop_sequence is None


async def test_embeddings_are_unit_vectors_that_know_shared_words(make_context: MakeContext) -> None:
    model = await opened(make_context)
    found = await model.embed(EmbeddingRequest(("the red car", "a red car", "bonjour monde", "", "the red car")))
    one, near, far, empty, again = found.vectors
    assert one == again
    assert all(abs(sum(x * x for x in vector) - 1) < 1e-9 and len(vector) == 64 for vector in found.vectors)
    assert sum(a * b for a, b in zip(one, near, strict=True)) > 0.5 > sum(a * b for a, b in zip(one, far, strict=True))
    assert empty != one
    assert found.prompt_tokens == 11
    short = await model.embed(EmbeddingRequest(("the red car",), dimensions=8))
    assert len(short.vectors[0]) == 8
    with pytest.raises(InvalidRequest, match="64"):
        await model.embed(EmbeddingRequest(("a",), dimensions=65))
