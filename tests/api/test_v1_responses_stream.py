"""The events of ``/v1/responses``: their order, their numbers, and what a failure looks like."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest

from app.api.v1.responses_stream import ResponsesShape
from app.core.errors import Overloaded, TooManyRequests, UpstreamTimeout
from app.core.ids import uuid7
from app.core.settings import Settings
from app.core.types import Event, ReasoningDelta, TextDelta, TokenLogprobs, ToolCallDelta
from tests.api.events import read_events
from tests.api.responses_client import PATH, TOOL, get, told
from tests.conftest import Account, Serve, Service

Events = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def user(service: Service) -> Account:
    return service.user()


def stream(service: Service, account: Account, **body: Any) -> Events:
    """The events of a call, checked: each named as its data says, numbered from 0 without a gap."""
    with service.client(account) as client:
        answer = client.post(PATH, json={"model": "default", "stream": True, **body})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "x-ratelimit-limit-requests" in answer.headers
    return checked(answer.text)


def checked(raw: str) -> Events:
    events = read_events(raw)
    assert [name for name, _ in events] == [data["type"] for _, data in events]
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    return events


def names(events: Events) -> list[str]:
    """The types, equal ones in a row once."""
    return [name for name, _ in itertools.groupby(name.removeprefix("response.") for name, _ in events)]


def of(events: Events, kind: str) -> list[dict[str, Any]]:
    return [data for name, data in events if name == f"response.{kind}"]


def test_text(service: Service, user: Account) -> None:
    events = stream(service, user, input="one two three")
    assert names(events) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    begun, ended = events[0][1]["response"], events[-1][1]["response"]
    assert (begun["status"], begun["output"], begun["usage"], begun["completed_at"]) == ("in_progress", [], None, None)
    assert begun["model"] == ended["model"] == "echo/echo"
    assert begun["id"] == ended["id"]
    assert begun["created_at"] == ended["created_at"]
    deltas = of(events, "output_text.delta")
    assert [each["delta"] for each in deltas] == ["one", " two", " three"]
    assert set(deltas[0]) == {"type", "item_id", "output_index", "content_index", "delta", "logprobs", "sequence_number"}
    assert of(events, "output_text.done")[0]["text"] == "one two three"
    assert of(events, "output_item.added")[0]["item"]["content"] == []
    (item,) = ended["output"]
    assert item == of(events, "output_item.done")[0]["item"]
    assert deltas[0]["item_id"] == item["id"] == f"msg_{ended['id']}"
    assert told(get(service, user, ended["id"]).json()) == told(ended)


def test_the_stream_is_the_whole_answer_in_pieces(service: Service, user: Account) -> None:
    body = {"input": "one two", "instructions": "x", "metadata": {"a": "b"}, "text": {"verbosity": "high"}}
    with service.client(user) as client:
        whole = client.post(PATH, json=body).json()
    ended = stream(service, user, **body)[-1][1]["response"]
    for one in (whole, ended):
        for name in ("id", "created_at", "completed_at", "aprendiz"):
            one.pop(name)
        one["output"][0].pop("id")
    assert whole == ended


def test_an_answer_that_is_cut_ends_as_incomplete(service: Service, user: Account) -> None:
    events = stream(service, user, input="one two three", max_output_tokens=2)
    assert names(events)[-1] == "incomplete"
    ended = events[-1][1]["response"]
    assert ended["status"] == ended["output"][0]["status"] == "incomplete"
    assert ended["incomplete_details"] == {"reason": "max_output_tokens"}


def test_calls(service: Service, user: Account) -> None:
    asked = 'call weather {"city": "Bonn"}\ncall weather {"city": "Kiel"}'
    events = stream(service, user, input=asked, tools=[TOOL])
    ended = events[-1][1]["response"]
    assert ended["status"] == "completed"
    assert [json.loads(item["arguments"])["city"] for item in ended["output"]] == ["Bonn", "Kiel"]
    for index, item in enumerate(ended["output"]):
        mine = [each for each in of(events, "function_call_arguments.delta") if each["output_index"] == index]
        assert {each["item_id"] for each in mine} == {item["id"]}
        assert "".join(each["delta"] for each in mine) == item["arguments"]
        added = of(events, "output_item.added")[index]
        assert added["item"] == {**item, "arguments": "", "status": "in_progress"}
        assert of(events, "function_call_arguments.done")[index]["arguments"] == item["arguments"]
        assert of(events, "output_item.done")[index]["item"] == item


def test_log_probabilities_go_with_their_text(service: Service, user: Account) -> None:
    events = stream(service, user, input="one two", top_logprobs=1, include=["message.output_text.logprobs"])
    for delta in of(events, "output_text.delta"):
        assert [each["token"] for each in delta["logprobs"]] == [delta["delta"]]
    assert len(of(events, "output_text.done")[0]["logprobs"]) == 2
    assert len(events[-1][1]["response"]["output"][0]["content"][0]["logprobs"]) == 2


@pytest.mark.parametrize(
    ("reasoning", "part", "kind", "place"),
    [
        (None, "content_part", "reasoning_text", "content"),
        ({"summary": "auto"}, "reasoning_summary_part", "reasoning_summary_text", "summary"),
    ],
)
def test_thinking(serve: Serve, reasoning: Any, part: str, kind: str, place: str) -> None:
    service = serve(model={"provider": "echo", "model": "thinks"})
    events = stream(service, service.user(), input="why", reasoning=reasoning)
    assert names(events)[2:9] == [
        "output_item.added", f"{part}.added", f"{kind}.delta", f"{kind}.done", f"{part}.done", "output_item.done",
        "output_item.added",
    ]  # fmt: skip
    thinking, message = events[-1][1]["response"]["output"]
    assert thinking[place][0]["text"] == "I was asked: why" == "".join(each["delta"] for each in of(events, f"{kind}.delta"))
    assert message["content"][0]["text"] == "why"
    assert f"{place}_index" in of(events, f"{kind}.delta")[0]


def test_a_failure_after_the_head_is_seen(serve: Serve) -> None:
    service = serve(model={"provider": "echo", "model": "breaks"})
    user = service.user()
    events = stream(service, user, input="one two three four five")
    assert names(events)[-2:] == ["failed", "error"]
    failed, error = events[-2][1]["response"], events[-1][1]
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "server_error"
    assert failed["output"][0]["content"][0]["text"] == "one two three"
    assert failed["output"][0]["status"] == "incomplete"
    assert error["message"] == failed["error"]["message"] == error["error"]["message"]
    stored = get(service, user, failed["id"]).json()
    assert (stored["status"], stored["output"]) == ("failed", failed["output"])
    with service.client(user) as client:
        refused = client.post(PATH, json={"input": "x", "previous_response_id": failed["id"]})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "previous_response_id"


def test_what_can_be_refused_is_refused_with_a_status(service: Service, user: Account) -> None:
    with service.client(user) as client:
        unknown = client.post(PATH, json={"model": "nobody", "input": "x", "stream": True})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        long = client.post(PATH, json={"input": "word " * 5000, "stream": True})
        assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert long.json()["error"]["param"] == "input"


class Call:
    """A shape with made-up events, for what no echo does."""

    def __init__(self, *, logprobs: bool = False, encrypted: bool = False) -> None:
        self.id = uuid7()
        settings = Settings.model_validate({"security": {"secret_key": "k" * 48}})
        self.shape = ResponsesShape(
            self.id, {}, settings, model="default", summary=False, encrypted=encrypted, logprobs=logprobs
        )

    def events(self, *pieces: Event) -> Events:
        return read_events(self.shape.piece(0, pieces).decode())


def test_calls_whose_pieces_take_turns() -> None:
    call = Call()
    events = call.events(
        ToolCallDelta(0, id="a", name="f"),
        ToolCallDelta(1, name="g"),
        ToolCallDelta(0, arguments='{"x":'),
        ToolCallDelta(1, arguments="{}"),
        ToolCallDelta(0, arguments="1}"),
    )
    failed = read_events(call.shape.failure(Overloaded("Busy.")).decode())[2][1]["response"]
    assert [(item["call_id"], item["arguments"]) for item in failed["output"]] == [
        ("a", '{"x":1}'), (f"call_{call.id.replace('-', '')}_1", "{}")
    ]  # fmt: skip
    assert [data["output_index"] for _, data in events] == [0, 1, 0, 1, 0]


def test_text_after_a_call_is_an_item_of_its_own() -> None:
    call = Call()
    events = call.events(
        TextDelta("a"), ToolCallDelta(0, id="c", name="f"), TextDelta("b"), ReasoningDelta("c"), TextDelta("d")
    )
    added = [data["item"]["id"] for name, data in events if name == "response.output_item.added"]
    assert added == [f"msg_{call.id}", f"fc_{call.id}_0", f"msg_{call.id}_1", f"rs_{call.id}", f"msg_{call.id}_2"]
    done = [data["item"]["id"] for name, data in events if name == "response.output_item.done"]
    assert done == [added[0], added[2], added[3]]


def test_signatures_are_sealed_for_the_next_turn() -> None:
    call = Call()
    events = call.events(
        ReasoningDelta("hm"), ReasoningDelta("", signature="s"), ReasoningDelta("", redacted="r"), TextDelta("a")
    )
    (item,) = (data["item"] for name, data in events if name == "response.output_item.done")
    assert item["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert item["encrypted_content"].startswith("aprendiz.")


def test_log_probabilities_without_text_go_with_an_empty_piece() -> None:
    call = Call(logprobs=True)
    entry = {"token": "\\x", "logprob": 0.0, "bytes": [226], "top_logprobs": []}
    events = call.events(TokenLogprobs((entry,)), TextDelta("a"), TextDelta("b"), TokenLogprobs((entry,)))
    deltas = [(data["delta"], len(data["logprobs"])) for name, data in events if name.endswith("delta")]
    assert deltas == [("", 1), ("a", 0), ("b", 1)]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UpstreamTimeout("Too slow."), "server_error"),
        (TooManyRequests("Too many."), "rate_limit_exceeded"),
        (RuntimeError("a secret"), "server_error"),
    ],
)
def test_a_failure_before_the_first_piece_is_a_whole_stream(error: BaseException, code: str) -> None:
    raw = Call().shape.failure(error).decode()
    events = checked(raw)
    assert names(events) == ["created", "in_progress", "failed", "error"]
    assert events[2][1]["response"]["error"]["code"] == code
    assert events[0][1]["response"]["model"] == "default"
    assert "secret" not in raw


def test_who_leaves_finds_what_was_said_so_far(serve: Serve) -> None:
    service = serve(model={"provider": "echo", "model": "slow"})
    user = service.user()
    with service.client(user) as client:
        with client.stream("POST", PATH, json={"input": "word " * 500, "stream": True}) as answer:
            lines = answer.iter_lines()
            begun = json.loads(next(line for line in lines if line.startswith("data: "))[6:])
            next(line for line in lines if "output_text.delta" in line)
        response_id = begun["response"]["id"]
        deadline = time.monotonic() + 10
        while (shown := client.get(f"{PATH}/{response_id}")).status_code == 404 and time.monotonic() < deadline:
            time.sleep(0.05)
        body = shown.json()
        assert body["status"] == "cancelled", body
        assert body["output"][0]["status"] == "incomplete"
        assert body["output"][0]["content"][0]["text"].startswith("word")
        refused = client.post(PATH, json={"input": "x", "previous_response_id": response_id})
        assert refused.status_code == 400
        assert client.delete(f"{PATH}/{response_id}").status_code == 200
