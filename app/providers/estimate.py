"""How many tokens a prompt has at a server that has no way to ask: an estimate, rather too high than too low.

It counts bytes by their kind, at the speed of `bytes.translate`, and knows no vocabulary. `tests/providers/test_estimate.py`
holds it against a real tokenizer.
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Iterator
from typing import Any

from app.core.types import GenerationRequest, Message

_LETTERS = string.ascii_letters.encode()
_SPACES = b" "
_CONTINUED = bytes(range(0x80, 0xC0))
_TWO_BYTES = bytes(range(0xC0, 0xE0))
_THREE_BYTES = bytes(range(0xE0, 0xF0))
_FOUR_BYTES = bytes(range(0xF0, 0x100))

_LETTERS_A_TOKEN = 3.0
"""English has 4 to 4.5 with its spaces, Spanish and German about 3.3."""
_MESSAGE = 8
"""What a chat template writes around one message."""
_REQUEST = 64
"""What a server may add of its own: a system message of the template, the opening of the answer."""
_MEDIA_TOKENS = 1600
"""An image, at the finest that vendors count."""
_MEDIA_BYTES_A_TOKEN = 100
"""Audio and files, by their size in base64."""


def text_tokens(text: str) -> int:
    """Tokens of ``text`` by the kinds of its characters: 3 ASCII letters, or 1 of any other alphabet, digit or sign, a token;
    2 for an East Asian character, 3 for an emoji; single spaces are free.
    """
    raw = text.encode("utf-8", "surrogatepass")
    letters = len(raw) - len(raw.translate(None, _LETTERS))
    others = len(raw.translate(None, _LETTERS + _SPACES + _CONTINUED))
    three = len(raw) - len(raw.translate(None, _THREE_BYTES))
    four = len(raw) - len(raw.translate(None, _FOUR_BYTES))
    return math.ceil(letters / _LETTERS_A_TOKEN) + others + three + 2 * four


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
