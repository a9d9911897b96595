"""The estimate of a prompt's tokens against what a real tokenizer counts: SmolLM2's, whose 49,152 entries are few."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.core.types import GenerationRequest, Message, Sampling
from app.providers.estimate import prompt_tokens, text_tokens

ENGLISH = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief. "
)
GERMAN = (
    "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist Verpflichtung aller staatlichen Gewalt. "
    "Rechtsschutzversicherungsgesellschaften. "
)
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. "
CHINESE = "道可道，非常道。名可名，非常名。无名天地之始，有名万物之母。今天天气很好，我们去公园散步吧。"
THAI = "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ "
RECORDS = json.dumps([{"id": i, "name": f"name{i}", "tags": ["a", "b"], "value": i * 1.5} for i in range(50)])


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        (ENGLISH * 5, 181),
        (GERMAN * 5, 276),
        (RUSSIAN * 5, 355),
        (CHINESE * 5, 385),
        (THAI * 5, 610),
        ("🙂👩‍👩‍👧🎉🚀🇪🇸❤️" * 20, 620),
        ("THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG. " * 10, 201),
        ("0123456789" * 50, 500),
        (RECORDS, 1624),
    ],
)
def test_it_is_near_and_rather_too_high(text: str, counted: int) -> None:
    assert 0.95 * counted <= text_tokens(text) <= 1.5 * counted


def test_nothing_and_half_a_surrogate_pair() -> None:
    assert text_tokens("") == 0
    assert text_tokens("\ud800") == 2


def tokens(*messages: Message, **sampling: Any) -> int:
    return prompt_tokens(GenerationRequest(messages, sampling=Sampling(**sampling)))


def test_everything_that_is_sent_counts() -> None:
    bare = tokens(Message("user", "Hello"))
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "x" * 300}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "description": "x" * 300}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"description": "x" * 300}}}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 100_000, "format": "wav"}}
    assert bare >= 64
    assert tokens(Message("system", "x" * 300), Message("user", "Hello")) >= bare + 100
    assert tokens(Message("user", [{"type": "text", "text": "Hello"}])) == bare
    assert tokens(Message("user", "Hello"), Message("assistant", None, tool_calls=(call,))) >= bare + 100
    assert tokens(Message("user", "Hello"), tools=(tool,)) >= bare + 100
    assert tokens(Message("user", "Hello"), response_format=form) >= bare + 100
    assert bare + 1000 < tokens(Message("user", [{"type": "text", "text": "Hello"}, picture])) < bare + 3000
    assert bare + 2000 < tokens(Message("user", [{"type": "text", "text": "Hello"}, sound])) < bare + 4000
