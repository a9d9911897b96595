"""What can be told of one answer by looking at it: language, tone, form, refusal, repetition. Rules of thumb, no model.

They are used to compare two versions on the same prompts, where what a rule gets wrong it gets wrong for both.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from app.training.gate.similarity import tokens


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_LONGEST: Final = 8_000
_FUNCTION_WORDS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "en": _set("the of and to in is that it for was on with as at by this are be from have not you which"),
        "es": _set("el la los las de del y que en es un una por con para se su lo como más pero al está son no"),
        "fr": _set("le la les des du et que est un une pour dans avec sur pas ce cette qui sont vous nous au"),
        "de": _set("der die das und ist nicht ein eine mit für auf zu den dem sich von im sie wir auch es"),
        "pt": _set("o os as do da dos das e que em é um uma para com não se por mais ao são na no"),
        "it": _set("il lo gli di e che è un una per con non si del della sono nel alla più come anche"),
    }
)
_SCRIPTS: Final[tuple[tuple[str, str], ...]] = (
    ("ja", "\u3040-\u30ff"),
    ("zh", "\u3400-\u9fff"),
    ("ko", "\uac00-\ud7af"),
    ("ru", "\u0400-\u04ff"),
    ("ar", "\u0600-\u06ff"),
    ("he", "\u0590-\u05ff"),
    ("el", "\u0370-\u03ff"),
    ("hi", "\u0900-\u097f"),
    ("th", "\u0e00-\u0e7f"),
)
_LEAST_WORDS: Final = 3
_FIRST_PERSON: Final = re.compile(
    r"\bI(?:['’](?:m|ve|d|ll))?\b|\b(?i:my|mine|myself|me|yo|mis?|m[ií]o|conmigo|soy|estoy|puedo|tengo|creo|quiero|espero)\b"
)
_EMOJI: Final = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf\U0001f1e6-\U0001f1ff]")
_POLITE: Final = re.compile(
    r"\b(?:please|thank(?:s| you)|sorry|welcome|of course|certainly|glad|happy to|my pleasure|por favor|gracias|perd[oó]n|"
    r"lo siento|con gusto|claro que|por supuesto|encantad[oa]|de nada|disculp[ae])\b",
    re.IGNORECASE,
)
_FORMATTED: Final = re.compile(r"^[ \t]{0,8}(?:[-*•] |\d{1,3}[.)] |#{1,6} |```|\|)|\*\*[^*\s][^*\n]{0,200}\*\*", re.MULTILINE)
_REFUSAL: Final = re.compile(
    r"\bI(?:['’]m| am)? (?:can(?:no|['’])t|will not|won['’]t|unable to|not able to|sorry,? but)\b|\bI am not able\b|"
    r"\bas an? (?:AI|artificial)|\b(?:can(?:no|['’])t|unable to) (?:help|assist|provide)\b|"
    r"\bno (?:puedo|podemos|es posible) (?:ayudar|proporcionar|responder|hacer|dar)|\blo siento,? (?:pero )?no\b|"
    r"\bcomo (?:una )?(?:IA|inteligencia artificial)\b",
    re.IGNORECASE,
)


def language(text: str) -> str | None:
    """The language as a two-letter code: by script, else by function words; None where it cannot be told."""
    text = text[:_LONGEST]
    letters = sum(map(str.isalpha, text))
    for code, span in _SCRIPTS:
        if letters and len(re.findall(f"[{span}]", text)) > 0.3 * letters:
            return code
    words = tokens(text)
    counts = {code: sum(word in known for word in words) for code, known in _FUNCTION_WORDS.items()}
    best, second = sorted(counts.values(), reverse=True)[:2]
    if len(words) < _LEAST_WORDS or best < 2 or best == second:
        return None
    return max(counts, key=lambda code: counts[code])


def answers_in(text: str, expected: str | None) -> bool:
    """Whether nothing shows that the text is in another language than ``expected``."""
    return expected is None or language(text) in (None, expected)


def is_refusal(text: str) -> bool:
    """Whether the answer begins by refusing."""
    return _REFUSAL.search(text[:240]) is not None


def is_degenerate(text: str) -> bool:
    """Empty, or going round in circles: one character, or four words in a row, again and again."""
    words = tokens(text)
    if not words:
        return not text.strip()
    if re.search(r"([^\s.\-=_*])\1{14}", text[:_LONGEST]):
        return True
    grams = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    return bool(grams) and grams.most_common(1)[0][1] >= 4


def is_json(text: str) -> bool:
    """Whether the answer is a JSON object or array, in a code fence or bare."""
    _, fence, fenced = text[:_LONGEST].partition("```")
    bare = fenced.partition("```")[0].removeprefix("json") if fence else text[:_LONGEST]
    try:
        found = json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict | list)


def is_impersonal(text: str) -> bool:
    """Whether nobody says "I"."""
    return _FIRST_PERSON.search(text[:_LONGEST]) is None


def _found(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: pattern.search(text[:_LONGEST]) is not None


TONE: Final[Mapping[str, Callable[[str], bool]]] = MappingProxyType(
    {
        "impersonal": is_impersonal,
        "exclamation": lambda text: "!" in text or "¡" in text,
        "emoji": _found(_EMOJI),
        "politeness": _found(_POLITE),
        "formatting": _found(_FORMATTED),
    }
)
"""Properties of which the share may change only towards what people asked for."""
