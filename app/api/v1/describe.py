"""How a route of the vendors' APIs is described in ``/openapi.json``: data, of which `app.api.openapi` makes the operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

ErrorForm = Literal["openai", "anthropic"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One route.

    Args:
        body: msgspec type of the request, or None: it has none.
        answer: msgspec type of the answer; several are alternatives.
        errors: whose form its errors have.
        stream: example of the events, where it streams.
        examples: request bodies by name.
        parameters: of the path, as OpenAPI writes them.
    """

    method: Literal["get", "post", "delete"]
    path: str
    operation_id: str
    summary: str
    description: str
    answer: Sequence[Any]
    body: Any = None
    errors: ErrorForm = "openai"
    stream: str | None = None
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parameters: Sequence[Mapping[str, Any]] = ()
    tag: str = "compatible"
