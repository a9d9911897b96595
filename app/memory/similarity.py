"""Which of some thousand short texts asks the same as a given one: an inverted index over words, in plain Python.

Words weigh what they tell apart: rare ones, names and numbers most, everyday words of English and Spanish next to nothing.
Accents and case do not count; a word that is written or inflected a little differently is found by its trigrams. What only one
of two texts speaks of tells against them: "What does ls do?" is not like "What does cp do?". No meaning, no other language, no
vectors: what is asked in quite other words is not found.
"""

from __future__ import annotations

import functools
import heapq
import math
import re
import unicodedata
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_WORD = re.compile(r"\w+")
_MOST_CHARACTERS: Final = 2000
_MOST_TERMS: Final = 64
_MOST_POSTINGS: Final = 2500
"""Entries of the index that one search reads, from the rarest word on."""
_CANDIDATES: Final = 12
_MOST_WEIGHTS: Final = 50_000
_COMMON: Final = 0.08
_LIGHT: Final = 0.3
_NUMBER: Final = 2.0
_NAME: Final = 1.6
_FLOOR: Final = 0.3
_PRIOR: Final = 10.0
"""Texts that are thought to be there, so that the first few do not make every word common."""
_ALIKE: Final = 0.55
"""Dice coefficient of the trigrams of two words from which on they count as one, misspelt or inflected."""
_FREQUENT_TRIGRAM: Final = 400
_COMMON_WORDS: Final = frozenset(
    """a about after again ahora al algo all also am an and ante any anything are as asi at aun aunque be because been
    before being but by cada can como con could cual cuales de del describe desde di dice did dime do does doesnt
    doing donde done dont e el ella ellas ellos en entre era eres es esa ese eso esta estan estas este esto estos
    explain explica favor for from fue get give gives ha hace hacer had han has hasta have having hay he her here him
    his hows i id if im in into is it its ive just know la las le les let like list lo long los make many mas may me
    mi might mis more most much must muy my nada name necesito need ni no nombre nos nosotros not now nuestra nuestro
    o of on one only or os other otra otro our out over para pero please poder podria por porque puede puedes puedo
    pues que quiero s sabe say se sea see ser shall she should show si sin so sobre some something son soy su such sus
    t tambien te tell tenemos tener tengo than that the their them then there these they thing this those through
    tiene tienen to todo todos too tu tus un una unas under uno unos up us use used usted very want was we were whats
    wheres whos will with would y ya yo you your""".split()  # noqa: SIM905  # a list that a person can read
)
_LIGHT_WORDS: Final = frozenset(
    """cuando cuanta cuantas cuanto cuantos encontrar encuentra encuentro find finds found funciona go goes hallar happen
    happens held hold how keep keeps kept pasa quien quienes take takes took went what when where which who whom whose
    why work works""".split()  # noqa: SIM905  # a list that a person can read
)
_SENTENCE_END: Final = frozenset(".!?:\n¿¡")
_UNSPACED = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


@dataclass(frozen=True, slots=True)
class Words:
    """A text as the index sees it: its words (without case and accents), and which of them are names or numbers."""

    terms: frozenset[str]
    names: frozenset[str]

    @property
    def telling(self) -> int:
        """How many words there are that say what it is about."""
        return sum(map(_is_content, self.terms))


def words_of(text: str) -> Words:
    """The words of a text; of a long one, of its beginning and its end."""
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[: _MOST_CHARACTERS // 2]} {text[-_MOST_CHARACTERS // 2 :]}"
    terms: dict[str, None] = {}
    names: set[str] = set()
    begins = True  # whether a capital letter means nothing here
    at = 0
    for found in _WORD.finditer(unicodedata.normalize("NFKC", text)):
        word = found.group()
        between = found.string[at : found.start()]
        quoted = between.endswith(("`", '"', "'", "“", "«", "‘")) and between[-2:-1] in ("", " ", "(")
        begins = begins or not _SENTENCE_END.isdisjoint(between)
        for term in _terms_of(word):
            if len(terms) >= _MOST_TERMS:
                return Words(frozenset(terms), frozenset(names))
            terms[term] = None
            if (
                any(map(str.isdigit, term))
                or quoted
                or (word[:1].isupper() and not begins)
                or (len(word) > 1 and word.isupper())
            ):
                names.add(term)
        begins, at = False, found.end()
    return Words(frozenset(terms), frozenset(names))


def _terms_of(word: str) -> Iterator[str]:
    plain = "".join(char for char in unicodedata.normalize("NFD", word.casefold()) if not unicodedata.combining(char))
    if _UNSPACED.search(plain) and len(plain) > 2:
        yield from (plain[index : index + 2] for index in range(len(plain) - 1))  # scripts without spaces: pairs of characters
    elif plain:
        yield plain


class TextIndex(Generic[K]):
    """Texts by key, to be found by what they have in common with another."""

    def __init__(self) -> None:
        self._texts: dict[K, Words] = {}
        self._postings: dict[str, dict[K, None]] = {}
        self._by_trigram: dict[str, dict[str, None]] = {}
        self._weights: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, key: K, text: str) -> None:
        """Takes a text, in place of an earlier one under that key."""
        self.remove(key)
        self._weights.clear()
        words = self._texts[key] = words_of(text)
        for term in words.terms:
            if term not in self._postings:
                for trigram in trigrams(term):
                    self._by_trigram.setdefault(trigram, {})[term] = None
            self._postings.setdefault(term, {})[key] = None

    def remove(self, key: K) -> None:
        """Forgets a text, if it is there."""
        words = self._texts.pop(key, None)
        if words is None:
            return
        self._weights.clear()
        for term in words.terms:
            keys = self._postings[term]
            del keys[key]
            if not keys:
                del self._postings[term]
                for trigram in trigrams(term):
                    del self._by_trigram[trigram][term]
                    if not self._by_trigram[trigram]:
                        del self._by_trigram[trigram]

    def search(self, text: str, *, least: float) -> list[tuple[K, float]]:
        """The texts that are like ``text``, with their scores from ``least`` (0 to 1), the most alike first."""
        query = words_of(text)
        if len(self._weights) > _MOST_WEIGHTS:  # callers' words, too, are remembered
            self._weights.clear()
        alike = {term: self._written_like(term) for term in query.terms if _is_content(term)}
        wanted = dict.fromkeys([*query.terms, *(other for found in alike.values() for other in found)])
        gathered: dict[K, float] = {}
        room = _MOST_POSTINGS
        for term in sorted((term for term in wanted if term in self._postings), key=lambda each: len(self._postings[each])):
            keys, weight = self._postings[term], self._weight(term, query.names)
            room -= len(keys)
            if room < 0 and gathered:
                break
            for key in keys:
                gathered[key] = gathered.get(key, 0.0) + weight
        best = heapq.nlargest(_CANDIDATES, gathered, key=gathered.__getitem__)
        scored = ((key, self._score(query, alike, self._texts[key])) for key in best)
        return sorted(((key, score) for key, score in scored if score >= least), key=lambda each: -each[1])

    def _score(self, query: Words, alike: Mapping[str, Mapping[str, float]], text: Words) -> float:
        """How alike two texts are, 0 to 1: what they share against what only one of them has.

        A paraphrase leaves words out or adds some; another question has others in their place. So what stands on both sides
        without an equal tells against them once more, and a name or a number in place of another says it all.
        """
        names = query.names | text.names
        left, right = query.terms - text.terms, set(text.terms - query.terms)
        shared = sum(self._weight(term, names) for term in query.terms & text.terms)
        only = dict.fromkeys(left, 0.0)
        for term in only:
            weight = self._weight(term, names)
            match = max(
                (each for each in alike.get(term, ()) if each in right), key=alike.get(term, {}).__getitem__, default=None
            )
            if match is None:
                only[term] = weight
                continue
            right.remove(match)
            shared += alike[term][match] * min(weight, self._weight(match, names))
        others = {term: self._weight(term, names) for term in right}
        if any(only[term] and term in names for term in only) and any(term in names for term in others):
            return 0.0
        one, other = sum(only.values()), sum(others.values())
        return shared / (shared + (one + other) / 2 + min(one, other) / 2) if shared else 0.0

    def _written_like(self, term: str) -> dict[str, float]:
        """Words of the index that are written like this one, each with how much."""
        counts: dict[str, int] = {}
        own = trigrams(term)
        for trigram in own:
            found = self._by_trigram.get(trigram, {})
            if len(found) <= _FREQUENT_TRIGRAM:
                for other in found:
                    counts[other] = counts.get(other, 0) + 1
        likely = (other for other, count in counts.items() if count * 3 > len(own) and other != term and _is_content(other))
        return {other: alike for other in likely if (alike := likeness(term, other)) >= _ALIKE}

    def _weight(self, term: str, names: frozenset[str]) -> float:
        weight = self._weights.get(term)
        if weight is None:
            weight = self._weights[term] = self._weight_of(term)
        if term in names:
            return weight * (_NUMBER if any(map(str.isdigit, term)) else _NAME)
        return weight

    def _weight_of(self, term: str) -> float:
        if not _is_content(term):
            return _COMMON if term in _COMMON_WORDS else _LIGHT
        many = len(self._texts) + _PRIOR
        return _FLOOR + math.log(many / (len(self._postings.get(term, ())) + 1)) / math.log(many)


@functools.lru_cache(maxsize=16_384)
def trigrams(word: str) -> frozenset[str]:
    """The runs of three characters of a word, its edges marked; none for a word so short or exact that a letter matters."""
    if len(word) < 4 or any(map(str.isdigit, word)):
        return frozenset()
    marked = f"\x02{word}\x03"
    return frozenset(marked[index : index + 3] for index in range(len(marked) - 2))


def likeness(one: str, other: str) -> float:
    """The Dice coefficient of the trigrams of two words."""
    first, second = trigrams(one), trigrams(other)
    return 2 * len(first & second) / (len(first) + len(second)) if first and second else 0.0


def _is_content(term: str) -> bool:
    return term not in _COMMON_WORDS and term not in _LIGHT_WORDS
