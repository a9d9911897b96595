"""Which prompts are the same: the key by which a dataset is grouped before it is split.

Two prompts are one when their system text and last user turn are equal but for case, spaces, Unicode form and the
punctuation around words. They are near-duplicates when the user turns have the same content words (numbers are words; only
function words and politeness may differ) and the shingles of the whole are alike (Jaccard). A differing content word keeps
two prompts apart however alike the rest is: "What does ls do?" is not "What does cp do?". This is no paraphrase detector.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_EDGES: Final = ".,;:!?\"'()[]{}<>…¿¡«»“”‘’„`*_、。！？"
"""Punctuation that says nothing at the edge of a word; inside one (``1.5``, ``a.b``) it does, and so do ``C++`` and ``C#``."""
_POLITE: Final = frozenset(["please", "thanks", "thank", "hi", "hello", "hey", "kindly", "bitte", "danke", "hallo", "hola"])
_FUNCTION: Final = _POLITE | frozenset(
    re.findall(
        r"\w+",
        "a an the is are was were be been am do does did to of in on at for and or that this these those it its i me my you"
        " your we us our can could would will shall should may might what which so just then there here tell explain",
    )
)
_LONG = 60
"""From so many content words on, shingles are made of words, not of characters."""
_MOST_WORDS = 20_000
_MOST_LEADERS = 64
"""With so many groups at most a prompt is compared; further variants of the same words are groups of their own."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is kept of a prompt to group it. ``text``: hash of the normalised prompt; ``words``: of its content words."""

    text: bytes
    words: bytes


def tokens(text: str) -> list[str]:
    """The words of a text as they are compared: NFKC, case folded, without punctuation around them."""
    found = (word.strip(_EDGES) for word in unicodedata.normalize("NFKC", text).casefold().split())
    return [word for word in found if word][:_MOST_WORDS]


def normalise(text: str) -> str:
    """A text as it is compared."""
    return " ".join(tokens(text))


def question(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The system text and the last user turn of a prompt; without a user turn, all there is stands for it."""
    system = "\n".join(str(each["content"]) for each in messages if each["role"] == "system")
    turns = [str(each["content"]) for each in messages if each["role"] == "user"]
    return system, turns[-1] if turns else "\n".join(str(each["content"]) for each in messages)


def fingerprint(messages: Sequence[Mapping[str, Any]]) -> Fingerprint:
    """What groups a prompt of ``{"role", "content"}`` messages."""
    system, user = question(messages)
    words = tokens(user)
    text = f"{normalise(system)}\n{' '.join(words)}"
    return Fingerprint(text=_hash(text), words=_hash("\n".join(sorted(_content(words)))))


def similarity(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> float:
    """Jaccard index of the shingles of two prompts, 0 to 1; 0 where the user turns differ in a content word."""
    words = [tokens(question(each)[1]) for each in (first, second)]
    if sorted(_content(words[0])) != sorted(_content(words[1])):
        return 0.0
    long = len(_content(words[0])) >= _LONG
    one, two = (_shingles(each, long=long) for each in (first, second))
    return len(one & two) / len(one | two)


def groups(
    prompts: Sequence[Fingerprint], messages: Callable[[int], Sequence[Mapping[str, Any]]], threshold: float
) -> list[str]:
    """The group of each prompt, 32 hex digits.

    A group is named after its oldest prompt (the first in the order given), which later near-duplicates join: its name stays
    as rows are added. ``messages(n)``: the prompt behind ``prompts[n]``, asked for only where content words coincide.
    """
    buckets: dict[bytes, dict[bytes, int]] = defaultdict(dict)
    for number, prompt in enumerate(prompts):
        buckets[prompt.words].setdefault(prompt.text, number)
    named: dict[tuple[bytes, bytes], str] = {}
    for words, bucket in buckets.items():
        leaders: list[tuple[bytes, Sequence[Mapping[str, Any]]]] = []
        for text, number in bucket.items():
            leader = text
            if len(bucket) > 1 and len(leaders) < _MOST_LEADERS:
                own = messages(number)
                leader = next((name for name, other in leaders if similarity(own, other) >= threshold), text)
                if leader == text:
                    leaders.append((text, own))
            named[words, text] = leader.hex()
    return [named[prompt.words, prompt.text] for prompt in prompts]


def _content(words: Sequence[str]) -> list[str]:
    return [word for word in words if word not in _FUNCTION] or list(words)


def _shingles(messages: Sequence[Mapping[str, Any]], *, long: bool) -> set[Any]:
    system, user = question(messages)
    words = [word for word in [*tokens(system), "\n", *tokens(user)] if word not in _POLITE]
    if long:
        return {tuple(words[at : at + 3]) for at in range(max(1, len(words) - 2))}
    text = f" {' '.join(words)} "
    return {text[at : at + 3] for at in range(max(1, len(text) - 2))}


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
