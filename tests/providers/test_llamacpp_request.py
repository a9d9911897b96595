"""What llama.cpp is asked: tools and their history in plain turns, limits of schemas, refusals that name the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from app.core.errors import InvalidRequest
from app.core.settings import Model
from app.core.types import GenerationRequest, Message
from app.providers.contract import ask
from app.providers.llamacpp_limits import check_size, pattern_size
from app.providers.llamacpp_request import Forms, chat, raw

SETTINGS = Model()
OURS = Forms(native_tools=False, grammars=True, thinks=False, vocabulary=1000)
NATIVE = replace(OURS, native_tools=True)


def tool(name: str = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def call(number: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_history_in_plain_turns() -> None:
    messages = (
        Message("system", "Be brief."),
        Message("user", "Paris?"),
        Message("assistant", None, tool_calls=(call("1", "a", '{"x": 1}'), call("2", "b", ""))),
        Message("tool", "20 C <|im_end|>", tool_call_id="1"),
        Message("tool", [{"type": "text", "text": "gone"}], tool_call_id="2", is_error=True),
        Message("user", "And?"),
        Message("user", "Well?"),
    )
    asked = chat(replace(ask(tools=(tool(description="Does </s> it."),)), messages=messages), SETTINGS, OURS)
    turns = asked.body["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "user"], "results and words are one turn"
    assert turns[0]["content"].startswith("Be brief.\n\nYou can call functions.")
    assert "Does <\u200b/s> it." in turns[0]["content"]
    first = '<tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>'
    assert turns[2]["content"] == first + '\n<tool_call>\n{"name": "b", "arguments": {}}\n</tool_call>'
    assert turns[3]["content"] == (
        "<tool_response>\n20 C <\u200b|im_end|>\n</tool_response>\n<tool_response>\nError: gone\n</tool_response>\nAnd?"
    )
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & asked.body.keys()
    assert asked.reads_calls
    without = chat(GenerationRequest(messages), SETTINGS, OURS)
    assert without.body["messages"][0]["content"] == "Be brief."
    assert [turn["role"] for turn in without.body["messages"]] == ["system", "user", "assistant", "user", "user"]


def test_the_ways_to_choose() -> None:
    tools = (tool("a"), tool("b"))
    named = {"type": "function", "function": {"name": "b"}}

    def start(**sampling: Any) -> str:
        grammar = chat(ask(tools=tools, **sampling), SETTINGS, OURS).grammar
        assert grammar is not None
        return grammar.text.split("\n")[1]

    assert start() == start(tool_choice="auto") == "start: PLAIN | CALLING body"
    assert start(tool_choice="required") == start(tool_choice=named) == 'start: "<tool_call>" body'
    assert start(response_format={"type": "json_object"}) == 'start: said | "<tool_call>" body'
    only = chat(ask(tools=tools, tool_choice=named), SETTINGS, OURS)
    assert only.grammar is not None
    assert 'name\\": \\"b' in only.grammar.text
    assert 'name\\": \\"a' not in only.grammar.text
    none = chat(ask(tools=tools, tool_choice="none"), SETTINGS, OURS)
    assert (none.grammar, none.reads_calls, len(none.body["messages"])) == (None, False, 1)
    several = chat(ask(tools=tools, parallel_tool_calls=True), SETTINGS, OURS).grammar
    one = chat(ask(tools=tools, parallel_tool_calls=False), SETTINGS, OURS).grammar
    assert several is not None and one is not None
    assert "{0,15}" in several.text
    assert "{0,15}" not in one.text
    with pytest.raises(InvalidRequest) as caught:
        chat(ask(tools=tools, tool_choice={"type": "function", "function": {"name": "c"}}), SETTINGS, OURS)
    assert caught.value.field == "tool_choice"


def test_templates_that_know_tools_keep_their_way() -> None:
    tools = (tool("a"), tool("b", description="x <|im_end|>"))
    asked = chat(ask(tools=tools, tool_choice="auto", parallel_tool_calls=False), SETTINGS, NATIVE)
    assert (asked.grammar, asked.reads_calls, asked.body["parallel_tool_calls"]) == (None, False, False)
    assert asked.body["tools"] == [tool("a"), tool("b", description="x <\u200b|im_end|>")]
    named: dict[str, Any] = {"type": "function", "function": {"name": "b"}}
    poor = replace(NATIVE, grammars=False)
    asked = chat(ask(tools=tools, tool_choice=named), SETTINGS, poor)
    assert asked.body["tool_choice"] == "required"
    assert [each["function"]["name"] for each in asked.body["tools"]] == ["b"]
    held: list[dict[str, Any]] = [{"tool_choice": named}, {"logprobs": 2}, {"response_format": {"type": "json_object"}}]
    for sampling in held:
        asked = chat(ask(tools=tools, **sampling), SETTINGS, NATIVE)
        assert (asked.reads_calls, "tools" in asked.body) == (True, False), "the engine would not hold it"
    assert refused(ask(tools=tools, response_format={"type": "json_object"}), poor) == "response_format"
    history = (Message("user", "a"), Message("assistant", None, tool_calls=(call("1", "a", "{}"),)), Message("tool", "b"))
    asked = chat(replace(ask(tools=tools), messages=history), SETTINGS, NATIVE)
    assert [turn["role"] for turn in asked.body["messages"]] == ["user", "assistant", "tool"]
    form = {"type": "json_object"}
    assert chat(ask(response_format=form), SETTINGS, NATIVE).grammar is not None
    for forms in (replace(NATIVE, thinks=True), replace(NATIVE, grammars=False)):
        asked = chat(ask(response_format=form), SETTINGS, forms)
        assert (asked.grammar, asked.body["response_format"]) == (None, form), "left to the engine"


def refused(request: GenerationRequest, forms: Forms = OURS, build: Any = chat) -> str | None:
    with pytest.raises(InvalidRequest) as caught:
        build(request, SETTINGS, forms)
    assert len(caught.value.detail) > 20
    return caught.value.field


def test_what_cannot_be_is_refused_by_name() -> None:
    assert refused(ask(tools=(tool(),)), replace(OURS, grammars=False)) == "tools"
    assert refused(ask(tools=(tool(),), logprobs=2), replace(NATIVE, grammars=False)) == "logprobs"
    spelled: list[dict[str, Any]] = [{"properties": {"<|im_end|>": {}}}, {"properties": {"a": {"enum": ["</s>"]}}}]
    for schema in spelled:
        assert refused(ask(tools=(tool(parameters=schema),))) == "tools"
    for token in ("1000", "-1", "99999999999", "a", "²"):
        assert refused(ask(logit_bias={token: 1})) == "logit_bias"
    assert chat(ask(logit_bias={"999": 1, "0": -100}), SETTINGS, OURS).body["logit_bias"] == {"999": 1, "0": -100}
    assert refused(ask(tools=(tool(),)), build=raw) == "prompt"
    assert refused(ask(response_format={"type": "json_object"}), build=raw) == "prompt"


def wide(count: int, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(count)}, **more}


@pytest.mark.parametrize(
    "schema",
    [
        wide(401),
        {"type": "array", "items": {"anyOf": [wide(150), wide(150), wide(150)]}},
        {"type": "string", "pattern": "^((a{1,99}){1,99}){1,99}$"},
        {"type": "string", "pattern": "a{999999999}"},
        {"allOf": [{"type": "string", "pattern": f"a.{{{number}}}b"} for number in range(9)]},
        {"type": "object", "patternProperties": {f"^a{number}": {"type": "string"} for number in range(9)}},
        {"anyOf": [{"type": "string", "pattern": f"a{number}"} for number in range(65)]},
    ],
)
def test_too_much_for_the_engine(schema: Mapping[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        check_size(schema, "response_format")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert refused(ask(response_format=form)) == "response_format"
    assert refused(ask(tools=(tool(),), response_format=form)) == "response_format"
    assert refused(ask(tools=(tool(parameters={"type": "object", "properties": {"a": schema}}),))) == "tools"


def test_what_people_use_is_not_too_much() -> None:
    uuid = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
    check_size(wide(800, required=[f"p{number}" for number in range(800)]), "tools")
    check_size({"type": "object", "properties": {f"p{number}": {"pattern": uuid} for number in range(60)}}, "tools")
    assert pattern_size(uuid) < 50
    assert pattern_size(r"\{5\}[]a]{3}(b|cc){2}") == 12
