"""Tokens to text, one token at a time: whole characters only, and nothing that may yet turn out to be a stop string.

Knows no model and no HTTP. A character that a tokenizer spreads over several tokens is held back until it is whole; text that
could be the beginning of a stop string is held back until it is one or cannot become one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""Tokens to text, special tokens left out."""

_BROKEN = "\ufffd"
_LONGEST_CHARACTER = 8
"""Tokens after which a piece that still ends in a broken character is taken for what it is: no character has so many bytes."""


class TextStream:
    """The text of one answer as its tokens come.

    Args:
        decode: the tokenizer's own decoding.
        stop: strings that end the answer; they are not part of it.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._known = ""  # text of the tokens before `_new`: context that decides, say, whether a token starts with a space
        self._new = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Takes the next token; returns the text that is now certain, often empty."""
        self._ids.append(token)
        text = self._decode(self._ids)
        waiting = len(self._ids) - self._new
        if len(text) <= len(self._known) or (text.endswith(_BROKEN) and waiting <= _LONGEST_CHARACTER):
            return ""
        piece = text[len(self._known) :]
        self._ids = self._ids[self._new :]
        self._new = len(self._ids)
        self._known = self._decode(self._ids)
        return self._release(piece)

    def flush(self) -> str:
        """The rest, at the end of the answer. A character that never became whole is left out."""
        piece = self._decode(self._ids)[len(self._known) :].rstrip(_BROKEN)
        self._ids, self._known, self._new = [], "", 0
        out = self._release(piece)
        if not self.stopped:
            out, self._held = out + self._held, ""
        return out

    def _release(self, piece: str) -> str:
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
