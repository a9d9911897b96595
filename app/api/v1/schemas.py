"""JSON schemas that callers send, for tools and for answers: bounded, and checked word for word before any model sees them.

It checks that a schema is one: known keywords hold what they must, references stay inside. It validates no data, compiles no
pattern, and leaves to each provider which keywords it can enforce.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from app.api.bodies import MAX_DEPTH, check_depth
from app.core.errors import InvalidRequest

MAX_SCHEMA_BYTES: Final = 32_768
_MAX_PATTERN: Final = 512
_MAX_COUNT: Final = 2**31 - 1
_TYPES: Final = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
_ONE: Final = (
    "additionalProperties", "unevaluatedProperties", "propertyNames", "contains", "additionalItems", "unevaluatedItems", "not",
    "if", "then", "else",
)  # fmt: skip
_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_COUNTS: Final = (
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains",
)  # fmt: skip
_NUMBERS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_TEXTS: Final = ("title", "description", "format", "$id", "$schema", "$comment", "$anchor")
_PLAIN = re.compile(r"[A-Za-z0-9_$-]{1,64}")


def check_schema(schema: Mapping[str, Any], *, field: str) -> Mapping[str, Any]:
    """``schema`` itself. Raises InvalidRequest whose field leads to the place, as ``tools[0].function.parameters.type``."""
    try:
        check_depth(schema, field=field)
    except InvalidRequest:
        raise InvalidRequest(f"{field} is nested deeper than {MAX_DEPTH} levels.", field=field) from None
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        raise InvalidRequest(f"{field} is larger than {MAX_SCHEMA_BYTES} bytes.", field=field)
    _Checker(schema).check(schema, field)
    return schema


def json_schema_format(
    schema: Mapping[str, Any], *, name: str, strict: bool | None, description: str | None, field: str
) -> dict[str, Any]:
    """The ``response_format`` of a schema, as `Sampling.response_format` holds it. ``field``: where ``schema`` came."""
    inner: dict[str, Any] = {"name": name, "schema": check_schema(schema, field=field), "strict": bool(strict)}
    if description is not None:
        inner["description"] = description
    return {"type": "json_schema", "json_schema": inner}


def _bad(place: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid schema: {place} {why}.", field=place)


class _Checker:
    """Walks one schema. Its depth is bounded before, so it may call itself."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._by_keyword: dict[str, Callable[[Any, str], None]] = {
            "type": _check_type,
            "enum": _check_enum,
            "required": _check_names,
            "pattern": _check_pattern,
            "multipleOf": _check_multiple,
            "items": self._check_items,
            "$ref": self._check_reference,
            "$dynamicRef": _refuse_dynamic,
            "$recursiveRef": _refuse_dynamic,
            "dependentRequired": _check_dependent,
            **dict.fromkeys(_ONE, self.check),
            **dict.fromkeys(_LISTS, self._check_list),
            **dict.fromkeys(_MAPS, self._check_map),
            **dict.fromkeys(_COUNTS, _check_count),
            **dict.fromkeys(_NUMBERS, _check_number),
            **dict.fromkeys(_TEXTS, _check_text),
        }

    def check(self, schema: Any, place: str) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise _bad(place, "must be a schema: an object, true or false")
        for keyword, value in schema.items():
            check = self._by_keyword.get(keyword)
            if check is not None:
                check(value, f"{place}.{keyword}")

    def _check_list(self, value: Any, place: str) -> None:
        if not isinstance(value, list) or not value:
            raise _bad(place, "must be a list of schemas, and not empty")
        for index, schema in enumerate(value):
            self.check(schema, f"{place}[{index}]")

    def _check_map(self, value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise _bad(place, "must be an object whose values are schemas")
        for name, schema in value.items():
            if place.endswith(".patternProperties"):
                _check_pattern(name, place)
            self.check(schema, f"{place}.{name if _PLAIN.fullmatch(name) else '…'}")

    def _check_items(self, value: Any, place: str) -> None:
        if isinstance(value, list):  # a tuple, as the drafts before 2020-12 write it
            for index, schema in enumerate(value):
                self.check(schema, f"{place}[{index}]")
        else:
            self.check(value, place)

    def _check_reference(self, value: Any, place: str) -> None:
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            raise _bad(place, "must refer to a place in the schema itself, as #/$defs/name")
        target: Any = self._root
        for part in value.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and name.isdecimal() and len(name) < 6 and int(name) < len(target):
                target = target[int(name)]
            elif isinstance(target, dict) and name in target:
                target = target[name]
            else:
                raise _bad(place, "refers to nothing in the schema")
        if not isinstance(target, dict | bool):
            raise _bad(place, "refers to what is no schema")


def _check_type(value: Any, place: str) -> None:
    kinds = value if isinstance(value, list) else [value]
    if not kinds or not all(isinstance(kind, str) and kind in _TYPES for kind in kinds) or len(set(kinds)) != len(kinds):
        raise _bad(place, f"must be one of {', '.join(sorted(_TYPES))}, or a list of different ones")


def _check_enum(value: Any, place: str) -> None:
    if not isinstance(value, list) or not value:
        raise _bad(place, "must be a list of values, and not empty")


def _check_names(value: Any, place: str) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value) or len(set(value)) != len(value):
        raise _bad(place, "must be a list of different property names")


def _check_dependent(value: Any, place: str) -> None:
    if not isinstance(value, dict):
        raise _bad(place, "must be an object whose values are lists of property names")
    for names in value.values():
        _check_names(names, place)


def _check_pattern(value: Any, place: str) -> None:
    if not isinstance(value, str) or len(value) > _MAX_PATTERN:
        raise _bad(place, f"must be a regular expression of at most {_MAX_PATTERN} characters")


def _check_count(value: Any, place: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_COUNT:
        raise _bad(place, f"must be a whole number from 0 to {_MAX_COUNT}")


def _check_number(value: Any, place: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad(place, "must be a number")


def _check_multiple(value: Any, place: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise _bad(place, "must be a number greater than 0")


def _check_text(value: Any, place: str) -> None:
    if not isinstance(value, str):
        raise _bad(place, "must be text")


def _refuse_dynamic(value: Any, place: str) -> None:
    raise _bad(place, "is not supported; use $ref")
