"""Members of a zip archive, counted: how many, how large once decoded, none of them over another. It writes nothing to disk."""

from __future__ import annotations

import zipfile
import zlib
from typing import BinaryIO, Final

from app.memory.workers.parse_sink import Refuse

_MOST_MEMBERS: Final = 4000
_MOST_DIRECTORY: Final = 4 << 20
_MOST_DECODED: Final = 96 << 20
_MOST_MEMBER: Final = 64 << 20
_MOST_RATIO: Final = 250
_RATIO_FROM: Final = 4 << 20
_LOCAL_HEADER: Final = 30
_DIRECTORY_END: Final = b"PK\x05\x06"
_ENCRYPTED: Final = 0x1


class Archive:
    """A zip archive that keeps to limits. Raises Refuse where it does not, or is damaged or encrypted."""

    def __init__(self, file: BinaryIO) -> None:
        self._decoded = 0
        _check_directory(file)
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
            raise Refuse("damaged") from error
        self._members = {member.filename: member for member in self._zip.infolist()}
        self._check_members()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def open(self, name: str) -> BinaryIO:
        """A member as a stream that stops at the limits. Raises KeyError."""
        member = self._members[name]
        try:
            return _Member(self, self._zip.open(member), member.compress_size)  # type: ignore[return-value]
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, zlib.error) as error:
            raise Refuse("damaged") from error

    def count(self, size: int) -> None:
        """So many more bytes are decoded, over all members. Raises Refuse."""
        self._decoded += size
        if self._decoded > _MOST_DECODED:
            raise Refuse("unpacked")

    def _check_members(self) -> None:
        members = self._zip.infolist()
        if len(members) > _MOST_MEMBERS or len(self._members) < len(members):
            raise Refuse("unpacked" if len(members) > _MOST_MEMBERS else "damaged")
        if any(member.flag_bits & _ENCRYPTED for member in members):
            raise Refuse("encrypted")
        end = 0
        for member in sorted(members, key=lambda each: each.header_offset):
            if member.header_offset < end:  # one stream under many names
                raise Refuse("unpacked")
            end = member.header_offset + _LOCAL_HEADER + member.compress_size


class _Member:
    """What reads one member: only `read`, which is all that an XML parser asks for."""

    def __init__(self, archive: Archive, stream: object, packed: int) -> None:
        self._archive = archive
        self._stream = stream
        self._packed = packed
        self._size = 0

    def read(self, size: int = 1 << 16) -> bytes:
        try:
            data: bytes = self._stream.read(max(1, min(size, 1 << 16)))  # type: ignore[attr-defined]
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise Refuse("damaged") from error
        self._size += len(data)
        self._archive.count(len(data))
        if self._size > _MOST_MEMBER or (self._size > _RATIO_FROM and self._size > _MOST_RATIO * max(1, self._packed)):
            raise Refuse("unpacked")
        return data


def _check_directory(file: BinaryIO) -> None:
    """Before `zipfile` makes an object of every entry: how many the archive says there are, and how long their list is."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 66_000))
    tail = file.read(66_000)
    at = tail.rfind(_DIRECTORY_END)
    if at < 0 or len(tail) < at + 22:
        raise Refuse("damaged")
    entries = int.from_bytes(tail[at + 10 : at + 12], "little")
    length = int.from_bytes(tail[at + 12 : at + 16], "little")
    if entries > _MOST_MEMBERS or length > _MOST_DIRECTORY:  # 65535 also says zip64: no document that is read here needs it
        raise Refuse("unpacked")
    file.seek(0)
