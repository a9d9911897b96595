"""The reader of server-sent events, split at every byte and over its bounds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.providers.sse import EventTooLarge, SseParser

STREAM = b': hello\r\ndata: one\r\n\r\nevent: x\ndata:two\ndata: \n\nid: 1\n\ndata\ndata: {"a":"b: c"}\n\ndata: unfinished\n'
EVENTS = [b"one", b"two\n", b'{"a":"b: c"}']


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_any_split_gives_the_same_events(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    parser = SseParser()
    events = [event for start, end in itertools.pairwise(edges) for event in parser.feed(STREAM[start:end])]
    assert events == EVENTS


LINES = st.sampled_from(
    [
        b"data: a\n\n",
        b"data: b\n\n",
        b"data: c\n",
        b"data:d\n\n",
        b"\n",
        b": x\n\n",
        b"event: e\ndata: f\n\n",
        b"data: g\r\n\r\n",
        b"id",
    ]
)


@given(st.lists(st.lists(LINES, max_size=8).map(b"".join), max_size=8))
def test_the_short_way_gives_what_the_long_one_gives(pieces: list[bytes]) -> None:
    """Whole events at once, against the same bytes one by one."""
    quick, slow = SseParser(), SseParser()
    taken = [event for piece in pieces for event in quick.feed(piece)]
    stream = b"".join(pieces)
    assert taken == [event for at in range(len(stream)) for event in slow.feed(stream[at : at + 1])]


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_bytes_are_taken_or_refused(data: bytes, size: int) -> None:
    parser = SseParser(max_event_bytes=64)
    try:
        for at in range(0, len(data), size):
            for event in parser.feed(data[at : at + size]):
                assert len(event) <= 64
    except EventTooLarge:
        assert len(data) > 64


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 100, b"data: xxxxxxxxxx\n" * 12, b"a\n" + b"x" * 100])
def test_bounds_hold(stream: bytes) -> None:
    with pytest.raises(EventTooLarge):
        SseParser(max_event_bytes=64).feed(stream)
    with pytest.raises(EventTooLarge):
        byte_by_byte(stream)


def byte_by_byte(stream: bytes) -> None:
    parser = SseParser(max_event_bytes=64)
    for at in range(len(stream)):
        parser.feed(stream[at : at + 1])
