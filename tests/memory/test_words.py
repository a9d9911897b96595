"""Words for full-text search: what both databases take as they are, and what counts as the same word."""

from __future__ import annotations

import re
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.memory.words import query_words, scope_of, words_of_text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Canción", "canciones"),
        ("files", "FILE"),
        ("queries", "query"),
        ("max_tokens", "max tokens"),
        ("año", "ANO"),
        ("ﬁle", "file"),
        ("STRASSE", "straße"),
        ("documentos", "documento"),
    ],
)
def test_these_are_the_same(one: str, other: str) -> None:
    assert words_of_text(one) == words_of_text(other)


@pytest.mark.parametrize(
    ("one", "other"), [("class", "clas"), ("status", "statu"), ("cat", "car"), ("v1", "v2"), ("да", "нет")]
)
def test_these_are_not(one: str, other: str) -> None:
    assert words_of_text(one) != words_of_text(other)


def test_scripts_without_spaces_are_found_by_a_part() -> None:
    assert set(words_of_text("数据库")) <= set(words_of_text("向量数据库系统"))


def test_a_question_is_asked_without_its_everyday_words() -> None:
    assert query_words("What is the name of it, and where is the name?") == ["name"]
    assert query_words("¿Cuál es el límite?") == words_of_text("limites")
    assert query_words("to be or not to be")
    assert len(query_words(" ".join(f"word{number}" for number in range(500)))) == 64


@given(st.text(max_size=200))
def test_words_are_bounded_and_plain(text: str) -> None:
    for word in words_of_text(text) + query_words(text):
        assert re.fullmatch(r"[a-z0-9]{1,161}", word)
        assert not re.match(r"[0-9]+[a-z]", word)


@given(st.text(max_size=80))
def test_sqlite_takes_them_as_they_are(text: str) -> None:
    words = words_of_text(text)
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE VIRTUAL TABLE t USING fts5(w, tokenize='ascii')")
        connection.execute("CREATE VIRTUAL TABLE v USING fts5vocab(t, 'instance')")
        connection.execute("INSERT INTO t VALUES (?)", (" ".join(words),))
        assert [row[0] for row in connection.execute("SELECT term FROM v ORDER BY offset")] == words
    connection.close()


def test_a_scope_stands_for_one_owner_and_one_collection() -> None:
    owner = scope_of("one")
    assert scope_of("one", "a").split()[0] == owner
    assert len({*scope_of("one", "a").split(), *scope_of("one", "b").split(), *scope_of("two", "a").split()}) == 5
    assert all(re.fullmatch(r"[a-z][a-z0-9]{20,40}", word) for word in scope_of("one", "a").split())
    assert scope_of("one", "a") == scope_of("one", "a")
