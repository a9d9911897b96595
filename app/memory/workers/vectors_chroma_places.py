"""Where Chroma keeps a partition: in a folder of its own, or as a collection on a server. Runs in the child only."""

from __future__ import annotations

import abc
import contextlib
import ipaddress
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import chromadb
import httpx
from chromadb.config import Settings
from chromadb.errors import ChromaError, NotFoundError

from app.core.addresses import forbidden
from app.memory.vectors.layout import GENERATION, place, read_generation
from app.memory.vectors.wire import Key
from app.memory.workers.vectors_backend import Refused

_NAME = "vectors"
_PREFIX = "aprendiz"
_HNSW = {"hnsw": {"space": "ip", "ef_construction": 100, "ef_search": 200, "max_neighbors": 16}}
_UNREACHABLE = "The Chroma server does not answer. Check that it runs at the address in memory.store."

logger = logging.getLogger(__name__)

Listing = Callable[[Any], dict[str, str]]


class Places(abc.ABC):
    """``keeps_deleted``: deleted rows stay in files that are ours."""

    keeps_deleted: bool

    @abc.abstractmethod
    def open(self, key: Key, listing: Listing) -> tuple[Any, dict[str, str]]:
        """The collection, made where it is missing, and what ``listing`` says of it."""

    @abc.abstractmethod
    def metadata(self, key: Key, collection: Any) -> Mapping[str, Any]:
        """What stands beside the collection now."""

    @abc.abstractmethod
    def drop(self, key: Key) -> None:
        """Removes one partition."""

    @abc.abstractmethod
    def drop_others(self, key: Key) -> None:
        """Removes the partitions of the same collection in other spaces."""

    @abc.abstractmethod
    def forget(self, user: str, collection: str | None) -> None:
        """Removes an owner's partitions; with ``collection`` only those."""

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Around calls that may fail: raises Refused in words."""
        yield

    def close(self, key: Key) -> None:  # noqa: B027 - a server has nothing to close
        """Lets go of what is open of it."""

    def changing(self, key: Key) -> None:  # noqa: B027 - a server keeps no such note
        """Notes that the partition is about to be changed."""

    def changed(self, key: Key, generation: int) -> None:  # noqa: B027
        """Notes that it is whole, as of this generation."""


class Folders(Places):
    """A client of its own for each partition. A folder without a note of its generation was left in a change: it goes."""

    keeps_deleted = True

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._clients: dict[Key, Any] = {}

    def open(self, key: Key, listing: Listing) -> tuple[Any, dict[str, str]]:
        """See `Places.open`. A folder that cannot be opened, or crashed us last time, is made anew."""
        path = place(self._folder, key)
        if key in self._clients:  # broken off in the middle of a change
            self.drop(key)
        if read_generation(path):
            self.changing(key)  # until it is open: then a crash while opening cannot repeat itself
            try:
                return self._collection(key, path, listing)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                    raise
                # Of any kind: a panic in its native code is no Exception.
                logger.warning("a folder of Chroma is damaged and is made anew (%s)", type(error).__name__)
        self.drop(key)
        return self._collection(key, path, listing)

    def _collection(self, key: Key, path: Path, listing: Listing) -> tuple[Any, dict[str, str]]:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        client = self._clients[key] = chromadb.PersistentClient(str(path), settings=Settings(anonymized_telemetry=False))
        collection = client.get_or_create_collection(_NAME, embedding_function=None, configuration=_HNSW)
        return collection, listing(collection)

    def metadata(self, key: Key, collection: Any) -> Mapping[str, Any]:
        """See `Places.metadata`: nobody else has the folder."""
        return collection.metadata or {}

    def drop(self, key: Key) -> None:
        """See `Places.drop`."""
        self.close(key)
        _remove(place(self._folder, key))

    def drop_others(self, key: Key) -> None:
        """See `Places.drop_others`."""
        own = place(self._folder, key)
        for path in self._listed(key.user, key.collection):
            if path != own:
                _remove(path)

    def forget(self, user: str, collection: str | None) -> None:
        """See `Places.forget`."""
        for path in self._listed(user, collection):
            _remove(path)
        with contextlib.suppress(OSError):  # not empty, or never made
            (self._folder / user).rmdir()

    def close(self, key: Key) -> None:
        """See `Places.close`."""
        client = self._clients.pop(key, None)
        if client is not None:
            client.close()

    def changing(self, key: Key) -> None:
        """See `Places.changing`."""
        (place(self._folder, key) / GENERATION).unlink(missing_ok=True)

    def changed(self, key: Key, generation: int) -> None:
        """See `Places.changed`."""
        path = place(self._folder, key) / GENERATION
        with contextlib.suppress(OSError):  # without the note the folder is made anew at the next start
            new = path.with_name(f"{GENERATION}.new")
            new.write_text(str(generation))
            os.replace(new, path)

    def _listed(self, user: str, collection: str | None) -> list[Path]:
        owner = place(self._folder, Key(user, "0" * 32, "0" * 32, 1)).parent
        if not owner.is_dir():
            return []
        return [path for path in owner.iterdir() if collection is None or path.name.startswith(f"{collection}-")]


class Server(Places):
    """One client. A name's addresses are looked at before it is connected: none may be where clouds keep credentials."""

    keeps_deleted = False

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._made: Any = None

    def open(self, key: Key, listing: Listing) -> tuple[Any, dict[str, str]]:
        """See `Places.open`."""
        with self.guarded():
            collection = self._client().get_or_create_collection(_named(key), embedding_function=None, configuration=_HNSW)
            return collection, listing(collection)

    def metadata(self, key: Key, collection: Any) -> Mapping[str, Any]:
        """See `Places.metadata`: asked each time, for other services work on the same collections."""
        with self.guarded():
            try:
                return self._client().get_collection(_named(key), embedding_function=None).metadata or {}
            except NotFoundError:
                return {}

    def drop(self, key: Key) -> None:
        """See `Places.drop`."""
        with self.guarded():
            self._delete(_named(key))

    def drop_others(self, key: Key) -> None:
        """See `Places.drop_others`."""
        self._delete_all(_prefix(key.user, key.collection), but=_named(key))

    def forget(self, user: str, collection: str | None) -> None:
        """See `Places.forget`."""
        self._delete_all(_prefix(user, collection))

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """See `Places.guarded`."""
        try:
            yield
        except NotFoundError:
            raise
        except (httpx.HTTPError, ChromaError, ValueError, OSError) as error:
            logger.warning("a call of the Chroma server failed (%s)", type(error).__name__)
            raise Refused(_UNREACHABLE) from None

    def _delete_all(self, prefix: str, *, but: str = "") -> None:
        with self.guarded():
            names: list[str] = []
            while page := self._client().list_collections(limit=1000, offset=len(names)):
                names += [each.name for each in page]
            for name in names:
                if name.startswith(prefix) and name != but:
                    self._delete(name)

    def _delete(self, name: str) -> None:
        with contextlib.suppress(NotFoundError):
            self._client().delete_collection(name)

    def _client(self) -> Any:
        if self._made is None:
            host, port, tls = self._config["host"], int(self._config["port"]), bool(self._config["tls"])
            _look(str(host).strip("[]"), port)
            settings = Settings(anonymized_telemetry=False)
            self._made = chromadb.HttpClient(host=host, port=port, ssl=tls, settings=settings)
        return self._made


def _look(host: str, port: int) -> None:
    for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if forbidden(ipaddress.ip_address(str(address[0]).partition("%")[0])):
            raise Refused("memory.store leads to a link-local address, where clouds keep credentials.", configuration=True)


def _prefix(user: str, collection: str | None) -> str:
    return f"{_PREFIX}-{user}-" if collection is None else f"{_PREFIX}-{user}-{collection}-"


def _named(key: Key) -> str:
    return f"{_prefix(key.user, key.collection)}{key.space}"


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
