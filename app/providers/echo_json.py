"""The smallest JSON that a schema allows, for the echo provider. Covers what schemas of answers use; it is no validator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from app.core.errors import InvalidRequest

_MAX_DEPTH = 32
_MAX_ITEMS = 1000


def smallest_json(response_format: Mapping[str, Any], text: str) -> str:
    """JSON text for an OpenAI ``response_format``; without a schema ``{"echo": text}``.

    Raises:
        InvalidRequest: the schema is too deep, recursive, or asks for what this does not cover.
    """
    if response_format.get("type") == "json_schema":
        wrapper = response_format.get("json_schema")
        schema = wrapper.get("schema") if isinstance(wrapper, Mapping) else None
        if isinstance(schema, Mapping):
            try:
                return json.dumps(_Builder(schema, text).build(schema, 0), ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError, AttributeError, LookupError, OverflowError) as error:
                raise InvalidRequest("The JSON schema is not valid.", field="response_format") from error
    return json.dumps({"echo": text}, ensure_ascii=False)


class _Builder:
    def __init__(self, root: Mapping[str, Any], text: str) -> None:
        self._root = root
        self._text = text
        self._built = 0

    def build(self, schema: Any, depth: int) -> Any:
        self._built += 1
        if depth > _MAX_DEPTH or self._built > _MAX_ITEMS:
            raise InvalidRequest("The JSON schema is too deep, too large or refers to itself.", field="response_format")
        if not isinstance(schema, Mapping):
            return None
        if "$ref" in schema:
            return self.build(self._referred(schema["$ref"]), depth + 1)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][0]
        for union in ("anyOf", "oneOf", "allOf"):
            if schema.get(union):
                return self.build(schema[union][0], depth + 1)
        return self._typed(schema, depth)

    def _typed(self, schema: Mapping[str, Any], depth: int) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "null")
        if isinstance(kind, list):
            kind = kind[0] if kind else "null"
        match kind:
            case "object":
                properties, required = schema.get("properties", {}), schema.get("required", [])
                if not isinstance(required, list):
                    raise TypeError("required is not a list")
                return {name: self.build(properties.get(name), depth + 1) for name in required}
            case "array":
                count = min(int(schema.get("minItems", 0)), _MAX_ITEMS)
                return [self.build(schema.get("items"), depth + 1) for _ in range(count)]
            case "string":
                text = self._text[: int(schema.get("maxLength", len(self._text)))]
                return text.ljust(min(int(schema.get("minLength", 0)), _MAX_ITEMS), ".")
            case "integer" | "number":
                return schema.get("minimum", 0)
            case "boolean":
                return False
        return None

    def _referred(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise InvalidRequest("The JSON schema refers to something outside itself.", field="response_format")
        target: Any = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
        return target
