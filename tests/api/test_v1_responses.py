"""``/v1/responses`` over real sockets: whole answers, and all that may go into them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.api.responses_client import PATH, TOOL, ask, create, get, read_by, refused, text, told
from tests.conftest import Account, Serve, Service

PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(16)).decode()


@pytest.fixture(scope="module")
def user(service: Service) -> Account:
    return service.user()


def test_a_response_is_complete(service: Service, user: Account) -> None:
    body = create(service, user, input="good morning", instructions="be kind", metadata={"a": "b"})
    (item,) = body.pop("output")
    assert item == {
        "id": f"msg_{body['id']}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "annotations": [], "logprobs": [], "text": "good morning"}],
    }
    usage = body.pop("usage")
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 0}
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}
    assert set(body.pop("aprendiz")) == {"version", "cached", "fallback", "feedback_token", "examples"}
    assert body.pop("completed_at") >= body.pop("created_at") > 1_700_000_000
    assert body == {
        "id": body["id"],
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "echo/echo",
        "background": False,
        "instructions": "be kind",
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": True,
        "temperature": None,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": None,
        "truncation": "disabled",
        "user": None,
    }


def test_what_is_asked_is_repeated(service: Service, user: Account) -> None:
    wanted = {
        "max_output_tokens": 9,
        "max_tool_calls": 3,
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "reasoning": {"effort": "low", "summary": "auto"},
        "safety_identifier": "s",
        "store": False,
        "temperature": 0.5,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "tool_choice": {"type": "function", "name": "weather"},
        "tools": [TOOL],
        "top_logprobs": 2,
        "top_p": 0.5,
        "truncation": "auto",
        "user": "u",
    }
    hints = {"service_tier": "flex", "include": ["reasoning.encrypted_content"], "prompt_cache_retention": "24h"}
    body = create(service, user, input="x", background=False, **wanted, **hints)
    assert {name: body[name] for name in wanted} == wanted
    assert body["service_tier"] == "default"


def test_null_stands_for_absent(service: Service, user: Account) -> None:
    fields = (
        "background conversation include instructions max_output_tokens max_tool_calls metadata parallel_tool_calls "
        "previous_response_id prompt prompt_cache_key prompt_cache_retention reasoning safety_identifier service_tier store "
        "stream stream_options temperature text tool_choice tools top_logprobs top_p truncation user moderation"
    )
    body = create(service, user, input="x", **dict.fromkeys(fields.split()))
    assert body["store"] is True
    assert body["tool_choice"] == "auto"


def test_the_id_can_be_rated(service: Service, user: Account) -> None:
    body = create(service, user, input="x", store=False)
    with service.client(user) as client:
        assert client.post("/feedback", json={"prediction_id": body["id"], "rating": "up"}).status_code == 201
    token = body["aprendiz"]["feedback_token"]
    with service.client() as client:
        assert client.post("/feedback", json={"feedback_token": token, "rating": "down"}).status_code == 201


def test_the_rate_limit_is_told_in_the_vendors_names(service: Service, user: Account) -> None:
    headers = ask(service, user, input="x").headers
    assert int(headers["x-ratelimit-remaining-requests"]) < int(headers["x-ratelimit-limit-requests"])
    assert headers["cache-control"] == "no-store"


def test_an_answer_that_is_cut_is_incomplete(service: Service, user: Account) -> None:
    body = create(service, user, input="one two three", max_output_tokens=2)
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["output"][-1]["status"] == "incomplete"
    assert text(body) == "one two"
    assert told(get(service, user, body["id"]).json()) == told(body)


def test_log_probabilities(service: Service, user: Account) -> None:
    body = create(service, user, input="one two", include=["message.output_text.logprobs"], top_logprobs=1)
    (part,) = body["output"][0]["content"]
    assert [each["token"] for each in part["logprobs"]] == ["one", " two"]
    assert {"token", "logprob", "bytes", "top_logprobs"} == set(part["logprobs"][0])


def test_json_by_a_schema(service: Service, user: Account) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer"}},
        "required": ["age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "person", "schema": schema, "strict": True}
    body = create(service, user, input="Bob", text={"format": form})
    assert isinstance(json.loads(text(body))["age"], int)
    assert body["text"]["format"] == {**form, "description": None}
    assert json.loads(text(create(service, user, input="Bob", text={"format": {"type": "json_object"}}))) is not None


def test_items_become_messages(service: Service, user: Account) -> None:
    items = [
        {"role": "developer", "content": "be brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "gAAAA"},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": "hello", "annotations": [], "logprobs": []},
                {"type": "refusal", "refusal": " no"},
            ],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": '{"city":"Bonn"}'},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}", "status": "completed"},
        {"type": "function_call_output", "call_id": "c2", "output": "rain"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "sun"}]},
        {"role": "user", "content": "and now?"},
    ]
    body = create(service, user, input=items, instructions="ours")
    assert text(body) == "and now?"
    read = read_by(service, user, body["id"])
    assert [item["type"] for item in read] == [
        "message", "message", "message", "function_call", "function_call", "function_call_output", "function_call_output",
        "message",
    ]  # fmt: skip
    assert read[0]["role"] == "developer"
    assert read[2]["content"] == [{"type": "output_text", "text": "hello no", "annotations": [], "logprobs": []}]
    assert [read[3]["call_id"], read[4]["call_id"]] == ["c1", "c2"]
    assert [read[5]["output"], read[6]["output"]] == ["rain", "sun"]
    assert len({item["id"] for item in read}) == len(read)


def test_images_and_files(service: Service, user: Account) -> None:
    document = "data:text/plain;base64," + base64.b64encode(b"words").decode()
    content = [
        {"type": "input_text", "text": "see"},
        {"type": "input_image", "image_url": PIXEL, "detail": "low"},
        {"type": "input_image", "image_url": "https://images.example/a.png"},
        {"type": "input_file", "file_data": document, "filename": "a.txt"},
    ]
    body = create(service, user, input=[{"role": "user", "content": content}])
    assert text(body) == "see [image_url] [image_url] [file]"
    (item,) = read_by(service, user, body["id"])
    assert [part["type"] for part in item["content"]] == ["input_text", "input_image", "input_image", "input_file"]
    assert item["content"][1] == {"type": "input_image", "image_url": PIXEL, "detail": "low", "file_id": None}
    again = create(service, user, input=[item])
    assert text(again) == text(body)


def test_tools_are_called_and_answered(service: Service, user: Account) -> None:
    first = create(service, user, input='call weather {"city": "Bonn"}\ncall weather {"city": "Kiel"}', tools=[TOOL])
    calls = first["output"]
    assert [call["type"] for call in calls] == ["function_call", "function_call"]
    assert [json.loads(call["arguments"])["city"] for call in calls] == ["Bonn", "Kiel"]
    assert [call["id"] for call in calls] == [f"fc_{first['id']}_0", f"fc_{first['id']}_1"]
    assert calls[0]["call_id"] != calls[1]["call_id"]
    assert get(service, user, first["id"]).json()["output"] == calls
    outputs = [{"type": "function_call_output", "call_id": call["call_id"], "output": "sun"} for call in calls]
    chained = create(service, user, input=outputs, previous_response_id=first["id"], tools=[TOOL])
    assert text(chained) == "sun\nsun"
    resent = create(service, user, input=[{"role": "user", "content": "weather?"}, *calls, *outputs], tools=[TOOL])
    assert text(resent) == "sun\nsun"


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("none", []),
        ("required", ["weather"]),
        ({"type": "function", "name": "time"}, ["time"]),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]}, ["time"]),
    ],
)
def test_the_choice_of_a_tool(service: Service, user: Account, choice: Any, called: list[str]) -> None:
    tools = [TOOL, {"type": "function", "name": "time", "parameters": None}]
    body = create(service, user, input="hello", tools=tools, tool_choice=choice)
    assert [item["name"] for item in body["output"] if item["type"] == "function_call"] == called
    assert body["tool_choice"] == choice
    assert [tool["name"] for tool in body["tools"]] == ["weather", "time"]


def test_thinking_is_shown_stored_and_handed_back(serve: Serve) -> None:
    service = serve(model={"provider": "echo", "model": "thinks"})
    user = service.user()
    plain = create(service, user, input="why")
    thinking, message = plain["output"]
    assert thinking["id"] == f"rs_{plain['id']}"
    assert thinking["summary"] == []
    assert thinking["content"] == [{"type": "reasoning_text", "text": "I was asked: why"}]
    assert thinking["encrypted_content"] is None
    assert message["content"][0]["text"] == "why"
    shown = get(service, user, plain["id"]).json()
    assert shown["output"] == plain["output"]
    summed = create(
        service, user, input="why", reasoning={"effort": "low", "summary": "auto"}, include=["reasoning.encrypted_content"]
    )
    thinking = summed["output"][0]
    assert thinking["content"] == []
    assert thinking["summary"] == [{"type": "summary_text", "text": "I was asked: why"}]
    assert thinking["encrypted_content"]
    again = [{"role": "user", "content": "why"}, *summed["output"], {"role": "user", "content": "so"}]
    assert text(create(service, user, input=again)) == "so"
    assert text(create(service, user, input="go on", previous_response_id=plain["id"])) == "go on"
    changed = {**thinking, "encrypted_content": thinking["encrypted_content"][:-8] + "!!!!!!!!"}
    refused(ask(service, user, input=[changed, summed["output"][1]]), 400, "input[0].encrypted_content")
    none = create(service, user, input="why", reasoning={"effort": "none"})
    assert [item["type"] for item in none["output"]] == ["message"]


def test_tokens_are_counted(service: Service, user: Account) -> None:
    first = create(service, user, input="one two", instructions="be kind")

    def count(**body: Any) -> int:
        with service.client(user) as client:
            answer = client.post(f"{PATH}/input_tokens", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["object"] == "response.input_tokens"
        return int(answer.json()["input_tokens"])

    assert count(model="default", input="one two", instructions="be kind") == first["usage"]["input_tokens"]
    more = count(model="default", input="three", instructions="be kind", previous_response_id=first["id"])
    assert more == first["usage"]["input_tokens"] + 3
    with service.client(user) as client:
        refused(client.post(f"{PATH}/input_tokens", json={"input": "x", "stream": True}), 400, "stream")
        refused(client.post(f"{PATH}/input_tokens", json={}), 400, "input")
        refused(client.post(f"{PATH}/input_tokens", json={"model": "nobody", "input": "x"}), 404, "model")
