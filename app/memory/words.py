"""Text folded to words that both full-text searches (SQLite FTS5 ``ascii``, PostgreSQL ``simple``) take as they are.

Case, accents and the plural do not count, in English and Spanish; scripts without spaces become pairs of characters. A word
comes out in a-z and 0-9 only, letters of other scripts written as their code, so that neither database cuts it in its own way
and both find the same. It knows no synonyms and no grammar: what is said in other words is found by vectors.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from typing import Final

_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
_NUMBER_FIRST = re.compile(r"[0-9]+[a-z]")
_LETTERS = re.compile(r"[a-z]+")
_MOST_LETTERS: Final = 40
"""Letters of a word that count; a longer one is known by its beginning."""
_MOST_QUERY_WORDS: Final = 64
_STOP_WORDS: Final = frozenset(
    """a about after again all also am an and any are as at be because been before being but by can could did do does doing done
    for from get had has have having he her here him his how i if in into is it its just like me more most must my no nor not of
    off on once only or our out over own please same she should so some such tell than that the their them then there these they
    this those through to too under until up us very was we were what when where which while who whom whose why will with would
    you your
    al algo ante aquel aqui asi aun aunque cada como con cual cuales cuando cuanto de del desde donde dos el ella ellas ellos en
    entre era eran es esa esas ese eso esos esta estaba estan estas este esto estos fue fueron ha han hasta hay la las le les lo
    los mas me mi mis mucho muy nada ni nos nosotros nuestra nuestro o os otra otro para pero por porque pues que quien quienes
    se sea segun ser si sin sino sobre son soy su sus tal tambien tan tanto te tiene tienen todo todos tu tus un una unas uno
    unos usted y ya yo""".split()  # noqa: SIM905  # a list that a person can read
)


def words_of_text(text: str) -> list[str]:
    """The words of a text in order, repetitions kept. Each is 1 to 161 characters of a-z and 0-9."""
    return [_safe(_stem(word)) for word in _plain_words(text)]


def query_words(text: str) -> list[str]:
    """The words to search for, each once, at most 64: as `words_of_text`, without everyday words unless there are only such."""
    plain = list(_plain_words(text[: 64 * _MOST_LETTERS * 4]))
    telling = [word for word in plain if word not in _STOP_WORDS] or plain
    return list(dict.fromkeys(_safe(_stem(word)) for word in telling))[:_MOST_QUERY_WORDS]


def scope_of(user_id: str, collection: str | None = None) -> str:
    """Words that stand for an owner, and for one collection of theirs.

    A row is stored with both (``scope_of(user, collection)``). Searched for all of ``scope_of(user)`` or of
    ``scope_of(user, collection)``, an index of words touches no foreign row.
    """
    owner = f"u{_digest(user_id)}"
    return owner if collection is None else f"{owner} c{_digest(f'{user_id}/{collection}')}"


def _plain_words(text: str) -> Iterator[str]:
    folded = text.lower() if text.isascii() else _without_accents(text)
    for found in _WORD.finditer(folded):
        word = found.group()
        if word.isascii():
            yield word[:_MOST_LETTERS]
        else:
            yield from _foreign(word)


def _without_accents(text: str) -> str:
    # Twice: folding the case can compose anew. Marks of other scripts (Thai vowels) are letters to \w and stay.
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def _foreign(word: str) -> Iterator[str]:
    at = 0
    for run in _UNSPACED.finditer(word):
        if run.start() > at:
            yield word[at : run.start()][:_MOST_LETTERS]
        pair = run.group()
        if len(pair) == 1:
            yield pair
        yield from (pair[index : index + 2] for index in range(len(pair) - 1))
        at = run.end()
    if at < len(word):
        yield word[at:][:_MOST_LETTERS]


def _stem(word: str) -> str:
    """Without the endings of the plural: ``files`` and ``file``, ``canciones`` and ``cancion`` are one word."""
    if len(word) < 4 or _LETTERS.fullmatch(word) is None:
        return word
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    return word[:-1] if word.endswith("e") and len(word) > 4 else word


def _safe(word: str) -> str:
    if not word.isascii():
        return f"x{word.encode('utf-16-be', 'replace').hex()}"
    # PostgreSQL reads the beginning of "12e3kg" as a number and cuts there.
    return f"x{word}" if _NUMBER_FIRST.match(word) else word


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
