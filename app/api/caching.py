"""What a caller's headers ask beside the body: ``Cache-Control`` of the response cache (RFC 9111, section 5.2.1),
``Aprendiz-Examples``, ``X-Aprendiz-Memory`` and ``X-Aprendiz-Documents``. Reads words; keeps no answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from app.api.bodies import MAX_COLLECTIONS, check_collections
from app.core.errors import InvalidRequest
from app.core.types import CachePolicy, GenerationRequest

_LONGEST_S: Final = 2**31
"""What RFC 9111, section 1.2.2, has a number mean that is larger."""


def cache_policy(headers: Sequence[tuple[bytes, bytes]]) -> tuple[CachePolicy, float | None]:
    """``(policy, max_age_s)`` for the headers of a request, as ASGI has them: names in lower case.

    ``no-store``: off. ``no-cache`` or ``max-age=0``: refresh. ``max-age=N``: use, not older than N seconds. Nothing of these:
    auto. The strictest counts; what is no number of seconds counts as 0, as RFC 9111, section 4.2.1, has it.
    """
    policy: CachePolicy = "auto"
    max_age_s: float | None = None
    for name, value in headers:
        if name != b"cache-control":
            continue
        for directive in value.lower().split(b","):
            word, _, argument = directive.partition(b"=")
            match word.strip():
                case b"no-store":
                    return "off", None
                case b"no-cache":
                    policy = "refresh"
                case b"max-age":
                    age_s = _seconds(argument)
                    max_age_s = age_s if max_age_s is None else min(age_s, max_age_s)
    if policy == "refresh" or max_age_s == 0:
        return "refresh", None
    return ("auto", None) if max_age_s is None else ("use", max_age_s)


def wants_no_examples(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether the caller wants an answer without approved corrections in its prompt: ``Aprendiz-Examples: off``."""
    return any(name == b"aprendiz-examples" and value.strip().lower() == b"off" for name, value in headers)


def with_memory(request: GenerationRequest, headers: Sequence[tuple[bytes, bytes]]) -> GenerationRequest:
    """``request`` with what ``X-Aprendiz-Memory`` and ``X-Aprendiz-Documents`` ask for; what the body asks for stays.

    Raises InvalidRequest where they say something else than they may, or where the call is a prompt to go on from.
    """
    memory, documents = request.memory, request.documents
    for name, value in headers:
        if name == b"x-aprendiz-memory":
            memory = _memory(value) or memory
        elif name == b"x-aprendiz-documents" and documents is None:
            documents = _documents(value)
    if memory is request.memory and documents is request.documents:
        return request
    if request.raw:
        raise InvalidRequest("A prompt to go on from takes no memory and no documents; ask with messages.", field="prompt")
    return dataclasses.replace(request, memory=memory, documents=documents)


def _memory(value: bytes) -> bool:
    word = value.strip().lower()
    if word not in (b"true", b"false"):
        raise InvalidRequest("X-Aprendiz-Memory must be `true` or `false`.", field="X-Aprendiz-Memory")
    return word == b"true"


def _documents(value: bytes) -> tuple[str, ...] | None:
    word = value.strip()
    if word.lower() in (b"true", b"false"):
        return () if word.lower() == b"true" else None
    names = [name.strip() for name in word.decode("latin-1").split(",", MAX_COLLECTIONS)]
    try:
        return check_collections(names)
    except InvalidRequest:
        raise InvalidRequest(
            f"X-Aprendiz-Documents must be `true`, `false`, or up to {MAX_COLLECTIONS} names of collections with commas.",
            field="X-Aprendiz-Documents",
        ) from None


def _seconds(argument: bytes) -> float:
    digits = argument.strip().strip(b'"')
    if not digits.isdigit():
        return 0.0
    return float(_LONGEST_S if len(digits) > 10 else min(int(digits), _LONGEST_S))
