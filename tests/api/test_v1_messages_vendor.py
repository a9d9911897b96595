"""The Messages API with the Messages API behind it: what the vendor says reaches the caller, and back, with nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.api.events import read_events
from tests.api.messages import COUNT, PATH, folded, refused
from tests.conftest import make_settings, running
from tests.vendors.anthropic_server import (
    KEY,
    MODEL,
    AnthropicServer,
    as_stream,
    error_event,
    events,
    failure,
    message,
    sse,
    text,
    thinking,
    tool_use,
)

NAME = f"far/{MODEL}"
REDACTED = {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"}
TOOLS = [{"name": name, "input_schema": {"type": "object"}} for name in ("f", "g")]
ASK: dict[str, Any] = {
    "model": NAME,
    "max_tokens": 500,
    "messages": [{"role": "user", "content": "What now?"}],
    "tools": TOOLS,
}
ANSWERS: dict[str, Any] = {
    "text": message(text("¡Hola, 漢字 🙂!")),
    "nothing": message(),
    "thinking": message(thinking("Hm.\nYes.", "c2lnMQ=="), text("Well.")),
    "unseen thinking": message(thinking("", "c2lnMQ=="), text("Well.")),
    "redacted": message(REDACTED, thinking("a", "c2lnMg=="), REDACTED, text("Well.")),
    "interleaved": message(
        thinking("a", "czE="), text("One."), thinking("b", "czI="), tool_use("toolu_1", "f", a=1), stop_reason="tool_use"
    ),
    "tools": message(
        text("Look."), tool_use("toolu_1", "f", a="ñ", b=[1.5, None]), tool_use("toolu_2", "g"), stop_reason="tool_use"
    ),
    "cut": message(text("one two"), stop_reason="max_tokens"),
    "stopped": message(text("one"), stop_reason="stop_sequence", stop_sequence="END"),
    "refused": message(text("I"), stop_reason="refusal"),
    "cached": message(
        text("a"),
        input_tokens=3,
        output_tokens=9,
        cache_read_input_tokens=100,
        cache_creation_input_tokens=7,
        output_tokens_details={"thinking_tokens": 4},
    ),
}


class Between:
    """A caller and the vendor, with the service in between."""

    def __init__(self, client: httpx.Client, vendor: AnthropicServer) -> None:
        self.vendor = vendor
        self._client = client

    async def post(self, body: dict[str, Any], path: str = PATH) -> httpx.Response:
        return await asyncio.to_thread(self._client.post, path, json=body)

    async def refused(self, body: dict[str, Any]) -> tuple[int, str]:
        return await asyncio.to_thread(refused, self._client, body)


@pytest.fixture
async def between(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Between]:
    async with AnthropicServer() as vendor:
        upstream = {"kind": "claude", "base_url": vendor.url, "api_key": KEY, "models": [MODEL]}
        route = {"targets": [{"model": NAME}], "retries": 0}
        sections = {"providers": {"upstreams": {"far": upstream}}, "routing": {"models": {"once": route}}}
        settings = make_settings(tmp_path_factory.mktemp("vendor"), **sections)
        context = running(settings)
        service = await asyncio.to_thread(context.__enter__)
        try:
            user = await asyncio.to_thread(service.user)
            with service.client(user) as client:
                yield Between(client, vendor)
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)


def _told(answer: dict[str, Any]) -> dict[str, Any]:
    """What of the vendor's answer a caller can tell."""
    content = [{name: value for name, value in block.items() if name != "citations"} for block in answer["content"]]
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    usage = {name: answer["usage"].get(name, 0) for name in names}
    thoughts = answer["usage"].get("output_tokens_details")
    return {
        "content": content,
        "stop": (answer["stop_reason"], answer["stop_sequence"]),
        "usage": usage if thoughts is None else {**usage, "output_tokens_details": thoughts},
    }


async def test_answers_arrive_as_they_were_given(between: Between) -> None:
    for name, answer in ANSWERS.items():
        between.vendor.push(answer, answer)
        whole = await between.post(ASK)
        streamed = await between.post({**ASK, "stream": True})
        assert whole.status_code == streamed.status_code == 200, (name, whole.text, streamed.text)
        assert _told(whole.json()) == _told(answer), name
        assert _told(folded(read_events(streamed.text))) == _told(answer), name
        assert whole.json()["model"] == NAME


async def test_an_answer_goes_back_as_it_came(between: Between) -> None:
    """The vendor signs its thinking, and takes it back only unchanged and in its place."""
    for name in ("thinking", "unseen thinking", "redacted", "interleaved", "tools"):
        between.vendor.push(ANSWERS[name])
        content = (await between.post(ASK)).json()["content"]
        results = [
            {"type": "tool_result", "tool_use_id": block["id"], "content": [{"type": "text", "text": "done"}]}
            for block in content
            if block["type"] == "tool_use"
        ]
        turns = [
            *ASK["messages"],
            {"role": "assistant", "content": content},
            {"role": "user", "content": results or [{"type": "text", "text": "Go on."}]},
        ]
        assert (await between.post({**ASK, "messages": turns})).status_code == 200, name
        sent = between.vendor.received[-1].body["messages"]
        assert sent[1]["content"] == content, name
        assert sent[2]["content"] == turns[2]["content"], name


@pytest.mark.parametrize(
    ("status", "ours", "kind"),
    [(400, 400, "invalid_request_error"), (403, 502, "api_error"), (529, 529, "overloaded_error")],
)
async def test_errors_of_the_vendor(between: Between, status: int, ours: int, kind: str) -> None:
    between.vendor.push(failure(status))
    answer = await between.post({**ASK, "model": "once", "stream": status == 529})
    assert (answer.status_code, answer.json()["error"]["type"]) == (ours, kind)
    assert "Some words" not in answer.text


async def test_an_error_in_the_middle_of_a_stream(between: Between) -> None:
    begun = list(events(message(text("one two three"))))[:4]
    between.vendor.push(as_stream(sse([*begun, error_event("overloaded_error")]), pause_s=0.1))
    found = read_events((await between.post({**ASK, "stream": True})).text)
    assert [name for name, _ in found[-2:]] == ["content_block_delta", "error"]
    assert found[-1][1]["error"]["type"] == "overloaded_error"


async def test_a_stream_that_is_cut_has_no_end(between: Between) -> None:
    begun = list(events(message(text("one two three"))))[:4]
    between.vendor.push(as_stream(sse(begun), pause_s=0.1, cut=True))
    found = read_events((await between.post({**ASK, "stream": True})).text)
    assert [name for name, _ in found[-2:]] == ["content_block_delta", "error"]
    assert found[-1][1]["error"]["type"] == "api_error"


async def test_arguments_that_are_no_json_are_shown(between: Between) -> None:
    broken = [
        {"type": "message_start", "message": message()},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": '{"a": '}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
    ]
    between.vendor.push(broken)
    streamed = read_events((await between.post({**ASK, "stream": True})).text)
    pieces = [data["delta"]["partial_json"] for name, data in streamed if name == "content_block_delta"]
    assert "".join(pieces) == '{"a": '
    assert streamed[-2][1]["delta"]["stop_reason"] == "max_tokens"


async def test_the_vendor_counts(between: Between) -> None:
    answer = await between.post({"model": NAME, "messages": ASK["messages"], "system": "Be kind."}, COUNT)
    assert answer.json() == {"input_tokens": 4}
    assert between.vendor.received[-1].path == COUNT


async def test_what_only_the_vendor_can_refuse(between: Between) -> None:
    status, said = await between.refused({**ASK, "messages": [{"role": "user", "content": "word " * 3000}]})
    assert (status, said.split(":")[0]) == (400, "prompt is too long")
