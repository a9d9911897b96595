"""A file to blocks of text, in a child process with limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from app.core.errors import InvalidRequest
from app.memory.parsing.blocks import Parsed


class Parser:
    """Parses documents, each in a child process of its own. ``runtime_dir``: a folder of ours for their (empty) folders."""

    def __init__(self, runtime_dir: Path) -> None:
        self._runtime_dir = runtime_dir

    async def parse(self, file: Path, *, name: str, on_progress: Callable[[float], None] | None = None) -> Parsed:
        """The text of ``file``. ``name``: as the client called it, tells text formats apart. ``on_progress`` hears 0 to 1.

        Raises InvalidRequest (PayloadTooLarge, UnsupportedMediaType) in words for the owner.
        """
        raise InvalidRequest("Documents cannot be read yet.")
