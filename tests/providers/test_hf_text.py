"""Tokens to text: whole characters, stop strings over token borders."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from app.providers.workers.hf_text import TextStream


def byte_decode(ids: Sequence[int]) -> str:
    """A tokenizer of 256 tokens, one for each byte."""
    return bytes(ids).decode("utf-8", "replace")


def run(data: bytes, *stop: str) -> tuple[list[str], bool]:
    stream = TextStream(byte_decode, stop)
    pieces = []
    for token in data:
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.flush()], stream.stopped


@pytest.mark.parametrize("text", ["plain", "¿Qué tal, señor? 漢字", "🙂👩‍👩‍👧 fin", "a\u0301", "\ufeffx", "é" * 50])
def test_text_comes_whole_and_never_with_a_broken_character(text: str) -> None:
    pieces, _ = run(text.encode())
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_never_ends_is_left_out() -> None:
    pieces, _ = run("ok 漢".encode()[:-1])
    assert "".join(pieces) == "ok "


def test_bytes_that_are_no_text_do_not_hold_the_stream_for_ever() -> None:
    pieces, _ = run(b"\x80" * 40 + b"then text")
    assert "".join(pieces).endswith("then text")
    assert any(pieces[:20])


def test_a_real_replacement_character_arrives() -> None:
    assert "".join(run("a\ufffdb".encode())[0]) == "a\ufffdb"


def test_a_stop_string_over_many_tokens_is_cut_before_any_of_it_is_shown() -> None:
    pieces, stopped = run(b"one two STOP three", "STOP")
    assert stopped
    assert "".join(pieces) == "one two "


def test_text_that_only_looks_like_a_stop_string_is_given_out() -> None:
    pieces, stopped = run(b"one STO two ST", "STOP")
    assert not stopped
    assert "".join(pieces) == "one STO two ST"


def test_the_earliest_of_several_stops_counts() -> None:
    pieces, stopped = run(b"abcdef", "ef", "cd")
    assert stopped
    assert "".join(pieces) == "ab"


def test_a_stop_that_overlaps_itself() -> None:
    pieces, stopped = run(b"aaab", "aab")
    assert stopped
    assert "".join(pieces) == "a"


def test_a_stop_of_split_characters() -> None:
    pieces, stopped = run("sí 漢字 no".encode(), "漢字")
    assert stopped
    assert "".join(pieces) == "sí "


def test_leading_spaces_that_a_decoder_swallows_at_the_beginning_are_kept_in_the_middle() -> None:
    words = ["▁Hello", "▁world", "▁again"]

    def decode(ids: Sequence[int]) -> str:  # as sentencepiece does
        return "".join(words[number] for number in ids).replace("▁", " ").removeprefix(" ")

    stream = TextStream(decode)
    assert [stream.push(number) for number in range(3)] == ["Hello", " world", " again"]
