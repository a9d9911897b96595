"""``/v1/messages`` and its count of tokens over real sockets, in the vendor's words, on the echo provider."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.api.events import read_events
from tests.api.messages import COUNT, MARK, PATH, PDF, PNG, TIME, WEATHER, ask, body, folded, refused, stream
from tests.conftest import Serve, Service, make_settings, running


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client(service.user()) as connected:
        yield connected


# Whole answers


def test_a_whole_answer(service: Service, client: httpx.Client) -> None:
    answer = client.post(PATH, json=body("good morning", system="Be kind."))
    message = answer.json()
    extra = message.pop("aprendiz")
    usage = message.pop("usage")
    assert message == {
        "id": message["id"],
        "type": "message",
        "role": "assistant",
        "model": "echo/echo",
        "content": [{"type": "text", "text": "good morning"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
    }
    assert set(usage) == {"input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"}
    assert usage["output_tokens"] == 2
    assert usage["input_tokens"] > 0
    assert set(extra) == {"version", "cached", "fallback", "feedback_token", "examples"}
    with service.client(service.user()) as stranger:
        rated = stranger.post("/feedback", json={"feedback_token": extra["feedback_token"], "rating": "up"})
    assert rated.status_code == 201
    assert client.post("/feedback", json={"prediction_id": message["id"], "rating": "up"}).status_code == 201


def test_headers_of_an_answer(client: httpx.Client) -> None:
    for sent in (body(), body(stream=True)):
        answer = client.post(PATH, json=sent, headers={"anthropic-version": "2023-06-01", "anthropic-beta": "a,b"})
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
        assert int(answer.headers["anthropic-ratelimit-requests-limit"]) == 1_000_000
        assert int(answer.headers["anthropic-ratelimit-requests-remaining"]) < 1_000_000
        reset = datetime.fromisoformat(answer.headers["anthropic-ratelimit-requests-reset"])
        assert timedelta() - timedelta(seconds=2) <= reset - datetime.now(UTC) <= timedelta(minutes=2)
        assert answer.headers["cache-control"] == "no-store"


def test_both_carriers_of_a_key(service: Service) -> None:
    with service.client(service.admin()) as admin:
        key = admin.post("/auth/keys", json={"name": "sdk", "scopes": ["predict"]}).json()["key"]
    with service.client() as client:
        for headers in ({"x-api-key": key}, {"Authorization": f"Bearer {key}"}):
            assert client.post(PATH, json=body(), headers=headers).status_code == 200
            assert client.post(COUNT, json={"model": "default", "messages": body()["messages"]}, headers=headers).is_success


def test_an_answer_that_is_cut(client: httpx.Client) -> None:
    message = ask(client, "one two three", max_tokens=2)
    assert (message["stop_reason"], message["content"][0]["text"]) == ("max_tokens", "one two")


def test_a_stop_sequence_is_named(client: httpx.Client) -> None:
    message = ask(client, "one two three four", stop_sequences=["four", "three"])
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "three")
    assert message["content"] == [{"type": "text", "text": "one two"}]
    whole = ask(client, "one two", stop_sequences=["three"])
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("end_turn", None)


def test_an_answer_in_a_given_form(client: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "schema": schema}
    for more in ({"output_config": {"format": form, "effort": "low"}}, {"output_format": form}):
        message = ask(client, "a number", **more)
        assert isinstance(json.loads(message["content"][0]["text"])["n"], int)


def test_edits_of_the_context_are_said_not_to_be_made(client: httpx.Client) -> None:
    edits = {"edits": [{"type": "clear_tool_uses_20250919", "keep": {"type": "tool_uses", "value": 3}}]}
    assert ask(client, context_management=edits)["context_management"] == {"applied_edits": []}
    assert stream(client, context_management=edits)[-2][1]["context_management"] == {"applied_edits": []}
    assert "context_management" not in ask(client)


# Streams


def test_a_stream_is_the_whole_answer_in_pieces(client: httpx.Client) -> None:
    events = stream(client, "one two three")
    assert [name for name, _ in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    message, whole = folded(events), ask(client, "one two three")
    assert message["id"] != whole["id"]
    for name in ("type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"):
        assert message[name] == whole[name]
    assert set(message["aprendiz"]) == set(whole["aprendiz"])
    assert client.post("/feedback", json={"prediction_id": message["id"], "rating": "down"}).status_code == 201


def test_events_are_as_the_vendor_writes_them(client: httpx.Client) -> None:
    text = client.post(PATH, json=body('say "ñ\n"', stream=True)).text
    assert text.startswith('event: message_start\ndata: {"type":"message_start","message":{')
    assert 'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n' in text
    assert (
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":" \\"ñ"}}\n\n'
    ) in text
    assert text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')


def test_an_engine_that_dies_is_an_error_event(serve: Serve) -> None:
    service = serve(model={"provider": "echo", "model": "breaks"})
    with service.client(service.user()) as client:
        answer = client.post(PATH, json=body("one two three four five", stream=True))
        events = read_events(answer.text)
        whole = client.post(PATH, json=body("one two three four five"))
    assert answer.status_code == 200
    name, data = events[-1]
    assert name == data["type"] == "error"
    assert data["error"]["type"] == "api_error"
    assert data["request_id"] == answer.headers["request-id"]
    assert "message_stop" not in [each for each, _ in events]
    assert whole.status_code == 503
    assert whole.json()["error"]["type"] == "api_error"


# Tools


def test_a_round_trip_of_tools(client: httpx.Client) -> None:
    first = ask(client, 'call get_weather {"city": "Łódź"}\ncall get_time {}', tools=[WEATHER, TIME])
    assert first["stop_reason"] == "tool_use"
    calls = [block for block in first["content"] if block["type"] == "tool_use"]
    assert [(call["name"], call["input"]) for call in calls] == [("get_weather", {"city": "Łódź"}), ("get_time", {})]
    assert len({call["id"] for call in calls}) == 2
    results = [
        {"type": "tool_result", "tool_use_id": calls[0]["id"], "content": [{"type": "text", "text": "rain"}]},
        {"type": "tool_result", "tool_use_id": calls[1]["id"], "content": "noon", "is_error": True, "cache_control": MARK},
    ]
    turns = [*body("x")["messages"], {"role": "assistant", "content": first["content"]}, {"role": "user", "content": results}]
    second = client.post(PATH, json={**body(tools=[WEATHER, TIME]), "messages": turns}).json()
    assert second["stop_reason"] == "end_turn"
    assert "noon" in second["content"][0]["text"]


def test_streamed_tools_are_the_whole_ones(client: httpx.Client) -> None:
    asked = 'call get_weather {"city": "Łódź"}\ncall get_time {}'
    message, whole = folded(stream(client, asked, tools=[WEATHER, TIME])), ask(client, asked, tools=[WEATHER, TIME])
    assert message["content"] == whole["content"]
    assert message["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"type": "auto"}, []),
        ({"type": "none"}, []),
        ({"type": "any"}, ["get_weather"]),
        ({"type": "any", "disable_parallel_tool_use": True}, ["get_weather"]),
        ({"type": "tool", "name": "get_time"}, ["get_time"]),
    ],
)
def test_a_choice_of_tools(client: httpx.Client, choice: dict[str, Any], names: list[str]) -> None:
    content = ask(client, "hello", tools=[WEATHER, TIME], tool_choice=choice)["content"]
    assert [block["name"] for block in content if block["type"] == "tool_use"] == names


def test_one_call_at_a_time(client: httpx.Client) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    content = ask(client, "call get_time {}\ncall get_time {}", tools=[TIME], tool_choice=choice)["content"]
    assert len([block for block in content if block["type"] == "tool_use"]) == 1


def test_a_tool_may_carry_all_that_is_documented(client: httpx.Client) -> None:
    tool = {
        **WEATHER,
        "type": "custom",
        "strict": True,
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
        "input_examples": [{"city": "Graz"}],
        "eager_input_streaming": True,
        "defer_loading": False,
        "allowed_callers": ["direct"],
    }
    assert ask(client, "hello", tools=[tool])["stop_reason"] == "end_turn"


# Thinking


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = make_settings(tmp_path_factory.mktemp("thinker"), model={"model": "thinks"})
    with running(settings) as service, service.client(service.user()) as connected:
        yield connected


def test_thinking_comes_before_the_text(thinker: httpx.Client) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024, "display": "summarized"}
    message = ask(thinker, "one two", thinking=thinking, max_tokens=2000)
    assert [block["type"] for block in message["content"]] == ["thinking", "text"]
    assert message["content"][0]["signature"] == ""
    assert message["content"][0]["thinking"]
    assert 0 < message["usage"]["output_tokens_details"]["thinking_tokens"] <= message["usage"]["output_tokens"]
    streamed = folded(stream(thinker, "one two", thinking=thinking, max_tokens=2000))
    assert streamed["content"] == message["content"]
    turns = [*body("x")["messages"], {"role": "assistant", "content": message["content"]}, *body("again")["messages"]]
    again = thinker.post(PATH, json={**body(), "messages": turns})
    assert again.json()["content"][-1]["text"] == "again"


# What is taken

ACCEPTED: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "plain"}]},
    {"system": [{"type": "text", "text": "a", "cache_control": MARK}, {"type": "text", "text": "b"}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, {"role": "user", "content": "c"}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "prefill ("}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": []}, {"role": "user", "content": "c"}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "\x1b[31mb\x1b[0m"}]},
    {"temperature": 0, "top_p": 1, "top_k": 0},
    {"temperature": 1.0, "top_p": 0.5},
    {"metadata": {"user_id": "u-1"}, "service_tier": "standard_only", "speed": "standard"},
    {"metadata": {}, "service_tier": None, "container": None, "mcp_servers": [], "inference_geo": None, "stream": None},
    {"thinking": {"type": "disabled"}},
    {"thinking": {"type": "adaptive", "display": "omitted"}, "output_config": {"effort": "max"}},
    {"thinking": {"type": "between_tools"}, "output_config": {"effort": None, "format": None}},
    {"cache_control": {"type": "ephemeral", "ttl": "5m", "scope": "global"}},
    {"tool_choice": {"type": "none"}},
    {"tools": []},
    {"stop_sequences": []},
    {"max_tokens": 1_000_000},
]


@pytest.mark.parametrize("more", ACCEPTED, ids=lambda more: ",".join(more))
def test_what_is_documented_is_taken(client: httpx.Client, more: dict[str, Any]) -> None:
    assert ask(client, **more)["type"] == "message"


def test_unknown_headers_and_query_are_let_be(client: httpx.Client) -> None:
    assert client.post(f"{PATH}?beta=true", json=body(), headers={"x-stainless-lang": "js"}).status_code == 200


BLOCKS: list[dict[str, Any]] = [
    {"type": "text", "text": "a", "cache_control": MARK, "citations": []},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}, "cache_control": MARK},
    {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}, "transformations": {}},
    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "read me"}, "title": "T"},
    {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "read"}]}, "context": "C"},
    {"type": "document", "source": {"type": "content", "content": "read"}, "citations": {"enabled": False}},
    {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}},
    {"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "found"}]},
]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: str(block["type"]))
def test_blocks_beside_text(client: httpx.Client, block: dict[str, Any]) -> None:
    assert ask(client, block, "and this")["content"][0]["text"].endswith("and this")
    result = {"type": "tool_result", "tool_use_id": "t", "content": [block, {"type": "text", "text": "and this"}]}
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": [1, 2.5, None]}, "caller": {"type": "direct"}}
    turns = [*body("x")["messages"], {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    assert client.post(PATH, json={**body(), "messages": turns}).status_code == 200


# Who may, and how often


def test_who_may_ask(service: Service) -> None:
    with service.client(service.admin()) as admin:
        key = admin.post("/auth/keys", json={"name": "reads", "scopes": ["read"]}).json()["key"]
    for path in (PATH, COUNT):
        with service.client() as client:
            assert refused(client, body(), path)[0] == 401
            client.headers["x-api-key"] = "apz_wrong"
            assert refused(client, b"not read", path)[0] == 401
            client.headers["x-api-key"] = key
            assert refused(client, body(), path)[0] == 403


def test_the_limit_counts_both_routes(serve: Serve) -> None:
    service = serve(rate_limits={"predict": "2/minute"})
    with service.client(service.user()) as client:
        first = client.post(PATH, json=body())
        counted = client.post(COUNT, json={"model": "default", "messages": body()["messages"]})
        assert [each.headers["anthropic-ratelimit-requests-remaining"] for each in (first, counted)] == ["1", "0"]
        answer = client.post(PATH, json=body())
    assert answer.status_code == 429
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert 0 < int(answer.headers["retry-after"]) <= 66


# Counting


def test_tokens_are_counted_as_an_answer_would(client: httpx.Client) -> None:
    more = {"system": "Be kind.", "tools": [WEATHER], "tool_choice": {"type": "none"}}
    asked = body("one two three four", **more)
    del asked["max_tokens"]
    counted = client.post(COUNT, json=asked)
    assert counted.status_code == 200
    assert counted.headers["request-id"] == counted.headers["x-request-id"]
    assert counted.json() == {"input_tokens": ask(client, "one two three four", **more)["usage"]["input_tokens"]}


@pytest.mark.parametrize("more", [{"max_tokens": 1}, {"stream": True}, {"temperature": 1}, {"metadata": {}}])
def test_a_count_takes_nothing_that_only_an_answer_needs(client: httpx.Client, more: dict[str, Any]) -> None:
    status, said = refused(client, {"model": "default", "messages": body()["messages"], **more}, COUNT)
    assert status == 400
    assert said == f"{next(iter(more))}: Extra inputs are not permitted"


# The cache


def test_a_caller_may_accept_a_kept_answer(client: httpx.Client) -> None:
    headers = {"Cache-Control": "max-age=60"}
    asked = body("keep this", tools=[TIME], temperature=1)
    first = client.post(PATH, json=asked, headers=headers)
    again = client.post(PATH, json=asked, headers=headers)
    streamed = client.post(PATH, json={**asked, "stream": True}, headers=headers)
    assert [each["aprendiz"]["cached"] for each in (first.json(), again.json())] == [False, True]
    message = folded(read_events(streamed.text))
    assert message["aprendiz"]["cached"] is True
    assert message["content"] == first.json()["content"]
