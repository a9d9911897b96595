"""``/v1/chat/completions`` over real sockets, in OpenAI's words, on the echo provider."""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Account, Serve, Service

PATH = "/v1/chat/completions"
PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 16).decode()
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Says how it is.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            "strict": True,
        },
    }
    for name in ("weather", "time")
]
TWO_CALLS = 'call weather {"city":"Paris"}\ncall time {"city":"Rome"}'


@pytest.fixture(scope="module")
def user(service: Service) -> Account:
    return service.user()


@pytest.fixture(scope="module")
def client(service: Service, user: Account) -> Iterator[httpx.Client]:
    with service.client(user) as connected:
        yield connected


def body(said: Any = "good morning", **more: Any) -> dict[str, Any]:
    return {"model": "default", "messages": [{"role": "user", "content": said}], **more}


def ask(client: httpx.Client, said: Any = "good morning", **more: Any) -> dict[str, Any]:
    """A whole answer."""
    answer = client.post(PATH, json=body(said, **more))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def stream(client: httpx.Client, said: Any = "good morning", **more: Any) -> list[dict[str, Any]]:
    """The chunks of an answer that ends as it should."""
    answer = client.post(PATH, json=body(said, stream=True, **more))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


def refused(client: httpx.Client, **more: Any) -> dict[str, Any]:
    """The error of a request that is not valid."""
    answer = client.post(PATH, json=body(**more))
    assert answer.status_code == 400, answer.text
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["type"] == "invalid_request_error"
    return found


def stored_input(service: Service, prediction_id: str) -> dict[str, Any]:
    with contextlib.closing(sqlite3.connect(service.settings.data_dir / "aprendiz.db")) as database:
        (row,) = database.execute("SELECT input FROM predictions WHERE id = ?", (prediction_id,)).fetchall()
    found: dict[str, Any] = json.loads(row[0])
    return found


def rate(service: Service, user: Account, prediction_id: str) -> int:
    with service.client(user) as client:
        return client.post("/feedback", json={"prediction_id": prediction_id, "rating": "up"}).status_code


def test_a_whole_answer_has_the_vendors_form(service: Service, client: httpx.Client, user: Account) -> None:
    answer = client.post(PATH, json=body())
    found = answer.json()
    assert list(found) == [
        "id", "object", "created", "model", "choices", "usage", "system_fingerprint", "aprendiz"
    ]  # fmt: skip
    assert found["object"] == "chat.completion"
    assert found["model"] == "echo/echo"
    assert found["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "good morning", "refusal": None, "annotations": []},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    usage = found["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == 2
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["completion_tokens_details"]["reasoning_tokens"] == 0
    assert found["aprendiz"]["version"] == found["system_fingerprint"]
    assert found["aprendiz"]["fallback"] is None
    assert found["aprendiz"]["cached"] is False
    assert rate(service, user, found["id"]) == 201
    with service.client() as anyone:
        vote = {"feedback_token": found["aprendiz"]["feedback_token"], "rating": "down"}
        assert anyone.post("/feedback", json=vote).status_code == 201


def test_headers_are_the_vendors(client: httpx.Client) -> None:
    for more in ({}, {"stream": True}):
        headers = client.post(PATH, json=body(**more)).headers
        assert int(headers["x-ratelimit-remaining-requests"]) < int(headers["x-ratelimit-limit-requests"])
        assert headers["x-ratelimit-reset-requests"].endswith("s")
        assert int(headers["openai-processing-ms"]) >= 0
        assert headers["x-request-id"]
        assert headers["cache-control"] == "no-store"
        assert "ratelimit-policy" not in headers, "the limit `api` does not count this path"


def test_a_stream_has_the_vendors_form(service: Service, client: httpx.Client, user: Account) -> None:
    chunks = stream(client, "one two")
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["system_fingerprint"]) for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices == [
        {"index": 0, "delta": {"role": "assistant", "content": "", "refusal": None}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {"content": "one"}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {"content": " two"}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"},
    ]
    assert set(chunks[-1]["aprendiz"]) == {"version", "cached", "fallback", "feedback_token", "examples"}
    assert rate(service, user, chunks[0]["id"]) == 201


def test_usage_is_the_last_chunk_and_null_before(client: httpx.Client) -> None:
    chunks = stream(client, stream_options={"include_usage": True, "include_obfuscation": False})
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == ask(client)["usage"]


def test_text_of_all_kinds_survives_the_stream(client: httpx.Client) -> None:
    text = 'ñ 🙂 "quoted" \\ back\nline \u2028 <b> \x1b[31m \x7f'
    chunks = stream(client, text)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
    assert ask(client, text)["choices"][0]["message"]["content"] == text


def test_several_choices_are_predictions_of_their_own(service: Service, client: httpx.Client, user: Account) -> None:
    found = ask(client, n=3, seed=2**63 - 1)
    ids = [choice["prediction_id"] for choice in found["choices"]]
    assert ids[0] == found["id"]
    assert len(set(ids)) == 3
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    assert all(rate(service, user, each) == 201 for each in ids)
    assert found["usage"]["completion_tokens"] == 6
    assert found["usage"]["prompt_tokens"] == ask(client)["usage"]["prompt_tokens"], "the prompt counts once"


def test_each_choice_has_a_seed_of_its_own(service: Service, client: httpx.Client) -> None:
    for seed, expected in ((7, [7, 8]), (-3, [-3, -2]), (2**63 - 1, [2**63 - 1, 2**63 - 2])):
        choices = ask(client, n=2, seed=seed)["choices"]
        assert [stored_input(service, choice["prediction_id"])["sampling"]["seed"] for choice in choices] == expected


def test_several_choices_share_a_stream(client: httpx.Client) -> None:
    chunks = stream(client, "a b c", n=2, stream_options={"include_usage": True})
    *chunks, last = chunks
    texts, ends, ids = ["", ""], [0, 0], set()
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content") or ""
        if choice["finish_reason"] is not None:
            ends[choice["index"]] += 1
            ids.add(choice["prediction_id"])
    assert texts == ["a b c", "a b c"]
    assert ends == [1, 1]
    assert len(ids) == 2
    assert last["usage"]["completion_tokens"] == 6


def test_tools_are_called_in_parallel(client: httpx.Client) -> None:
    (choice,) = ask(client, TWO_CALLS, tools=TOOLS)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    calls = choice["message"]["tool_calls"]
    assert [set(call) for call in calls] == [{"id", "type", "function"}] * 2
    assert [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls] == [
        ("weather", {"city": "Paris"}),
        ("time", {"city": "Rome"}),
    ]
    (only,) = ask(client, TWO_CALLS, tools=TOOLS, parallel_tool_calls=False)["choices"]
    assert len(only["message"]["tool_calls"]) == 1


def test_tool_calls_stream_name_first_then_arguments(client: httpx.Client) -> None:
    deltas = [
        chunk["choices"][0]["delta"]["tool_calls"][0]
        for chunk in stream(client, TWO_CALLS, tools=TOOLS)
        if "tool_calls" in chunk["choices"][0]["delta"]
    ]
    assert set(deltas[0]) == {"index", "id", "type", "function"}
    assert deltas[0]["function"] == {"name": "weather", "arguments": ""}
    assert all(set(delta) == {"index", "function"} for delta in deltas if "id" not in delta)
    arguments = ["", ""]
    for delta in deltas:
        arguments[delta["index"]] += delta["function"]["arguments"]
    assert [json.loads(text) for text in arguments] == [{"city": "Paris"}, {"city": "Rome"}]


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("none", None),
        ("auto", None),
        ("required", "weather"),
        ({"type": "function", "function": {"name": "time"}}, "time"),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "time"}}]},
            },
            "time",
        ),
    ],
)
def test_the_tool_choice_is_kept(client: httpx.Client, choice: Any, called: str | None) -> None:
    (answer,) = ask(client, "hello", tools=TOOLS, tool_choice=choice)["choices"]
    calls = answer["message"].get("tool_calls", [])
    assert [call["function"]["name"] for call in calls] == ([] if called is None else [called])


def test_an_answer_is_sent_back_as_it_came(client: httpx.Client) -> None:
    asked = {"role": "user", "content": TWO_CALLS}
    message = ask(client, TWO_CALLS, tools=TOOLS)["choices"][0]["message"]
    results = [
        {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "\x1b[1msunny\x1b[0m"},
        {"role": "tool", "tool_call_id": message["tool_calls"][1]["id"], "content": [{"type": "text", "text": "noon"}]},
    ]
    found = client.post(PATH, json={"model": "default", "messages": [asked, message, *results], "tools": TOOLS}).json()
    assert found["choices"][0]["message"]["content"] == "\x1b[1msunny\x1b[0m\nnoon"
    assert found["choices"][0]["finish_reason"] == "stop"


def test_messages_of_all_roles_and_parts_are_taken(client: httpx.Client) -> None:
    messages = [
        {"role": "system", "content": "be brief", "name": "boss"},
        {"role": "developer", "content": [{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "hello", "name": "ada"},
        {"role": "assistant", "content": [{"type": "text", "text": "no"}, {"type": "refusal", "refusal": "I will not"}]},
        {"role": "assistant", "content": None, "refusal": "never"},
        {"role": "assistant", "content": "", "tool_calls": [], "function_call": None, "audio": None, "reasoning_content": "x"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look", "prompt_cache_breakpoint": {"mode": "explicit"}},
                {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
            ],
        },
    ]
    found = client.post(PATH, json={"model": "echo/echo", "messages": messages})
    assert found.status_code == 200, found.text
    assert found.json()["choices"][0]["message"]["content"] == "look [image_url]"


def test_json_comes_as_the_schema_has_it(client: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 4}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True, "description": "a number"}}
    assert json.loads(ask(client, response_format=form)["choices"][0]["message"]["content"]) == {"n": 4}
    text = ask(client, response_format={"type": "json_object"})["choices"][0]["message"]["content"]
    assert json.loads(text) == {"echo": "good morning"}
    assert ask(client, response_format={"type": "text"})["choices"][0]["message"]["content"] == "good morning"


def test_logprobs_come_with_their_text(client: httpx.Client) -> None:
    whole = ask(client, "a b", logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]
    assert [entry["token"] for entry in whole["content"]] == ["a", " b"]
    assert whole["refusal"] is None
    assert set(whole["content"][0]) == {"token", "logprob", "bytes", "top_logprobs"}
    pieces = [chunk["choices"][0] for chunk in stream(client, "a b", logprobs=True)]
    told = [(piece["delta"]["content"], piece["logprobs"]["content"][0]["token"]) for piece in pieces if piece["logprobs"]]
    assert told == [("a", "a"), (" b", " b")]
    assert "".join(piece["delta"].get("content", "") for piece in pieces) == "a b"


def test_limits_stops_and_tiers(client: httpx.Client) -> None:
    assert ask(client, "a b c", max_completion_tokens=2)["choices"][0]["finish_reason"] == "length"
    assert ask(client, "a b c", max_tokens=1)["choices"][0]["message"]["content"] == "a"
    assert ask(client, "a b c", stop="c")["choices"][0]["message"]["content"].strip() == "a b"
    assert ask(client, service_tier="flex")["service_tier"] == "default"
    assert "service_tier" not in ask(client)


def test_thinking_is_shown_beside_the_answer(serve: Serve) -> None:
    service = serve(model={"model": "thinks"})
    with service.client(service.user()) as client:
        found = ask(client, "a b")
        message = found["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("I was asked: a b", "a b")
        assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] == 5
        deltas = [chunk["choices"][0]["delta"] for chunk in stream(client, "a b")]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "I was asked: a b"
        assert "".join(delta.get("content", "") for delta in deltas) == "a b"
        assert "reasoning_content" not in ask(client, reasoning_effort="none")["choices"][0]["message"]


def test_nulls_and_what_has_no_effect_are_accepted(client: httpx.Client) -> None:
    names = (
        "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "n", "stop", "seed", "presence_penalty",
        "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice",
        "parallel_tool_calls", "reasoning_effort", "stream", "stream_options", "modalities", "user", "safety_identifier",
        "metadata", "store", "service_tier", "verbosity", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
        "audio", "prediction", "web_search_options", "functions", "function_call", "moderation",
    )  # fmt: skip
    ask(client, **dict.fromkeys(names))
    ask(
        client,
        user="u", safety_identifier="s", metadata={"a": "b"}, store=True, verbosity="low", prompt_cache_key="k",
        prompt_cache_retention="24h", prompt_cache_options={"mode": "explicit"}, modalities=["text"], logit_bias={"5": -100},
        presence_penalty=-2, frequency_penalty=2, temperature=0, top_p=1, top_k=40, seed=-(2**63), tools=[], tool_choice="auto",
        parallel_tool_calls=True, logprobs=False, stop=["a", "b", "c", "d"],
    )  # fmt: skip


def test_a_failure_after_the_head_is_an_error_and_no_end(serve: Serve) -> None:
    service = serve(model={"model": "breaks+slow"})
    with service.client(service.user()) as client:
        answer = client.post(PATH, json=body("a b c d e f", stream=True))
        assert answer.status_code == 200
        last = answer.text.rstrip("\n").split("\n\n")[-1]
        assert "[DONE]" not in answer.text
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["type"], error["code"]) == ("server_error", "engine_unavailable")
        whole = client.post(PATH, json=body("a b c d e f"))
        assert whole.status_code == 503
        assert whole.json()["error"]["code"] == "engine_unavailable"
        assert int(whole.headers["retry-after"]) >= 1


def test_too_many_calls_are_429_in_the_vendors_form(serve: Serve) -> None:
    service = serve(rate_limits={"predict": "2/minute"})
    with service.client(service.user()) as client:
        answers = [client.post(PATH, json=body()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[1].headers["x-ratelimit-remaining-requests"] == "0"
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert int(answers[2].headers["retry-after"]) >= 1


def test_the_same_question_comes_from_the_cache_on_request(client: httpx.Client) -> None:
    found = [
        client.post(PATH, json=body("cache me", temperature=0), headers={"Cache-Control": "max-age=60"}).json()
        for _ in range(2)
    ]
    assert [each["aprendiz"]["cached"] for each in found] == [False, True]
    assert found[0]["id"] != found[1]["id"]
    assert found[0]["choices"][0]["message"] == found[1]["choices"][0]["message"]
