"""What the service and a store's child process say to each other: frames of MessagePack on a private socket.

A frame is its length (4 bytes, little-endian) and one message. The child answers each request once, in the order they came.
No names travel, only hashes of them: what a user called something can end up in no path and no query of a store.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any, Final

import msgspec

from app.memory.vectors.base import Partition

MAX_FRAME_BYTES: Final = 1 << 30
_LENGTH = struct.Struct("<I")
HEADER_BYTES: Final = _LENGTH.size


class Key(msgspec.Struct, frozen=True, array_like=True):
    """A partition as stores know it: hashes (hex) of its owner, its collection and its space, and the length of its vectors."""

    user: str
    collection: str
    space: str
    dimensions: int

    @property
    def name(self) -> str:
        """What tells it from the owner's other partitions."""
        return f"{self.collection}-{self.space}"


class Search(msgspec.Struct, frozen=True, tag=True):
    """The nearest ``k``; answered by `Found`, or by `Stale` where the partition is older than ``generation``."""

    key: Key
    generation: int
    k: int
    vector: bytes


class Compare(msgspec.Struct, frozen=True, tag=True):
    """Everything that shall be there, as (id, content hash): drop the rest, and answer `Missing`."""

    key: Key
    rows: list[tuple[str, str]]


class Put(msgspec.Struct, frozen=True, tag=True):
    """Rows to add, as (id, content hash, vector)."""

    key: Key
    rows: list[tuple[str, str, bytes]]


class Commit(msgspec.Struct, frozen=True, tag=True):
    """The partition is now as the database had it at ``generation``."""

    key: Key
    generation: int


class Purge(msgspec.Struct, frozen=True, tag=True):
    """Leave nothing in memory or on disk of what was dropped from the partition, nor of the collection's other spaces.

    Answered by `Stale` where that took all of the partition with it, so that it must be compared again.
    """

    key: Key


class Forget(msgspec.Struct, frozen=True, tag=True):
    """Drop an owner's partitions; with ``collection`` only those."""

    user: str
    collection: str | None


class Stats(msgspec.Struct, frozen=True, tag=True):
    """Answered by `Counts`."""


class Found(msgspec.Struct, frozen=True, tag=True):
    """(id, score), best first."""

    hits: list[tuple[str, float]]


class Stale(msgspec.Struct, frozen=True, tag=True):
    """The partition must be compared first."""


class Missing(msgspec.Struct, frozen=True, tag=True):
    """Ids whose rows are to be put."""

    ids: list[str]


class Done(msgspec.Struct, frozen=True, tag=True):
    """It is done."""


class Counts(msgspec.Struct, frozen=True, tag=True):
    """What is held: ``partitions`` and ``rows`` in memory; ``building``: indexes still to come; more by kind of store."""

    partitions: int
    rows: int
    building: int
    more: dict[str, Any]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It cannot be done. ``detail``: our own words, for the caller; ``configuration``: an operator must change something."""

    detail: str
    configuration: bool = False


Request = Search | Compare | Put | Commit | Purge | Forget | Stats
Reply = Found | Stale | Missing | Done | Counts | Failed

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def key_of(partition: Partition) -> Key:
    """The partition by hashes."""
    return Key(
        user_hash(partition.user_id), collection_hash(partition.collection), _hash(partition.space), partition.dimensions
    )


def user_hash(user_id: str) -> str:
    """An owner as stores know them."""
    return _hash(f"user:{user_id}")


def collection_hash(collection: str) -> str:
    """A collection as stores know it."""
    return _hash(f"collection:{collection}")


def frame(message: Request | Reply) -> bytes:
    """The bytes of a message. Raises ValueError where it is too long."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError("the message is too long")
    return _LENGTH.pack(len(body)) + body


def length(header: bytes) -> int:
    """How many bytes follow. Raises ValueError for more than there can be."""
    found = int(_LENGTH.unpack(header)[0])
    if found > MAX_FRAME_BYTES:
        raise ValueError("the message is too long")
    return found


def request(body: bytes) -> Request:
    """Raises msgspec.MsgspecError."""
    return _requests.decode(body)


def reply(body: bytes) -> Reply:
    """Raises msgspec.MsgspecError."""
    return _replies.decode(body)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
