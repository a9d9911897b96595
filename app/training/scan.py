"""What must not be learned by accident: personal data, secrets and control tokens in texts, by kind and count, never the text.

Every expression is linear: no nested or adjacent unbounded repetition, and every run has a most. Long texts are read in
windows, so that no single match holds the interpreter for long. What it finds is evidence for a reviewer, no proof, and what
it misses is not promised to be absent.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final

_WINDOW = 16_384
_OVERLAP = 512
"""How far a match may reach beyond its window: more than most things that are looked for."""

_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
"""Characters that nobody sees, with which a word can be hidden from an expression but not from a reader."""

SECRETS: Final = frozenset({"api_key", "private_key", "jwt", "password", "random_token"})
CONTROL: Final = frozenset({"control_token"})
INJECTION: Final = frozenset({"instruction"})


def scan(text: str) -> Counter[str]:
    """Kinds of findings in a text, with how often. Kinds: see `_RULES`."""
    text = _UNSEEN.sub("", text)
    gates = {name for name, gate in _GATES.items() if gate(text)}
    found: Counter[str] = Counter()
    for kind, gate, expression, check in _RULES:
        if gate in gates:
            count = sum(check is None or check(match.group()) for match in _matches(expression, text))
            if count:
                found[kind] += count
    return found


def _matches(expression: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """All matches, looked for in a window at a time. What begins in a window may end behind it."""
    done = 0
    for start in range(0, len(text), _WINDOW):
        for match in expression.finditer(text, max(start, done), start + _WINDOW + _OVERLAP):
            if match.start() >= start + _WINDOW:
                break
            done = match.end()
            yield match


def _digits(text: str) -> str:
    return "".join(char for char in text if char.isdigit())


def _luhn(text: str) -> bool:
    digits = [int(char) for char in _digits(text)]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[-2::-2]]
    return (sum(digits[::-2]) + sum(doubled)) % 10 == 0


def _iban(text: str) -> bool:
    plain = text.replace(" ", "").upper()
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4])) % 97 == 1


def _phone(text: str) -> bool:
    return 8 <= len(_digits(text)) <= 15


def _address(text: str) -> bool:
    try:
        return not ipaddress.ip_address(text).is_unspecified
    except ValueError:
        return False


def _ssn(text: str) -> bool:
    area, group, serial = text.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _spanish_id(text: str) -> bool:
    number = text[:-1].upper().replace("X", "0").replace("Y", "1").replace("Z", "2").replace("-", "")
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == text[-1].upper()


def _random(text: str) -> bool:
    """Whether a run of letters and digits looks drawn by chance: many different ones, mixed, with digits."""
    if not (any(map(str.isdigit, text)) and any(map(str.islower, text)) and any(map(str.isupper, text))):
        return False
    counts = Counter(text)
    entropy = -sum(count / len(text) * math.log2(count / len(text)) for count in counts.values())
    return entropy > 4.2


_NUMBER = re.compile(r"[0-9][0-9 ./()-]{5}")
_RUN = re.compile(r"[^\s]{20}")


def _holds(*words: str) -> Callable[[str], bool]:
    def gate(text: str) -> bool:
        folded = text.lower()
        return any(word in folded for word in words)

    return gate


_GATES: Final[Mapping[str, Callable[[str], bool]]] = {
    "at": lambda text: "@" in text,
    "digits": lambda text: _NUMBER.search(text) is not None,
    "colons": lambda text: text.count(":") > 1,
    "dashes": lambda text: "-----BEGIN" in text,
    "long": lambda text: _RUN.search(text) is not None,
    "password": _holds("passw", "secret", "token", "api", "contrase", "kennwort"),
    "brackets": lambda text: "<" in text or "[" in text,
    "instruction": _holds(
        "ignore",
        "disregard",
        "forget",
        "override",
        "you are now",
        "from now on",
        "act as if",
        "pretend to be",
        "system prompt",
        "developer mode",
        "jailbreak",
    ),
}
"""Cheap questions, asked once a text: where the answer is no, none of the expressions behind it can match."""

_Rule = tuple[str, str, re.Pattern[str], Callable[[str], bool] | None]

_RULES: Final[tuple[_Rule, ...]] = (
    ("email", "at", re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"), None),
    ("iban", "digits", re.compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _iban),
    ("credit_card", "digits", re.compile(r"(?<![\w.-])(?:[0-9][ -]?){12,18}[0-9](?![\w-])"), _luhn),
    (
        "phone",
        "digits",
        re.compile(r"(?<![\w.+-])(?:\+[0-9]{1,3}|\(?0[0-9]{1,5}\)?)(?:[ ./-]{0,3}\(?[0-9]{2,5}\)?){1,6}(?!\w)"),
        _phone,
    ),
    ("national_id", "digits", re.compile(r"(?<![\w-])[0-9]{3}-[0-9]{2}-[0-9]{4}(?![\w-])"), _ssn),
    ("national_id", "digits", re.compile(r"\b(?:[0-9]{8}|[XYZxyz]-?[0-9]{7})-?[A-Za-z]\b"), _spanish_id),
    ("ip_address", "digits", re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w.])"), _address),
    (
        "ip_address",
        "colons",
        re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){1,6}(?![\w:])"),
        _address,
    ),
    ("private_key", "dashes", re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY"), None),
    ("jwt", "long", re.compile(r"\beyJ[\w-]{8,400}\.eyJ[\w-]{8,400}"), None),
    (
        "api_key",
        "long",
        re.compile(
            r"(?<![A-Za-z0-9])(?:sk-[A-Za-z0-9_-]{20,200}|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,255}"
            r"|github_pat_[A-Za-z0-9_]{22,255}|glpat-[\w-]{20,100}|xox[abprs]-[A-Za-z0-9-]{10,200}|AIza[\w-]{35}"
            r"|hf_[A-Za-z0-9]{30,64}|[rsp]k_(?:live|test)_[A-Za-z0-9]{16,128}|SG\.[\w-]{16,64}\.[\w-]{16,64}"
            r"|npm_[A-Za-z0-9]{36}|pypi-[\w-]{40,200}|apz_[A-Za-z0-9_-]{20,200})"
        ),
        None,
    ),
    (
        "password",
        "password",
        re.compile(
            r"(?i)\b(?:password|passwd|passwort|kennwort|contraseña|secret|api[_ -]?key|access[_ -]?token)\b"
            r"\"?[ \t]{0,4}(?::|=|is\b)[ \t]{0,4}[\"']?(?=[^\s\"']{0,64}[0-9])[^\s\"']{8,64}"
        ),
        None,
    ),
    ("random_token", "long", re.compile(r"(?<![\w/+=.-])[A-Za-z0-9+_-]{32,200}={0,2}(?![\w/+.-])"), _random),
    (
        "control_token",
        "brackets",
        re.compile(
            r"<\|[A-Za-z0-9_ ]{1,40}\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|</?s>|<(?:bos|eos|pad|unk)>"
            r"|<\uff5c[^\uff5c<>]{1,40}\uff5c>"
        ),
        None,
    ),
    (
        "instruction",
        "instruction",
        re.compile(
            r"(?i)\b(?:ignore|disregard|forget|override)\b[^.\n]{0,40}\b(?:previous|prior|above|earlier|all|your|system)\b"
            r"[^.\n]{0,40}\b(?:instructions?|prompts?|rules?|messages?|guidelines?)\b"
            r"|\b(?:you are now|from now on,? you|act as if you|pretend to be)\b|\b(?:system prompt|developer mode|jailbreak)\b"
        ),
        None,
    ),
)
