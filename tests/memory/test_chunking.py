"""Cutting blocks to pieces: nothing lost, order and bounds kept, headings and places with what they belong to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from app.memory.chunking import LIMIT, chunk, weight
from app.memory.parsing.blocks import Block, Kind

SAMPLES = [
    "alpha",
    "beta",
    "gamma.",
    "delta,",
    "año!",
    "数据库。",
    "x=1",
    "naïve?",
    "12345",
    "https://example.org/a/b/c",
    "the\nof\n\nand",
]
WORDS = st.sampled_from([*SAMPLES, "a" * 18])
TEXTS = st.lists(WORDS, min_size=1, max_size=250).map(" ".join)
KINDS: st.SearchStrategy[Kind] = st.sampled_from(["heading", "text", "text", "table", "code"])


@st.composite
def blocks(draw: st.DrawFn) -> list[Block]:
    made = []
    for kind in draw(st.lists(KINDS, max_size=12)):
        text = draw(TEXTS)
        if kind == "heading":
            made.append(Block(" ".join(text.split())[: draw(st.integers(1, 400))] or "x", "heading", draw(st.integers(1, 6))))
        else:
            page = draw(st.integers(1, 2))
            made.append(
                Block(text, kind, 0, {"page": page}, draw(st.sampled_from(["", "a | b", "h" * 300])) if kind == "table" else "")
            )
    return made


def letters(text: str) -> str:
    return re.sub(r"\s", "", text)


def within(needle: str, hay: Iterable[str]) -> bool:
    """Whether all characters stand there in order, others between them allowed."""
    found = iter(hay)
    return all(char in found for char in needle)


@given(blocks())
def test_nothing_is_lost_and_order_and_bounds_are_kept(given_blocks: list[Block]) -> None:
    pieces = list(chunk(given_blocks))
    assert pieces == list(chunk(iter(given_blocks)))
    assert all(piece.text.strip() and weight(piece.text) <= LIMIT for piece in pieces)
    everything = letters("".join(piece.text for piece in pieces))
    body = letters("".join(block.text for block in given_blocks if block.kind != "heading"))
    assert within(body, everything)
    for block in given_blocks:
        assert within(letters(block.text), everything) and within(letters(block.header), everything)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6000))
def test_any_text_is_cut_within_bounds(text: str) -> None:
    pieces = list(chunk([Block(text, place={"line": 1})]))
    assert within(letters(text), letters("".join(piece.text for piece in pieces)))
    assert all(weight(piece.text) <= LIMIT for piece in pieces)


def test_headings_go_with_what_they_head_and_are_told_as_the_place() -> None:
    made = [
        Block("Guide", "heading", 1, {"line": 1}),
        Block("Install", "heading", 2, {"line": 3}),
        Block("Run the script.", place={"line": 5}),
        Block("Linux", "heading", 3, {"line": 7}),
        Block("Use pip.", place={"line": 9}),
        Block("Remove", "heading", 2, {"line": 11}),
        Block("Delete it.", place={"line": 13}),
        Block("Nothing here", "heading", 2, {"line": 15}),
    ]
    pieces = list(chunk(made))
    assert [(piece.text, piece.place) for piece in pieces] == [
        ("Guide > Install\nRun the script.\n\nLinux\n\nUse pip.", {"line": 3 - 2, "section": "Guide > Install"}),
        ("Guide > Remove\nDelete it.", {"line": 11, "section": "Guide > Remove"}),
        ("Guide > Nothing here", {"line": 15, "section": "Guide > Nothing here"}),
    ]


def test_a_table_keeps_together_or_repeats_its_header_and_rows_keep_their_numbers() -> None:
    rows = [f"name: person {number}; city: Lima; note: {'x' * 40}" for number in range(2, 102)]
    pieces = list(chunk([Block("\n".join(rows), "table", place={"row": 2})]))
    for piece in pieces:
        number = piece.place["row"]
        assert piece.text.startswith(f"name: person {number};")
    assert "\n".join(piece.text for piece in pieces) == "\n".join(rows)
    headed = list(chunk([Block("\n".join("a | b" * 9 for _ in range(60)), "table", header="First | Second")]))
    assert len(headed) > 2 and all(piece.text.startswith("First | Second\n") for piece in headed)
    small = list(chunk([Block("text " * 150), Block("1 | 2\n3 | 4", "table", header="A | B")]))
    assert small[-1].text.endswith("A | B\n1 | 2\n3 | 4")


def test_a_long_paragraph_is_cut_at_sentences_with_the_last_said_again() -> None:
    sentences = [f"This is sentence number {number} of a paragraph that does not end." for number in range(60)]
    pieces = list(chunk([Block(" ".join(sentences))]))
    assert len(pieces) > 3
    for before, after in pairwise(pieces):
        assert before.text.endswith("end.")
        assert after.text.startswith(before.text[before.text.rindex("This is") :])


def test_pages_are_never_mixed_and_lines_are_counted() -> None:
    pieces = list(chunk([Block("one", place={"page": 1}), Block("two", place={"page": 2}), Block("three", place={"page": 2})]))
    assert [(piece.text, piece.place["page"]) for piece in pieces] == [("one", 1), ("two\n\nthree", 2)]
    text = "\n\n".join(f"Paragraph {number}. " + "word " * 100 for number in range(6))
    for piece in chunk([Block(text, place={"line": 10})]):
        first = piece.text.split("\n", 1)[0]
        assert text.split("\n")[piece.place["line"] - 10].strip() == first.strip()


def test_scripts_of_many_tokens_make_shorter_pieces() -> None:
    pieces = list(chunk([Block("数据库系统是计算机。" * 300)]))
    assert all(len(piece.text) <= LIMIT // 2 for piece in pieces)
