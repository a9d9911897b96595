"""Forms that answers of the bundled model are held to: calls of tools, schemas, tokens; with the real engine."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import InvalidRequest
from app.core.types import Event, Finished, GenerationRequest, Message, ModelSpec, TextDelta, ToolCallDelta, fold
from app.providers import llamacpp
from app.providers.base import LoadedModel, ProviderContext
from app.providers.contract import ask
from app.providers.llamacpp import LlamaCppProvider

MakeContext = Callable[..., ProviderContext]
pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"enum": ["celsius", "fahrenheit"]},
                "days": {"type": "number", "minimum": 1, "maximum": 5},
            },
            "required": ["city", "unit", "days"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}


@asynccontextmanager
async def opened(context: ProviderContext, path: Path) -> AsyncIterator[LoadedModel]:
    model = await LlamaCppProvider(context).open(ModelSpec("llamacpp", str(path)), on_state=lambda state: None)
    try:
        yield model
    finally:
        await model.aclose()


def form(schema: Any, *, strict: bool = True) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": strict}}


def thing(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


async def events_of(model: LoadedModel, request: GenerationRequest) -> list[Event]:
    return [event async for event in model.stream(request)]


@pytest.mark.slow  # test_v1_real_tools asks the same model through the doors
async def test_tools(make_context: MakeContext, model_file: Path) -> None:
    async with opened(make_context(context_tokens=1024, slots=2), model_file) as model:
        assert model.capabilities.tools
        await a_demanded_call_comes_in_pieces(model)
        await one_named_without_parameters(model)
        await several_where_asked_for(model)
        await words_where_no_call(model)
        await it_calls_where_it_is_free_to(model)
        await the_conversation_goes_on(model)
        await counted_as_sent(model)
        await bad_parameters_are_refused(model)


async def a_demanded_call_comes_in_pieces(model: LoadedModel) -> None:
    request = ask("What is the weather in Paris?", tools=(WEATHER, NOW), tool_choice="required", max_tokens=70)
    events = await events_of(model, request)
    assert not any(isinstance(event, TextDelta) for event in events)
    pieces = [event for event in events if isinstance(event, ToolCallDelta)]
    assert pieces[0].id and pieces[0].name and all(piece.id is None for piece in pieces[1:])
    last = events[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.usage.completion_tokens > 10) == ("tool_calls", True)
    if pieces[0].name == "get_weather":
        assert len(pieces) > 5, "arguments stream"
        made = json.loads("".join(piece.arguments for piece in pieces))
        assert set(made) == {"city", "unit", "days"}
        assert made["unit"] in ("celsius", "fahrenheit")
        assert 1 <= made["days"] <= 5


async def one_named_without_parameters(model: LoadedModel) -> None:
    choice = {"type": "function", "function": {"name": "now"}}
    answer = await fold(model.stream(ask("Hello", tools=(WEATHER, NOW), tool_choice=choice, max_tokens=40)))
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in answer.tool_calls] == [("now", "{}")]
    assert answer.finish_reason == "tool_calls"


async def several_where_asked_for(model: LoadedModel) -> None:
    request = ask("Call now twice.", tools=(NOW,), tool_choice="required", parallel_tool_calls=True, max_tokens=120)
    answer = await fold(model.stream(request))
    assert 1 <= len(answer.tool_calls) <= 16
    assert {call["function"]["name"] for call in answer.tool_calls} == {"now"}
    assert len({call["id"] for call in answer.tool_calls}) == len(answer.tool_calls)


async def words_where_no_call(model: LoadedModel) -> None:
    answer = await fold(model.stream(ask("Say hello.", tools=(WEATHER,), max_tokens=12, stop=("zzz",))))
    assert (bool(answer.text), answer.tool_calls, "{" in answer.text) == (True, (), False)
    as_json = ask("Say hello.", tools=(NOW,), max_tokens=60, response_format=form(thing(said={"enum": ["hello"]})))
    answer = await fold(model.stream(as_json))
    assert answer.tool_calls or json.loads(answer.text) == {"said": "hello"}


async def the_conversation_goes_on(model: LoadedModel) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages = (
        Message("user", "What is the weather in Paris?"),
        Message("assistant", None, tool_calls=(call,)),
        Message("tool", "22 degrees, sunny", tool_call_id="c1"),
    )
    answer = await fold(model.stream(replace(ask(tools=(WEATHER,), max_tokens=24), messages=messages)))
    assert answer.text or answer.tool_calls
    assert "tool_call>" not in answer.text


def demonstrated() -> GenerationRequest:
    """A conversation in which the model called four times already: even a small one goes on so."""
    messages: list[Message] = []
    for number, city in enumerate(("Rome", "Oslo", "Lima", "Cairo")):
        arguments = json.dumps({"city": city, "unit": "celsius", "days": 1})
        call = {"id": f"c{number}", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
        messages.append(Message("user", f"Weather in {city}?"))
        messages.append(Message("assistant", None, tool_calls=(call,)))
        messages.append(Message("tool", "20 degrees", tool_call_id=f"c{number}"))
        messages.append(Message("assistant", f"20 degrees in {city}."))
    return replace(ask(tools=(WEATHER,), max_tokens=60), messages=(*messages, Message("user", "Weather in Paris?")))


async def it_calls_where_it_is_free_to(model: LoadedModel) -> None:
    events = await events_of(model, demonstrated())
    pieces = [event for event in events if isinstance(event, ToolCallDelta)]
    assert pieces[0].id and pieces[0].name == "get_weather"
    assert len(pieces) > 5, "arguments stream"
    assert json.loads("".join(piece.arguments for piece in pieces))["city"] == "Paris"
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.reason == "tool_calls"
    assert last.usage.prompt_tokens == await model.count_tokens(demonstrated())


@pytest.mark.slow
async def test_a_template_that_knows_tools(
    make_context: MakeContext, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp, "_WORKER", "tests.providers.tool_template_worker")
    async with opened(make_context(context_tokens=1024, slots=2), model_file) as model:
        await it_calls_where_it_is_free_to(model)
        choice = {"type": "function", "function": {"name": "now"}}
        answer = await fold(model.stream(ask("Hello", tools=(WEATHER, NOW), tool_choice=choice, max_tokens=40)))
        assert [call["function"]["name"] for call in answer.tool_calls] == ["now"], "the engine alone lets it talk instead"
        assert answer.finish_reason == "tool_calls"


async def counted_as_sent(model: LoadedModel) -> None:
    for sampling in ({"tools": (WEATHER, NOW)}, {"tools": (WEATHER,), "tool_choice": "required", "max_tokens": 2}):
        request = ask("Hi", **{"max_tokens": 1, **sampling})
        usage = (await fold(model.stream(request))).usage
        assert usage.prompt_tokens == await model.count_tokens(request) > 60


async def bad_parameters_are_refused(model: LoadedModel) -> None:
    for parameters in (
        {"properties": {"a": {"type": "string", "pattern": "("}}},
        {"properties": {"a": False}, "required": ["a"]},
    ):
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        with pytest.raises(InvalidRequest) as caught:
            await fold(model.stream(ask(tools=(tool,))))
        assert caught.value.field == "tools"
    assert (await fold(model.stream(ask(max_tokens=1)))).usage.completion_tokens == 1


NODE = {
    "type": "object",
    "properties": {"v": {"type": "boolean"}, "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
}
SCHEMAS: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
    "nested": (
        thing(
            a=thing(b={"type": "array", "items": {"type": "integer", "minimum": 3, "maximum": 5}, "minItems": 2, "maxItems": 2})
        ),
        lambda made: len(made["a"]["b"]) == 2 and all(3 <= each <= 5 for each in made["a"]["b"]),
    ),
    "enum": (thing(c={"enum": ["rojo", "grün", 3, None]}), lambda made: made["c"] in ("rojo", "grün", 3, None)),
    "numbers": (
        thing(
            p={"type": "number", "minimum": 0.25, "exclusiveMaximum": 0.5},
            q={"type": "integer", "multipleOf": 7, "minimum": 50, "maximum": 60},
        ),
        lambda made: 0.25 <= made["p"] < 0.5 and made["q"] == 56,
    ),
    "pattern": (
        thing(p={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
        lambda made: len(made["p"]) == 6 and made["p"][2] == "-",
    ),
    "length": (thing(p={"type": "string", "minLength": 30, "maxLength": 32}), lambda made: 30 <= len(made["p"]) <= 32),
    "one of": (
        {"oneOf": [thing(k={"const": "a"}, v={"type": "integer", "maximum": 9, "minimum": 0}), thing(k={"const": "b"})]},
        lambda made: set(made) == ({"k", "v"} if made["k"] == "a" else {"k"}),
    ),
    "references": (
        {
            **thing(n={"$ref": "#/$defs/n"}),
            "$defs": {"n": thing(v={"type": "boolean"}, w={"$ref": "#/$defs/m"}), "m": {"const": 1}},
        },
        lambda made: made["n"]["w"] == 1,
    ),
    "array": ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}, lambda made: 1 <= len(made) <= 2),
}
CANNOT: dict[str, dict[str, Any]] = {
    "keyword": {"type": "object", "properties": {"a": {"not": {"type": "string"}}}, "required": ["a"]},
    "loop": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "impossible": thing(a=False),
    "not a pattern": thing(a={"type": "string", "pattern": "("}),
    "look ahead": thing(a={"type": "string", "pattern": "^(?=a)b"}),
    "many patterns": {"allOf": [{"type": "string", "pattern": f"a.{{{20 + number}}}b"} for number in range(8)]},
    "cross product": {"allOf": [{"anyOf": [thing(**{f"k{a}": {"const": b}}) for b in range(10)]} for a in range(10)]},
}
LARGE: dict[str, dict[str, Any]] = {
    "long": {"type": "string", "maxLength": 2**31 - 1},
    "many items": {"type": "array", "items": {"type": "string"}, "minItems": 100_000},
    "many values": {"enum": [f"v{number:06}" for number in range(2500)]},
    "many choices": {"anyOf": [thing(**{f"k{number}": {"type": "string"}}) for number in range(300)]},
    "many properties": {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(400)}},
}


async def test_schemas(make_context: MakeContext, model_file: Path) -> None:
    async with opened(make_context(), model_file) as model:
        pid = model.status().pid
        for name, (schema, holds) in SCHEMAS.items():
            answer = await fold(model.stream(ask("An example.", max_tokens=60, response_format=form(schema))))
            assert answer.finish_reason == "stop", name
            assert holds(json.loads(answer.text)), f"{name}: {answer.text}"
        for name, schema in CANNOT.items():
            with pytest.raises(InvalidRequest) as caught:
                await fold(model.stream(ask("An example.", response_format=form(schema))))
            assert caught.value.field == "response_format", name
        loose = form(CANNOT["keyword"], strict=False)
        assert (await fold(model.stream(ask("An example.", max_tokens=8, response_format=loose)))).text.startswith('{"a": ')
        cut = await fold(model.stream(ask("An example.", max_tokens=5, response_format=form(thing(text={"type": "string"})))))
        assert (cut.finish_reason, cut.text.startswith('{"text": ')) == ("length", True)
        free = await fold(model.stream(ask("An example.", max_tokens=30, response_format={"type": "json_object"})))
        assert free.text.startswith("{")
        assert (model.status().pid, model.status().restarts) == (pid, 0)


@pytest.mark.slow
async def test_large_schemas_leave_the_engine_alive(make_context: MakeContext, model_file: Path) -> None:
    async with opened(make_context(), model_file) as model:
        for name, schema in {**CANNOT, **LARGE}.items():
            other = asyncio.create_task(fold(model.stream(ask("Hi", max_tokens=4))))
            async with asyncio.timeout(60):
                try:
                    answer = await fold(model.stream(ask("An example.", max_tokens=8, response_format=form(schema))))
                    assert answer.text[0] in '"[{', name
                except InvalidRequest:
                    assert name in CANNOT
                assert (await other).usage.completion_tokens == 4
        assert model.status().restarts == 0


async def test_tokens(make_context: MakeContext, model_file: Path) -> None:
    async with opened(make_context(), model_file) as model:
        await probabilities_agree_with_the_choice(model)
        await bias_forces_and_bans(model)
        await stop_words_end_and_are_told(model)
        await penalties_and_top_k(model)
        await a_prompt_is_gone_on_from(model)


async def probabilities_agree_with_the_choice(model: LoadedModel) -> None:
    answer = await fold(model.stream(ask("Count to five.", max_tokens=12, logprobs=3)))
    assert len(answer.logprobs) == answer.usage.completion_tokens
    for entry in answer.logprobs:
        tops = entry["top_logprobs"]
        assert len(tops) == 3
        assert entry["logprob"] == max(top["logprob"] for top in tops), "greedy: the likeliest"
        assert math.fsum(math.exp(top["logprob"]) for top in tops) <= 1.001
        assert bytes(entry["bytes"]).decode() == entry["token"]
    assert "".join(entry["token"] for entry in answer.logprobs).startswith(answer.text)


async def bias_forces_and_bans(model: LoadedModel) -> None:
    plain = await fold(model.stream(ask("Say hello.", max_tokens=1, logprobs=5)))
    first, second = (int(top["id"]) for top in plain.logprobs[0]["top_logprobs"][:2])
    banned = await fold(model.stream(ask("Say hello.", max_tokens=1, logprobs=1, logit_bias={str(first): -100})))
    assert int(banned.logprobs[0]["id"]) == second
    forced = await fold(model.stream(ask("Say hello.", max_tokens=4, logprobs=1, logit_bias={str(second): 100})))
    assert {int(entry["id"]) for entry in forced.logprobs} == {second}
    with pytest.raises(InvalidRequest, match="tokens are 0 to 49151"):
        await fold(model.stream(ask(logit_bias={"49152": 1})))


async def stop_words_end_and_are_told(model: LoadedModel) -> None:
    whole = (await fold(model.stream(ask("Count to twenty.", max_tokens=24)))).text
    stop = whole[9:14]  # across tokens
    answer = await fold(model.stream(ask("Count to twenty.", max_tokens=24, stop=("never", stop, "also never"))))
    assert (answer.text, answer.finish_reason, answer.stop_sequence) == (whole[: whole.index(stop)], "stop", stop)
    raw = replace(ask("One, two, three, four, five", max_tokens=24, stop=(",",)), raw=True)
    answer = await fold(model.stream(raw))
    assert "," not in answer.text
    assert answer.stop_sequence == ("," if answer.finish_reason == "stop" else None)
    unstopped = await fold(model.stream(ask("Count.", max_tokens=3, stop=("never",))))
    assert (unstopped.finish_reason, unstopped.stop_sequence) == ("length", None)


async def penalties_and_top_k(model: LoadedModel) -> None:
    raw = replace(ask("a a a a a a a a a a a a a a a a", max_tokens=16), raw=True)
    plain = await fold(model.stream(raw))
    punished = replace(raw, sampling=replace(raw.sampling, frequency_penalty=2.0, presence_penalty=2.0))
    assert (await fold(model.stream(punished))).text != plain.text
    one = ask("Tell a story.", max_tokens=8, temperature=2.0, top_k=1, seed=5)
    greedy = ask("Tell a story.", max_tokens=8)
    assert (await fold(model.stream(one))).text == (await fold(model.stream(greedy))).text


async def a_prompt_is_gone_on_from(model: LoadedModel) -> None:
    raw = replace(ask("Once upon a", max_tokens=4, logprobs=2), raw=True)
    answer = await fold(model.stream(raw))
    assert answer.text.startswith(" time")
    assert len(answer.logprobs) == 4
    with pytest.raises(InvalidRequest) as caught:
        await fold(model.stream(replace(raw, sampling=replace(raw.sampling, response_format={"type": "json_object"}))))
    assert caught.value.field == "prompt"
