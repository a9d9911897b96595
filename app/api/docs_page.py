"""The reference page: an OpenAPI document as plain HTML, with a curl line for each operation. No script, no other file."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any, Final

STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;padding:1rem;max-width:60rem}
h2{border-bottom:1px solid var(--line);margin-top:3rem;text-transform:capitalize}
h3{font-size:1rem;margin:2rem 0 .25rem}
code,pre{font-family:ui-monospace,monospace;font-size:.9em}
pre{background:var(--soft);padding:.75rem;overflow-x:auto;border-radius:.4rem}
.method{display:inline-block;min-width:4.5rem;font-weight:700}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;border-bottom:1px solid var(--line);padding:.3rem .6rem .3rem 0}
details{margin:.5rem 0}
summary{cursor:pointer}
nav a{margin-right:1rem}
"""

_DEPTH: Final = 4
Schema = dict[str, Any]


def render(document: dict[str, Any]) -> str:
    """The whole page."""
    schemas = document.get("components", {}).get("schemas", {})
    operations = [
        (operation["tags"][0] if operation.get("tags") else "other", path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    operations.sort(key=lambda each: each[0])
    tags = [tag for tag, _ in groupby(operations, key=lambda each: each[0])]
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(document["info"]["title"])} API</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head><body>',
        f"<h1>{_text(document['info']['title'])} API <small>{_text(document['info']['version'])}</small></h1>",
        "".join(f"<p>{_prose(each)}</p>" for each in document["info"].get("description", "").split("\n\n")),
        '<p>As a document for machines: <a href="/openapi.json">/openapi.json</a>.</p>',
        "<nav>" + "".join(f'<a href="#{_text(tag)}">{_text(tag)}</a>' for tag in tags) + "</nav><main>",
    ]
    for tag, group in groupby(operations, key=lambda each: each[0]):
        parts.append(f'<section><h2 id="{_text(tag)}">{_text(tag)}</h2>')
        parts.extend(_operation(path, method, operation, schemas) for _, path, method, operation in group)
        parts.append("</section>")
    parts.append("</main></body></html>")
    return "".join(parts)


def _operation(path: str, method: str, operation: Schema, schemas: dict[str, Schema]) -> str:
    name = operation.get("operationId", f"{method}{path}")
    parts = [
        f'<article id="{_text(name)}"><h3><code><span class="method">{method.upper()}</span> {_text(path)}</code></h3>',
        f"<p><strong>{_text(operation.get('summary', ''))}</strong> {_prose(operation.get('description', ''))}</p>",
        f"<pre>{_text(_curl(path, method, operation, schemas))}</pre>",
    ]
    parameters = operation.get("parameters", [])
    if parameters:
        rows = "".join(
            f"<tr><td><code>{_text(each['name'])}</code></td><td>{_text(each['in'])}</td>"
            f"<td>{_text(_kind(each.get('schema', {}), schemas))}</td><td>{_prose(each.get('description', ''))}</td></tr>"
            for each in parameters
        )
        parts.append(f"<details><summary>Parameters</summary><table>{rows}</table></details>")
    body = _json_schema(operation.get("requestBody", {}))
    if body is not None:
        parts.append(f"<details open><summary>Body</summary><table>{''.join(_rows(body, schemas))}</table></details>")
    parts.append(
        f"<details><summary>Answers</summary><table>{''.join(_answers(operation, schemas))}</table></details></article>"
    )
    return "".join(parts)


def _answers(operation: Schema, schemas: dict[str, Schema]) -> Iterator[str]:
    for status, response in operation["responses"].items():
        schema = _json_schema(response)
        fields = f"<table>{''.join(_rows(schema, schemas))}</table>" if schema is not None else ""
        yield f"<tr><th>{_text(status)}</th><td>{_prose(response.get('description', ''))}{fields}</td></tr>"


def _rows(schema: Schema, schemas: dict[str, Schema]) -> Iterator[str]:
    schema = _resolve(schema, schemas)
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        star = " (required)" if name in required else ""
        yield (
            f"<tr><td><code>{_text(name)}</code>{star}</td><td>{_text(_kind(field, schemas))}</td>"
            f"<td>{_prose(field.get('description', ''))}</td></tr>"
        )


def _kind(schema: Schema, schemas: dict[str, Schema]) -> str:
    """A schema in a few words: its type and bounds."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(_kind(each, schemas) for each in schema[several])
    if "enum" in schema:
        return " | ".join(json.dumps(each) for each in schema["enum"])
    kind = str(schema.get("type", "any"))
    if kind == "array":
        kind = f"array of {_kind(schema.get('items', {}), schemas)}"
    bounds = [f"{word} {schema[key]}" for key, word in _BOUNDS.items() if key in schema]
    return f"{kind} ({', '.join(bounds)})" if bounds else kind


_BOUNDS: Final = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "minLength": "characters from",
    "maxLength": "characters to",
    "maxItems": "items to",
    "pattern": "pattern",
    "default": "default",
}


def _curl(path: str, method: str, operation: Schema, schemas: dict[str, Schema]) -> str:
    words = ["curl", "-s"]
    if method not in ("get", "post") or (method == "post" and "requestBody" not in operation):
        words += ["-X", method.upper()]
    words.append(f'"$A{path}"')
    if {} not in operation.get("security", []):
        words.append('-H "Authorization: Bearer $TOKEN"')
    schema = _json_schema(operation.get("requestBody", {}))
    if schema is not None:
        example = _example(operation["requestBody"]["content"]["application/json"], schema, schemas)
        words += ["-H 'Content-Type: application/json'", f"-d '{json.dumps(example, ensure_ascii=False)}'"]
    return " ".join(words)


def _example(content: Schema, schema: Schema, schemas: dict[str, Schema]) -> Any:
    for named in content.get("examples", {}).values():
        return named["value"]
    return _sample(schema, schemas, 0)


def _sample(schema: Schema, schemas: dict[str, Schema], depth: int) -> Any:
    """A plausible value: the schema's own example, or one made from its type; of objects what is required."""
    schema = _resolve(schema, schemas)
    for given in (schema.get("examples", []), schema.get("enum", [])):
        if given:
            return given[0]
    if "anyOf" in schema:
        return _sample(schema["anyOf"][0], schemas, depth + 1)
    if schema.get("type") == "object" and depth < _DEPTH:
        properties = schema.get("properties", {})
        names = schema.get("required") or list(properties)[:2]
        return {name: _sample(properties[name], schemas, depth + 1) for name in names if name in properties}
    if schema.get("type") == "array":
        return [_sample(schema.get("items", {}), schemas, depth + 1)] if depth < _DEPTH else []
    return schema.get("default", {"integer": 1, "number": 1.0, "boolean": True}.get(schema.get("type", ""), "…"))


def _json_schema(holder: Schema) -> Schema | None:
    content: Schema = holder.get("content", {}).get("application/json", {})
    return content.get("schema")


def _resolve(schema: Schema, schemas: dict[str, Schema]) -> Schema:
    reference = schema.get("$ref")
    return schemas.get(str(reference).rpartition("/")[2], {}) if reference else schema


def _text(value: Any) -> str:
    return html.escape(str(value))


def _prose(text: str) -> str:
    """Text with `code` in backticks."""
    return "".join(f"<code>{_text(part)}</code>" if index % 2 else _text(part) for index, part in enumerate(text.split("`")))
