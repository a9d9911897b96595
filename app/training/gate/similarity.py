"""How like two texts are, in [0, 1]: the mean of token F1 and of a chrF-like F over character n-grams. No model, no language.

Token F1 forgives punctuation and case, the character n-grams do not: a house style may be nothing else. Numbers count once
more, for two sentences that differ in a number alone say different things. Scripts without spaces are cut into characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Final

_LONGEST: Final = 8_000
_ORDERS: Final = (1, 2, 3, 4)
_SPACELESS: Final = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana, Han
)
_TOKEN: Final = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")
_NUMBER: Final = re.compile(r"\d+(?:[.,:]\d+)*")
_SPACE: Final = re.compile(r"\s+")


def tokens(text: str) -> list[str]:
    """Words in lower case, and single characters of scripts without spaces. Marks are parts of words."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text[:_LONGEST]).casefold())


def similarity(answer: str, wanted: str) -> float:
    """1.0 for equal texts (blanks apart), 0.0 for texts that share nothing. Texts are cut at 8,000 characters."""
    left, right = _SPACE.sub(" ", answer[:_LONGEST]).strip(), _SPACE.sub(" ", wanted[:_LONGEST]).strip()
    if left == right:
        return 1.0
    if not left or not right:
        return 0.0
    parts = [_f1(tokens(left), tokens(right)), _characters(left, right)]
    numbers = _NUMBER.findall(left), _NUMBER.findall(right)
    if any(numbers):
        parts.append(_f1(*numbers))
    return min(1.0, sum(parts) / len(parts))


def _characters(left: str, right: str) -> float:
    orders = [order for order in _ORDERS if order <= min(len(left), len(right))]
    return sum(_f1(_ngrams(left, order), _ngrams(right, order)) for order in orders) / len(orders)


def _ngrams(text: str, order: int) -> Iterable[str]:
    return (text[at : at + order] for at in range(len(text) - order + 1))


def _f1(left: Iterable[Hashable], right: Iterable[Hashable]) -> float:
    one, other = Counter(left), Counter(right)
    shared = sum((one & other).values())
    return 2 * shared / (sum(one.values()) + sum(other.values())) if shared else 0.0
