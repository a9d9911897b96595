"""Grammars that hold a model to a JSON schema, or to calls of tools, in the Lark form that llama.cpp's llguidance reads.

It writes grammars and asks the engine once whether one can be followed; what a schema means is llguidance's affair. llama.cpp
answers *without* a grammar, and says nothing, where llguidance refuses it: so no grammar is used that was not tried first. What
would fail only in mid-answer, or keep the engine from all other work while it is compiled, is refused by its size
(`llamacpp_limits`).
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.core.errors import InvalidRequest, UpstreamError
from app.providers.llamacpp_calls import CLOSE, OPEN
from app.providers.llamacpp_limits import check_size
from app.providers.versions import text_hash
from app.providers.wire import WireClient

_MAX_CALLS = 16
_MAX_TRIED = 512
_TRY_S = 20.0
"""Longest time for the first token under a new grammar."""
_TRIAL_PROMPT, _TRIAL_MARK = "Once upon a", " time there was a"
_TRIAL_TOKENS = 8
"""Those of the mark, and some more: a model without a grammar goes on in words, and no JSON begins with a space."""
_HEADER = "%llguidance {}\n"
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
_ONE = ("additionalProperties", "contains", "not", "if", "then", "else", "propertyNames", "items")
_LISTS = ("anyOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")


@dataclass(frozen=True, slots=True)
class Grammar:
    """An answer in the form ``start``; ``rules`` say what ``body`` is. ``field`` of the request: for errors."""

    start: str
    rules: str
    field: str

    @property
    def text(self) -> str:
        """As the engine takes it."""
        return f"{_HEADER}start: {self.start}\n{self.rules}"

    @property
    def trial(self) -> str:
        """The same rules behind a beginning that `_follows` knows."""
        return f"{_HEADER}start: {_literal(_TRIAL_MARK)} body\n{self.rules}"


def of_schema(response_format: Mapping[str, Any]) -> Grammar:
    """An answer that is JSON of a schema, or any JSON object."""
    schema, strict = _wanted(response_format)
    return Grammar("body", f"body: {_json(schema, strict, 'response_format')}\n", "response_format")


def of_tools(
    tools: Sequence[Mapping[str, Any]], *, forced: bool, parallel: bool, response_format: Mapping[str, Any] | None = None
) -> Grammar:
    """Text or calls, or calls alone where ``forced``; one call alone unless ``parallel``.

    Args:
        response_format: what an answer that is no call must be.
    """
    rules = [
        f"body: call{f' ({_literal(chr(10) + OPEN)} call){{0,{_MAX_CALLS - 1}}}' if parallel else ''}",
        f"call: {' | '.join(f'call{number}' for number in range(len(tools)))}",
        *(f"call{number}: {_call(tool['function'])}" for number, tool in enumerate(tools)),
    ]
    if forced:
        start = f"{_literal(OPEN)} body"
    elif response_format is not None:
        start = f"said | {_literal(OPEN)} body"
        schema, strict = _wanted(response_format)
        rules.append(f"said: {_json(schema, strict, 'response_format')}")
    else:
        start = "PLAIN | CALLING body"
        rules.append(f"PLAIN: /(?s:.*)/ & ~/(?s:.*{OPEN}.*)/")
        rules.append(f"CALLING: /(?s:.*{OPEN})/ & ~/(?s:.*{OPEN}.+)/")
    return Grammar(start, "\n".join(rules) + "\n", "tools")


def _call(function: Mapping[str, Any]) -> str:
    head = f'\n{{"name": {json.dumps(function["name"])}, "arguments": '
    parameters = {"properties": {}, **(function.get("parameters") or {}), "type": "object"}
    held = _json(parameters, bool(function.get("strict")), "tools")
    return f"{_literal(head)} {held} {_literal('}' + chr(10) + CLOSE)}"


def _wanted(response_format: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    if response_format.get("type") == "json_schema":
        wrapper = response_format.get("json_schema") or {}
        return wrapper.get("schema") or {"type": "object"}, bool(wrapper.get("strict"))
    return {"type": "object"}, False


def _json(schema: Mapping[str, Any], strict: bool, field: str) -> str:
    """``strict``: keywords that cannot be enforced are refused; else they are ignored. Raises InvalidRequest for size."""
    check_size(schema, field)
    return "%json " + json.dumps({**_closed(schema), "x-guidance": {**_SPACING, "lenient": not strict}})


def _closed(schema: Any) -> Any:
    """``schema`` whose objects take the properties they name and no others, where it leaves that open.

    What is allowed and not asked for a small model fills with noise. Parts of ``allOf`` stay open: they belong together.
    """
    if not isinstance(schema, Mapping):
        return schema
    closed = dict(schema)
    for name in _ONE:
        if name in closed and name != "not":
            closed[name] = _closed_items(closed[name])
    for name in _LISTS:
        if isinstance(closed.get(name), list):
            closed[name] = [_closed(item) for item in closed[name]]
    for name in _MAPS:
        if isinstance(closed.get(name), Mapping):
            closed[name] = {key: _closed(item) for key, item in closed[name].items()}
    alone = not {"allOf", "anyOf", "oneOf", "$ref", "patternProperties", "unevaluatedProperties", "if"} & closed.keys()
    if "properties" in closed and alone:
        closed.setdefault("additionalProperties", False)
    return closed


def _closed_items(value: Any) -> Any:
    return [_closed(item) for item in value] if isinstance(value, list) else _closed(value)


def _literal(text: str) -> str:
    return json.dumps(text)


class Trials:
    """Which grammars the engine can compile, asked once each."""

    def __init__(self) -> None:
        self._tried: OrderedDict[str, bool] = OrderedDict()

    async def check(self, grammar: Grammar, client: WireClient) -> None:
        """Raises InvalidRequest that names the grammar's field where the engine cannot hold an answer to it."""
        key = text_hash(grammar.trial)
        good = self._tried.get(key)
        if good is None:
            good = await _compiles(grammar, client)
            self._tried[key] = good
            while len(self._tried) > _MAX_TRIED:
                self._tried.popitem(last=False)
        if not good:
            what = "A tool's parameters hold" if grammar.field == "tools" else "The schema holds"
            raise InvalidRequest(
                f"{what} what this engine cannot enforce (a keyword, a pattern, or too much of all); simplify it.",
                field=grammar.field,
            )


async def _compiles(grammar: Grammar, client: WireClient) -> bool:
    body = {
        "prompt": _TRIAL_PROMPT,
        "n_predict": _TRIAL_TOKENS,
        "temperature": 0,
        "grammar": grammar.trial,
        "cache_prompt": False,
        "lora": [],
    }
    try:
        async with asyncio.timeout(_TRY_S):
            said = (await client.json("POST", "/completion", body))["content"]
    except (TimeoutError, InvalidRequest):
        return False
    except (KeyError, TypeError) as error:
        raise UpstreamError("The engine does not say whether it can hold an answer to this form.") from error
    return isinstance(said, str) and _follows(said, calls=grammar.field == "tools")


def _follows(said: str, *, calls: bool) -> bool:
    """Whether the answer to a trial keeps to its grammar: the mark, then a call's or a value's beginning."""
    if not said.startswith(_TRIAL_MARK):
        return False
    body = said.removeprefix(_TRIAL_MARK)
    return body.startswith("\n{") if calls else body[:1] in tuple('{["-0123456789tfn')
