"""How large a schema llguidance can follow. It is no validator: whether a schema is one was checked before.

Measured with xllamacpp 2026.10.11549: 1,000 optional properties in a row and patterns of some 10,000 places make llguidance
give up in mid-answer, after which llama.cpp goes on without any grammar; 60 patterns that must hold together keep it busy, and
the engine from all its other answers, for half a minute.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from app.core.errors import InvalidRequest

_MAX_OPTIONAL: Final = 400
_MAX_PATTERNS: Final = 64
_MAX_JOINED_PATTERNS: Final = 8
"""Where they must hold together (``allOf``, names of properties): each multiplies the work."""
_MAX_PATTERN_SIZE: Final = 10_000
_ATOM = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(?P<low>\d{1,9})(?P<range>,(?P<high>\d{1,9})?)?\}|(?P<mark>[()|*+?])|.", re.DOTALL
)


def check_size(schema: Mapping[str, Any], field: str) -> None:
    """Raises InvalidRequest for ``field`` where the schema is more than the engine can follow."""
    size = _Size()
    size.add(schema)
    if size.optional > _MAX_OPTIONAL:
        raise InvalidRequest(f"A schema has more than {_MAX_OPTIONAL} properties that are not required.", field=field)
    if size.patterns > (_MAX_JOINED_PATTERNS if size.joined else _MAX_PATTERNS):
        raise InvalidRequest("A schema has too many patterns for this engine; use fewer.", field=field)
    if size.longest > _MAX_PATTERN_SIZE:
        raise InvalidRequest("A schema has a pattern whose repetitions are too many for this engine.", field=field)


def pattern_size(pattern: str) -> int:
    """About how many places an automaton of ``pattern`` has: its characters, each as often as it may be repeated."""
    totals, last = [0], 0
    for atom in _ATOM.finditer(pattern):
        mark = atom["mark"]
        if atom["low"] is not None:
            last *= max(int(atom["high"] or atom["low"]), 1)
        elif mark == "(":
            totals[-1] += last
            totals.append(0)
            last = 0
        elif mark == ")":
            last += totals.pop() if len(totals) > 1 else 0
        elif mark is None:
            totals[-1] += last
            last = 1
    return sum(totals) + last


class _Size:
    """What makes a schema costly, counted over all of it; names of properties that are keywords too only add to it."""

    def __init__(self) -> None:
        self.optional = 0
        self.patterns = 0
        self.longest = 0
        self.joined = False

    def add(self, schema: Any) -> None:
        if isinstance(schema, list):
            for item in schema:
                self.add(item)
        elif isinstance(schema, Mapping):
            properties, required = schema.get("properties"), schema.get("required")
            if isinstance(properties, Mapping):
                self.optional += len(properties.keys() - set(required if isinstance(required, list) else ()))
            by_name = schema.get("patternProperties")
            patterns = [schema["pattern"]] if isinstance(schema.get("pattern"), str) else []
            patterns += by_name if isinstance(by_name, Mapping) else ()
            self.patterns += len(patterns)
            self.longest = max([self.longest, *map(pattern_size, patterns)])
            self.joined |= "allOf" in schema or "patternProperties" in schema
            for item in schema.values():
                self.add(item)
