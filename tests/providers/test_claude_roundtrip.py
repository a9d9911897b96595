"""From Anthropic's format through our own types and back: what a caller sent is what the vendor gets."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from app.api.v1.messages_bodies import COUNT, MESSAGES, decode
from app.api.v1.messages_turns import to_request
from app.providers.claude_request import count_body, messages_body
from tests.vendors.anthropic_form import complaint

MARK = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"0" * 32).decode()
PDF = base64.b64encode(b"%PDF-1.7 " + b"0" * 32).decode()
SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"], "additionalProperties": False}
THOUGHT = {
    "type": "thinking",
    "thinking": "Hm.\n\nYes.",
    "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds==",
}
UNSEEN = {"type": "thinking", "thinking": "", "signature": "EtcBCkgIARABGAIiQL8="}
REDACTED = {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix/LafPsn4a"}
TOOL = {"name": "weather", "description": "Weather of a place.", "input_schema": SCHEMA, "strict": True, "cache_control": MARK}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def through(body: dict[str, Any]) -> dict[str, Any]:
    """What the vendor gets for ``body``."""
    request = to_request(decode(json.dumps(body).encode(), MESSAGES), request_id="r")
    made = messages_body(request, model=body["model"], max_tokens=1)
    assert complaint(made, counting=False) is None
    return made


def plain(body: dict[str, Any]) -> dict[str, Any]:
    """``body`` with texts as lists of blocks, neighbours of one role merged: the vendor takes both forms for the same."""
    turns: list[dict[str, Any]] = []
    for turn in body["messages"]:
        blocks = (
            [text(turn["content"])] if isinstance(turn["content"], str) else [_plain_block(each) for each in turn["content"]]
        )
        if turns and turns[-1]["role"] == turn["role"]:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": turn["role"], "content": blocks})
    system = body.get("system")
    made = {**body, "messages": turns}
    if isinstance(system, str):
        made["system"] = [text(system)]
    return made


def _plain_block(block: dict[str, Any]) -> dict[str, Any]:
    if block["type"] == "tool_result" and isinstance(block.get("content"), str):
        return {**block, "content": [text(block["content"])]}
    return block


LEAST: dict[str, Any] = {"model": "claude-x", "max_tokens": 1024, "messages": [{"role": "user", "content": "Hello"}]}
BODIES: dict[str, dict[str, Any]] = {
    "least": LEAST,
    "sampling": {
        **LEAST,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "stop_sequences": ["\n\nHuman:", "END"],
    },
    "system": {**LEAST, "system": [text("One."), text("Two.", cache_control=HOUR)]},
    "tools": {
        **LEAST,
        "tools": [TOOL, {"name": "now", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "now", "disable_parallel_tool_use": True},
    },
    "any tool": {**LEAST, "tools": [TOOL], "tool_choice": {"type": "any"}},
    "no tool": {**LEAST, "tools": [TOOL], "tool_choice": {"type": "none"}},
    "auto": {**LEAST, "tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": False}},
    "budget": {**LEAST, "max_tokens": 16000, "thinking": {"type": "enabled", "budget_tokens": 2048}},
    "adaptive": {
        **LEAST,
        "thinking": {"type": "adaptive", "display": "summarized"},
        "output_config": {"effort": "max", "format": {"type": "json_schema", "schema": SCHEMA}},
    },
    "effort alone": {**LEAST, "output_config": {"effort": "low"}},
    "no thinking": {**LEAST, "thinking": {"type": "disabled"}},
    "media": {
        **LEAST,
        "messages": [
            {
                "role": "user",
                "content": [
                    text("Compare."),
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                        "cache_control": MARK,
                    },
                    {"type": "image", "source": {"type": "url", "url": "https://example.org/a.jpg"}},
                    {
                        "type": "document",
                        "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
                        "title": "A",
                        "context": "B",
                        "cache_control": HOUR,
                    },
                    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hi"}},
                    {"type": "document", "source": {"type": "content", "content": [text("one"), text("two")]}},
                    {"type": "search_result", "source": "https://example.org", "title": "T", "content": [text("found")]},
                ],
            }
        ],
    },
    "a long conversation": {
        **LEAST,
        "tools": [TOOL],
        "messages": [
            {"role": "user", "content": "Weather in León and Cádiz?"},
            {
                "role": "assistant",
                "content": [
                    THOUGHT,
                    REDACTED,
                    text("I look."),
                    {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"place": "León"}, "cache_control": MARK},
                    {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain", "cache_control": MARK},
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_2",
                        "is_error": True,
                        "content": [
                            text("no"),
                            {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
                        ],
                    },
                    text("Well?", cache_control=HOUR),
                ],
            },
            {
                "role": "assistant",
                "content": [
                    UNSEEN,
                    text("Once more."),
                    {"type": "tool_use", "id": "toolu_3", "name": "weather", "input": {"a": [1, 2.5, None, {"b": "ñ🙂"}]}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_3"}]},
            {"role": "assistant", "content": [THOUGHT, text("a"), THOUGHT, text("b")]},
            {"role": "user", "content": "And?"},
            {"role": "user", "content": [text("Now?")]},
            {"role": "assistant", "content": "The answer is"},
        ],
    },
}


@pytest.mark.parametrize("name", BODIES)
def test_what_was_sent_arrives(name: str) -> None:
    assert through(BODIES[name]) == plain(BODIES[name])


@pytest.mark.parametrize("name", BODIES)
def test_what_is_counted_is_what_is_sent(name: str) -> None:
    kept = ("model", "messages", "system", "tools", "tool_choice", "thinking", "output_config")
    body = {field: value for field, value in BODIES[name].items() if field in kept}
    made = count_body(to_request(decode(json.dumps(body).encode(), COUNT), request_id="r"), model="claude-x")
    assert made == plain(body)
    assert complaint(made, counting=True) is None


def test_a_marker_on_all_goes_to_the_last_block() -> None:
    body = {**LEAST, "cache_control": HOUR}
    assert through(body)["messages"] == [{"role": "user", "content": [text("Hello", cache_control=HOUR)]}]


def test_what_ends_here() -> None:
    body = {**LEAST, "metadata": {"user_id": "u"}, "stream": True, "service_tier": "auto"}
    assert through(body) == plain(LEAST)


def test_thinking_of_other_models_is_left_out() -> None:
    unsigned = {"type": "thinking", "thinking": "Hm.", "signature": ""}
    turns = [*LEAST["messages"], {"role": "assistant", "content": [unsigned, text("a")]}, {"role": "user", "content": "b"}]
    assert through({**LEAST, "messages": turns})["messages"][1] == {"role": "assistant", "content": [text("a")]}


def test_an_instruction_in_between_goes_to_the_top() -> None:
    """Every model of the vendor's knows a system prompt at the top; newer ones alone know one between the turns."""
    turns = [*LEAST["messages"], {"role": "system", "content": "Be brief."}, {"role": "user", "content": "b"}]
    made = through({**LEAST, "system": "S", "messages": turns})
    assert made["system"] == [text("S"), text("Be brief.")]
    assert [turn["role"] for turn in made["messages"]] == ["user"]


def _conversation(dice: random.Random) -> list[dict[str, Any]]:
    """Turns in any order of blocks that the vendor takes."""
    turns: list[dict[str, Any]] = []
    calls: list[str] = []
    blocks: list[Callable[[], dict[str, Any]]] = [
        lambda: text(f"t{dice.random()}", **({"cache_control": MARK} if dice.random() < 0.3 else {})),
        lambda: dict(dice.choice((THOUGHT, UNSEEN, REDACTED))),
        lambda: {"type": "tool_use", "id": f"toolu_{dice.getrandbits(40)}", "name": "f", "input": {"n": dice.random()}},
    ]
    for _ in range(dice.randint(1, 6)):
        results = [{"type": "tool_result", "tool_use_id": each, "content": [text(f"r{dice.random()}")]} for each in calls]
        images = [{"type": "image", "source": {"type": "url", "url": f"https://example.org/{dice.random()}.png"}}]
        turns.append({"role": "user", "content": [*results, *dice.sample(images, dice.randint(0, 1)), blocks[0]()]})
        answer = [dice.choice(blocks)() for _ in range(dice.randint(1, 7))]
        calls = [block["id"] for block in answer if block["type"] == "tool_use"]
        turns.append({"role": "assistant", "content": answer})
    turns.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": each} for each in calls] or "Go on."})
    return turns


@pytest.mark.parametrize("seed", range(200))
def test_conversations_of_any_order_arrive(seed: int) -> None:
    body = {**LEAST, "messages": _conversation(random.Random(seed))}
    assert through(body) == plain(body)
