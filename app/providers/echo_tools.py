"""What the echo provider calls, as a pure function of the request: so that tools can be shown and tested without a model.

A line ``call NAME {"json": "arguments"}`` in the last message, a user's, calls the tool of that name; several lines call
several. Where the caller demands a call and names none that way, the first tool (or the demanded one) gets the smallest
arguments that its schema allows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.core.errors import InvalidRequest
from app.core.types import GenerationRequest, ToolCallDelta
from app.providers.echo_json import smallest_json
from app.providers.versions import text_hash

_ASKED = re.compile(r"^call ([A-Za-z0-9_.-]{1,128})[ \t]*", re.MULTILINE)
_MAX_CALLS = 32
_WORD = re.compile(r"\s*\S+")


def calls_of(request: GenerationRequest, said: str) -> list[tuple[str, str]]:
    """Names and JSON arguments of the tools that it calls; ``said``: what the last user message says.

    Raises InvalidRequest for a tool whose schema gives no arguments.
    """
    sampling = request.sampling
    tools = {tool["function"]["name"]: tool["function"] for tool in sampling.tools}
    choice = sampling.tool_choice
    if not tools or choice == "none":
        return []
    forced = choice["function"]["name"] if isinstance(choice, Mapping) else next(iter(tools)) if choice == "required" else None
    asked = [call for call in _asked(said) if call[0] in tools] if request.messages[-1].role == "user" else []
    if isinstance(choice, Mapping):
        asked = [call for call in asked if call[0] == forced]
    if not asked and forced is not None:
        asked = [(forced, _smallest(tools[forced], said))]
    return asked[:1] if sampling.parallel_tool_calls is False else asked[:_MAX_CALLS]


def deltas_of(calls: Sequence[tuple[str, str]], *, turn: int) -> Iterator[ToolCallDelta]:
    """The calls as a provider streams them: id and name first, then the arguments, word by word.

    ``turn``: how long the conversation is; calls of different turns have different ids.
    """
    for index, (name, arguments) in enumerate(calls):
        yield ToolCallDelta(index, id=f"call_{text_hash(f'{turn}:{index}:{name}:{arguments}')[:24]}", name=name)
        for word in _WORD.findall(arguments):
            yield ToolCallDelta(index, arguments=word)


def _asked(said: str) -> Iterator[tuple[str, str]]:
    decoder = json.JSONDecoder()
    for found in _ASKED.finditer(said):
        try:
            arguments, _ = decoder.raw_decode(said, found.end())
        except (ValueError, RecursionError):
            arguments = {}
        yield found.group(1), json.dumps(arguments if isinstance(arguments, dict) else {}, ensure_ascii=False)


def _smallest(function: Mapping[str, Any], said: str) -> str:
    parameters = function.get("parameters") or {}
    schema = {"type": "object", **parameters}
    try:
        return smallest_json({"type": "json_schema", "json_schema": {"schema": schema}}, said)
    except InvalidRequest as error:
        raise InvalidRequest("The echo provider makes no arguments of this tool's schema.", field="tools") from error
