"""What counts as the same question, and what does not."""

from __future__ import annotations

import random

import pytest

from app.memory.examples import LEAST
from app.memory.similarity import TextIndex, likeness, words_of

SAME = [
    ("What does ls do?", "what does the `ls` command do?"),
    ("What does ls do?", "Tell me what ls does"),
    ("What is the wifi password for guests?", "What's the guest wifi password?"),
    ("What is the wifi password for guests?", "tell me the PASSWORD of the wifi for guests."),
    ("How long do we keep invoices?", "For how long are invoices kept?"),
    ("How long do we keep invoices?", "How many years do we keep invoices?"),
    ("Which port does the billing service use?", "What port is the billing service on?"),
    ("What is the capital of Zubrowka?", "what's the capital city of zubrowka"),
    ("What is the capital of Zubrowka?", "What is the capital of Zubrovka?"),
    ("¿Cuál es la capital de Zubrowka?", "cual es la capital de zubrowka"),
    ("¿Cuántos días de vacaciones tenemos?", "cuantos dias de vacaciones hay"),
    ("¿Cuántos días de vacaciones tenemos?", "¿Cuántos días de vacación tengo?"),
    ("How do I reset my password in Orion 4?", "reset password orion 4"),
    ("会社の休みは何日ですか", "会社の休みは何日か"),
]
OTHER = [
    ("What does ls do?", "What does cp do?"),
    ("What does ls do?", "What does the mkdir command do?"),
    ("What is the capital of Zubrowka?", "What is the capital of Ruritania?"),
    ("What is the capital of Zubrowka?", "what is the capital of france?"),
    ("What is the capital of Zubrowka?", "What is the currency of Zubrowka?"),
    ("¿Cuál es la capital de Zubrowka?", "¿Cuál es la moneda de Zubrowka?"),
    ("¿Cuántos días de vacaciones tenemos?", "¿Cuántos días tiene febrero?"),
    ("How do I reset my password in Orion 4?", "How do I reset my password in Orion 5?"),
    ("What is 12*7?", "What is 12*8?"),
    ("Which port does the billing service use?", "Which port does the search service use?"),
    ("Who is the head of the support team?", "Who is the head of the sales team?"),
    ("Translate 'cat' into French", "Translate 'dog' into French"),
    ("Summarize this text: the quick fox", "Summarize this text: the lazy dog"),
    ("hello", "hi there"),
    ("What is it?", "How does it work?"),
]


def alike(stored: str, asked: str, *, among: tuple[str, ...] = ()) -> float:
    index: TextIndex[int] = TextIndex()
    index.add(0, stored)
    for number, text in enumerate(among):
        index.add(number + 1, text)
    return dict(index.search(asked, least=0)).get(0, 0.0)


@pytest.mark.parametrize(("stored", "asked"), SAME)
def test_the_same_question_in_other_words_is_found(stored: str, asked: str) -> None:
    assert alike(stored, asked) >= LEAST
    assert alike(stored, asked, among=tuple(text for text, _ in OTHER + SAME if text != stored)) >= LEAST


@pytest.mark.parametrize(("stored", "asked"), OTHER)
def test_another_question_is_not(stored: str, asked: str) -> None:
    assert alike(stored, asked) < LEAST
    assert alike(stored, asked, among=tuple(text for text, _ in OTHER + SAME if text != stored)) < LEAST


def test_of_thousands_the_right_one_comes_first() -> None:
    chance = random.Random(7)
    words = ["".join(chance.choices("abcdefghilmnoprstuv", k=chance.randint(4, 8))) for _ in range(800)]
    texts = {number: f"How do I {' '.join(chance.sample(words, 6))}?" for number in range(3000)}
    index: TextIndex[int] = TextIndex()
    for number, text in texts.items():
        index.add(number, text)
    for number in chance.sample(sorted(texts), 50):
        found = index.search(texts[number].lower().replace("how do i", "tell me how to"), least=LEAST)
        assert found[0][0] == number


def test_what_is_removed_leaves_nothing_behind() -> None:
    index: TextIndex[str] = TextIndex()
    index.add("a", "the billing service listens")
    index.add("a", "the search service listens")
    index.add("b", "the search service sleeps")
    assert [key for key, _ in index.search("search service listens", least=LEAST)] == ["a"]
    for key in ("a", "b", "b", "c"):
        index.remove(key)
    assert len(index) == 0
    assert not index._postings
    assert not index._by_trigram
    assert index.search("search service", least=0) == []


@pytest.mark.parametrize(
    "text", ["", " ", "?", "\x00", "a" * 100_000, "é" * 3000, "的" * 3000, "🙂🙂", "x1 " * 5000, "\ud800 z"]
)
def test_any_text_will_do(text: str) -> None:
    index: TextIndex[int] = TextIndex()
    index.add(0, text)
    index.add(1, "an everyday text")
    assert all(0 <= score <= 1 for _, score in index.search(text, least=0))
    assert len(words_of(text).terms) <= 64


def test_what_is_common_to_all_texts_says_nothing() -> None:
    texts = tuple(
        f"In the Acme handbook, what is the rule for {thing}?" for thing in ("parking", "travel", "phones", "lunch", "keys")
    )
    assert alike("In the Acme handbook, what is the rule for dogs?", texts[0], among=texts[1:]) < 0.75
    assert likeness("invoice", "invoices") > 0.7 > likeness("enable", "disable")
    assert likeness("ls", "lsd") == 0
