"""How many tokens a prompt has at a server that has no way to ask: an estimate, rather too high than too low.

It counts bytes by their kind, at the speed of `bytes.translate`, and knows no vocabulary. `tests/providers/test_estimate.py`
holds it against counts of a real, small one; the large ones of today's models make fewer tokens of the same text.
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Iterator
from typing import Any

from app.core.types import GenerationRequest, Message

_SMALL = string.ascii_lowercase.encode()
_CAPITAL = string.ascii_uppercase.encode()
_CONTINUED = bytes(range(0x80, 0xC0))
_THREE_BYTES = bytes(range(0xE0, 0xF0))
_FOUR_BYTES = bytes(range(0xF0, 0x100))
_ONE_BY_ONE = bytes(sorted(set(range(256)) - {*_SMALL, *_CAPITAL, *_CONTINUED, *b" "}))
_WEIGHTS = (
    (_SMALL, 1 / 3),
    (_CAPITAL, 0.6),
    (b" ", 0.15),
    (_ONE_BY_ONE, 1.0),
    (_THREE_BYTES, 1.0),
    (_FOUR_BYTES, 2.0),
)
"""Tokens a byte, by kinds that add up: a character of three bytes is one by one, and one more."""
_MESSAGE = 8
"""What a chat template writes around one message."""
_REQUEST = 64
"""What a server may add of its own: a system message of the template, the opening of the answer."""
_MEDIA_TOKENS = 1600
"""An image, at the finest that vendors count."""
_MEDIA_BYTES_A_TOKEN = 100
"""Audio and files, by their size in base64."""


def text_tokens(text: str) -> int:
    """Tokens of ``text``: a third for a small letter, more for a capital, 1 for a digit, a sign or a letter of another
    alphabet, 2 for an East Asian character, 3 for an emoji.
    """
    raw = text.encode("utf-8", "surrogatepass")
    return math.ceil(sum(weight * (len(raw) - len(raw.translate(None, kind))) for kind, weight in _WEIGHTS))


def prompt_tokens(request: GenerationRequest) -> int:
    """Tokens of the whole prompt: messages, tools, the schema of the answer, and what a template adds."""
    sampling = request.sampling
    extras: list[Any] = [dict(tool) for tool in sampling.tools]
    if sampling.response_format is not None:
        extras.append(dict(sampling.response_format))
    return (
        _REQUEST
        + sum(text_tokens(json.dumps(extra, ensure_ascii=False, default=str)) for extra in extras)
        + sum(_MESSAGE + sum(_parts(message)) for message in request.messages)
    )


def _parts(message: Message) -> Iterator[int]:
    if message.tool_calls:
        yield text_tokens(json.dumps([dict(call) for call in message.tool_calls], ensure_ascii=False, default=str))
    if isinstance(message.content, str):
        yield text_tokens(message.content)
        return
    for part in message.content or ():
        if part.get("type") in ("text", "refusal"):
            yield text_tokens(str(part.get(part["type"], "")))
        elif part.get("type") == "image_url":
            yield _MEDIA_TOKENS
        else:
            yield _MEDIA_TOKENS + len(json.dumps(part, default=str)) // _MEDIA_BYTES_A_TOKEN
