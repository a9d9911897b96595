"""A file on its way in: kept on disk, hashed and counted while it comes, in a file without a name.

Nothing of it is left when it is closed, nor when the process is killed. It knows no form and no database.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from app.core.errors import PayloadTooLarge, StorageFull


class Upload:
    """Use as ``async with``. ``most``: bytes that it may have.

    Args:
        folder: on whose disk it lies.
        most: more of it raises PayloadTooLarge.
    """

    def __init__(self, folder: Path, *, most: int) -> None:
        self._folder = folder
        self._most = most
        self._hash = hashlib.sha256()
        self._file: IO[bytes] | None = None
        self.bytes = 0

    @property
    def sha256(self) -> str:
        """Of what has come so far, in hexadecimal."""
        return self._hash.hexdigest()

    async def __aenter__(self) -> Self:
        try:
            self._file = await asyncio.to_thread(tempfile.TemporaryFile, dir=self._folder)
        except OSError as error:
            raise _full() from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    async def write(self, data: bytes) -> None:
        """Takes the next bytes. Raises PayloadTooLarge, StorageFull."""
        self.bytes += len(data)
        if self.bytes > self._most:
            raise PayloadTooLarge(f"A document may have at most {self._most >> 20} MiB.")
        try:
            await asyncio.to_thread(self._take, data)
        except OSError as error:
            raise _full() from error

    async def pieces(self, size: int) -> AsyncGenerator[bytes, None]:
        """All of it from the beginning, ``size`` bytes at a time. Raises StorageFull where the disk does not give it back."""
        at = 0
        while at < self.bytes:
            try:
                piece = await asyncio.to_thread(self._read, at, size)
            except OSError as error:
                raise _full() from error
            yield piece
            at += len(piece)

    def _take(self, data: bytes) -> None:
        self._hash.update(data)
        self._open().write(data)

    def _read(self, at: int, size: int) -> bytes:
        file = self._open()
        file.seek(at)
        data = file.read(size)
        if not data:
            raise OSError("the file is shorter than what was written")
        return data

    def _open(self) -> IO[bytes]:
        if self._file is None:
            raise RuntimeError("use an upload as `async with`")
        return self._file


def _full() -> StorageFull:
    return StorageFull("The file cannot be kept while it is read. Free some space and try again.")
