"""The Messages API's streams and whole messages as our events: the documented sequences, and the ways in which they can lie."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from app.core.errors import (
    AprendizError,
    ContextOverflow,
    InvalidRequest,
    PayloadTooLarge,
    UnknownModel,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from app.core.types import Answer, Event, Finished, Folder, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from app.providers.claude_errors import answer_error
from app.providers.claude_events import EventReader, counted, whole
from app.providers.sse import SseParser
from app.providers.wire_errors import retry_after_s
from tests.vendors.anthropic_server import error_event, events, failure, message, sse, text, thinking, tool_use

REDACTED = {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix/LafPsn4aDFIT2Xlxh0L5L8rLVyIwxtE3"}


def read(payloads: Iterable[Mapping[str, Any] | bytes]) -> list[Event]:
    reader = EventReader()
    raw = (payload if isinstance(payload, bytes) else json.dumps(payload).encode() for payload in payloads)
    return [event for payload in raw for event in reader.read(payload)]


def folded(read_events: Iterable[Event]) -> Answer:
    folder = Folder()
    for event in read_events:
        folder.add(event)
    return folder.answer()


def test_a_basic_stream() -> None:
    assert read(events(message(text("¡Hola, mundo!")))) == [
        TextDelta("¡Hola,"),
        TextDelta(" mundo!"),
        Finished("stop", Usage(prompt_tokens=25, completion_tokens=15)),
    ]


def test_tools_in_parallel_and_one_without_arguments() -> None:
    told = message(
        text("I look."), tool_use("toolu_1", "weather", place="León, ES"), tool_use("toolu_2", "now"), stop_reason="tool_use"
    )
    made = read(events(told))
    assert made[2] == ToolCallDelta(0, id="toolu_1", name="weather")
    assert "".join(e.arguments for e in made if isinstance(e, ToolCallDelta) and e.index == 0) == '{"place": "León, ES"}'
    assert made[-3:-1] == [ToolCallDelta(1, id="toolu_2", name="now"), ToolCallDelta(1, arguments="{}")]
    answer = folded(made)
    assert answer.finish_reason == "tool_calls"
    assert [call["function"]["name"] for call in answer.tool_calls] == ["weather", "now"]


def test_thinking_shown_hidden_and_redacted() -> None:
    told = message(thinking("First this.", "c2ln"), thinking("", "aGlk"), REDACTED, text("So."), stop_reason="end_turn")
    made = read(events(told))
    assert made[:5] == [
        ReasoningDelta("First"),
        ReasoningDelta(" this."),
        ReasoningDelta("", signature="c2ln"),
        ReasoningDelta("", signature="aGlk"),
        ReasoningDelta("", redacted=REDACTED["data"]),
    ]
    answer = folded(made)
    assert answer.thinking == (thinking("First this.", "c2ln"), thinking("", "aGlk"), REDACTED)
    assert (answer.text, answer.reasoning) == ("So.", "First this.")


ALL = message(
    thinking("Hm.", "c2ln"),
    REDACTED,
    text("Uno dos"),
    tool_use("toolu_1", "f", a=[1, {"b": "ñ"}]),
    tool_use("toolu_2", "g"),
    text(" tres"),
    stop_reason="stop_sequence",
    stop_sequence="END",
    cache_creation_input_tokens=7,
    cache_read_input_tokens=100,
    output_tokens_details={"thinking_tokens": 4},
)


def test_a_whole_message_says_what_its_stream_says() -> None:
    streamed, at_once = folded(read(events(ALL))), folded(whole(json.dumps(ALL).encode()))
    arguments = [json.loads(call["function"]["arguments"]) for call in streamed.tool_calls]
    assert (
        arguments == [json.loads(call["function"]["arguments"]) for call in at_once.tool_calls] == [{"a": [1, {"b": "ñ"}]}, {}]
    )
    for name in ("text", "thinking", "finish_reason", "usage", "stop_sequence"):
        assert getattr(streamed, name) == getattr(at_once, name)
    assert streamed.usage == Usage(132, 15, cached_tokens=100, cache_write_tokens=7, reasoning_tokens=4)
    assert streamed.stop_sequence == "END"


@pytest.mark.parametrize(
    ("told", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("brand_new", "stop"),
    ],
)
def test_stop_reasons(told: str, ours: str) -> None:
    assert read(events(message(text("a"), stop_reason=told)))[-1] == Finished(ours, Usage(25, 15))  # type: ignore[arg-type]


def test_later_counts_replace_earlier_ones_and_missing_ones_do_not() -> None:
    payloads = list(events(message(text("a"), cache_read_input_tokens=5)))
    payloads[-2]["usage"] = {"output_tokens": 40}
    payloads.insert(
        -2, {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"input_tokens": 30, "output_tokens": 2}}
    )
    assert read(payloads)[-1] == Finished("stop", Usage(35, 40, cached_tokens=5))


def test_no_counts_at_all() -> None:
    payloads = list(events(message(text("a"))))
    del payloads[0]["message"]["usage"], payloads[-2]["usage"]
    assert read(payloads)[-1] == Finished("stop", Usage())


def test_unknown_things_are_skipped_and_unknown_blocks_noted(caplog: pytest.LogCaptureFixture) -> None:
    server_side = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
    payloads = list(events(message(server_side, text("a"), server_side)))
    payloads[2:2] = [
        {"type": "invented_event", "delta": {"text": "no"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": '{"q": 1}'}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "no"}},
    ]
    payloads.insert(-5, {"type": "content_block_delta", "index": 1, "delta": {"type": "citations_delta", "citation": {}}})
    with caplog.at_level(logging.INFO):
        assert read(payloads) == [TextDelta("a"), Finished("stop", Usage(25, 15))]
    assert [record.data for record in caplog.records] == [{"type": "server_tool_use"}]  # type: ignore[attr-defined]


def test_new_kinds_of_things_may_have_any_form() -> None:
    payloads = list(events(message({"type": "text", "text": "a"})))
    payloads[0]["message"]["content"] = None
    payloads[1:1] = [
        {"type": "new_event", "index": "x", "delta": 3, "message": [], "usage": "lots", "content_block": None},
        {"type": "content_block_start", "index": 7, "content_block": {"type": "new", "text": {}, "data": [], "input": 3}},
        {"type": "content_block_delta", "index": 7, "delta": {"type": "new_delta", "text": []}},
        {"type": "content_block_stop", "index": 7},
    ]
    payloads.insert(-3, {"type": "content_block_delta", "index": 0, "delta": {"type": "new_delta", "partial_json": {}}})
    assert read(payloads) == [TextDelta("a"), Finished("stop", Usage(25, 15))]
    new = message({"type": "new", "text": {}, "data": []}, {"type": "text", "text": "a"})
    assert whole(json.dumps(new).encode()) == [TextDelta("a"), Finished("stop", Usage(25, 15))]


@pytest.mark.parametrize(
    "block", [3, None, {"type": "text", "text": 3}, {"type": "tool_use", "id": "a", "name": "f", "input": []}]
)
def test_known_kinds_must_have_their_form(block: Any) -> None:
    with pytest.raises(UpstreamError):
        whole(json.dumps(message({"type": "text", "text": "a"}, block)).encode())


def test_what_comes_after_the_end_is_for_nobody() -> None:
    reader = EventReader()
    for payload in events(message(text("a"))):
        assert not reader.done
        reader.read(json.dumps(payload).encode())
    assert reader.done


@pytest.mark.parametrize("missing", range(1, 8))
def test_a_stream_that_lacks_its_end_has_no_end(missing: int) -> None:
    reader = EventReader()
    for payload in list(events(message(text("a"))))[:-missing]:
        assert not any(isinstance(event, Finished) for event in reader.read(json.dumps(payload).encode()))
    assert not reader.done


def test_an_end_without_a_reason_is_a_cut() -> None:
    payloads = [payload for payload in events(message(text("a"))) if payload["type"] != "message_delta"]
    with pytest.raises(UpstreamError):
        read(payloads)


BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}


@pytest.mark.parametrize(
    "payloads",
    [
        [b"{"],
        [b"[]"],
        [b"null"],
        [b"{}"],
        [b'{"type": 3}'],
        [b'{"type": "message_stop", "index": "x"}'],
        [b"\xff"],
        [b'{"type":"ping","x":' + b"[" * 100_000],
        [{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}}],
        [BLOCK, {"type": "content_block_delta", "index": 0}],
        [BLOCK, {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 3}}],
        [BLOCK, BLOCK],
        [{"type": "content_block_start", "index": 0}],
        [{"type": "content_block_start", "index": 0, "content_block": {**CALL, "id": None}}],
        [{"type": "content_block_start", "index": 0, "content_block": {**CALL, "name": ""}}],
        [{"type": "content_block_start", "index": n, "content_block": BLOCK["content_block"]} for n in range(200)],
        [
            each
            for n in range(200)
            for each in (
                {"type": "content_block_start", "index": n, "content_block": CALL},
                {"type": "content_block_stop", "index": n},
            )
        ],
    ],
)
def test_nonsense(payloads: list[Any]) -> None:
    with pytest.raises(UpstreamError) as caught:
        read(payloads)
    assert type(caught.value) is UpstreamError


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"{}", b'{"type": "message"}', b'{"type": "message", "content": [{}]}', b"\xff"]
)
def test_whole_nonsense(raw: bytes) -> None:
    with pytest.raises(UpstreamError):
        whole(raw)


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"input_tokens": "3"}', b"[3]"])
def test_counted_nonsense(raw: bytes) -> None:
    with pytest.raises(UpstreamError):
        counted(raw)


WORDS = "THIRD-PARTY-WORDS"


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("overloaded_error", UpstreamBusy),
        ("rate_limit_error", UpstreamBusy),
        ("timeout_error", UpstreamTimeout),
        ("api_error", UpstreamError),
        ("authentication_error", UpstreamRefused),
        ("permission_error", UpstreamRefused),
        ("billing_error", UpstreamRefused),
        ("not_found_error", UnknownModel),
        ("invalid_request_error", InvalidRequest),
        ("request_too_large", PayloadTooLarge),
        ("brand_new_error", UpstreamError),
    ],
)
def test_errors_inside_a_stream(kind: str, error: type[AprendizError], caplog: pytest.LogCaptureFixture) -> None:
    payloads = [*list(events(message(text("a"))))[:4], error_event(kind, WORDS)]
    with caplog.at_level(logging.INFO), pytest.raises(AprendizError) as caught:
        read(payloads)
    assert type(caught.value) is error
    assert WORDS not in caught.value.detail
    assert WORDS not in "".join(f"{record.message} {record.__dict__}" for record in caplog.records)


@pytest.mark.parametrize(
    ("reply", "error", "field"),
    [
        (failure(400, "messages: roles must alternate " + WORDS), InvalidRequest, "messages"),
        (failure(400, "messages.0.content.1.image.source: bad " + WORDS), InvalidRequest, "messages"),
        (failure(400, "'temperature' is deprecated for this model. " + WORDS), InvalidRequest, "temperature"),
        (failure(400, "`temperature` and `top_p` cannot both be specified " + WORDS), InvalidRequest, "temperature"),
        (failure(400, "output_config.format.schema: no " + WORDS), InvalidRequest, "response_format"),
        (failure(400, "output_config.effort: no " + WORDS), InvalidRequest, "reasoning_effort"),
        (failure(400, "tools.0.custom.input_schema: no " + WORDS), InvalidRequest, "tools"),
        (failure(400, "secret_field: no " + WORDS), InvalidRequest, None),
        (failure(400, WORDS), InvalidRequest, None),
        (failure(400, ""), InvalidRequest, None),
        (failure(400, "prompt is too long: 208310 tokens > 200000 maximum " + WORDS), ContextOverflow, "messages"),
        (failure(400, "input length and `max_tokens` exceed context limit: 9 + 9 > 10 " + WORDS), ContextOverflow, "messages"),
        (failure(400, "Your credit balance is too low to access the Anthropic API. " + WORDS), UpstreamRefused, None),
        (failure(400, "You have reached your specified API usage limits. " + WORDS), UpstreamRefused, None),
        (failure(401, WORDS), UpstreamRefused, None),
        (failure(402, WORDS), UpstreamRefused, None),
        (failure(403, WORDS), UpstreamRefused, None),
        (failure(404, "model: " + WORDS), UnknownModel, "model"),
        (failure(409, WORDS), InvalidRequest, None),
        (failure(413, WORDS), PayloadTooLarge, "messages"),
        (failure(429, WORDS), UpstreamBusy, None),
        (failure(429, WORDS, code="enforced_spend_limit_reached"), UpstreamRefused, None),
        (failure(500, WORDS), UpstreamError, None),
        (failure(500, WORDS, kind="overloaded_error"), UpstreamBusy, None),
        (failure(504, WORDS), UpstreamTimeout, None),
        (failure(529, WORDS), UpstreamBusy, None),
    ],
)
def test_errors_by_status(reply: Any, error: type[AprendizError], field: str | None, caplog: pytest.LogCaptureFixture) -> None:
    headers = {name.lower(): value for name, value in reply.headers.items()}
    with caplog.at_level(logging.INFO):
        made = answer_error(reply.status, reply.pieces[0], headers)
    assert type(made) is error
    assert made.field == field
    logged = "".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert WORDS not in made.detail
    assert WORDS not in logged
    assert "req_011CSHoEeqs5C35K2UUqR7Fy" in logged


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (200, UpstreamError),
        (204, UpstreamError),
        (301, UpstreamError),
        (307, UpstreamError),
        (400, InvalidRequest),
        (401, UpstreamRefused),
        (404, UpstreamError),
        (408, UpstreamTimeout),
        (418, UpstreamError),
        (422, InvalidRequest),
        (429, UpstreamBusy),
        (500, UpstreamError),
        (502, UpstreamError),
        (503, UpstreamBusy),
        (529, UpstreamBusy),
    ],
)
@pytest.mark.parametrize("raw", [b"", b"<html>no</html>", b'{"error": "text"}', b'{"error": {"type": 3}}', b"[" * 100_000])
def test_errors_that_are_not_the_vendors(status: int, raw: bytes, error: type[AprendizError]) -> None:
    assert type(answer_error(status, raw, {})) is error


def test_the_words_come_at_debug_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        answer_error(400, failure(400, WORDS).pieces[0], {})
    assert [WORDS in str(record.__dict__) for record in caplog.records] == [False, True]


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        ("17", 17),
        ("1.5", 1.5),
        ("99999", 3600),
        ("9" * 400, None),
        ("-3", None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2115 07:28:00 GMT", 3600),
        ("Wed, 99 Oct 2115 07:28:00 GMT", None),
    ],
)
def test_retry_after(header: str | None, wait: float | None) -> None:
    assert retry_after_s(header) == wait
    assert answer_error(529, b"", {} if header is None else {"retry-after": header}).retry_after == wait


RECORDED = b"".join(sse(list(events(ALL))))


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_stream_is_an_error_or_an_answer_and_nothing_else(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(50):
        raw = bytearray(RECORDED)
        for _ in range(dice.randint(1, 6)):
            at = dice.randrange(len(raw))
            match dice.randrange(4):
                case 0:
                    raw[at] = dice.randrange(256)
                case 1:
                    del raw[at : at + dice.randint(1, 200)]
                case 2:
                    raw[at:at] = dice.randbytes(dice.randint(1, 8))
                case 3:
                    raw[at:at] = raw[at : at + dice.randint(1, 400)]
        reader, parser, came = EventReader(), SseParser(), []
        try:
            for payload in parser.feed(bytes(raw)):
                came += reader.read(payload)
                if reader.done:
                    break
        except AprendizError:
            assert not reader.done
        assert sum(isinstance(event, Finished) for event in came) == reader.done


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_message_is_an_error_or_an_answer_and_nothing_else(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(50):
        raw = bytearray(json.dumps(ALL).encode())
        for _ in range(dice.randint(1, 3)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        try:
            made = whole(bytes(raw))
        except AprendizError:
            continue
        assert isinstance(made[-1], Finished)
