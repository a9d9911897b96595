"""The child process of a vector store: takes requests from one connection, in order, and answers each.

It holds no policy and reads no database: `app.memory.vectors.following` tells it what shall be there.
"""

from __future__ import annotations

import importlib
import logging
import os
import select
import socket
import sys

import msgspec

from app.memory.vectors import wire
from app.memory.workers.vectors_backend import Backend, Refused
from app.providers.workers.child import Child, begin

_IDLE_S = 1.0
_BACKENDS = {
    "faiss": ("app.memory.workers.vectors_faiss", "FaissBackend", "memory"),
    "chroma": ("app.memory.workers.vectors_chroma", "ChromaBackend", "chroma"),
}

logger = logging.getLogger(__name__)


def main() -> None:
    """Serves until the connection ends."""
    child = begin()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    os.umask(0o077)
    backend = _backend(child)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(child.config["socket"]))
        listener.listen(1)
        child.listening()
        connection, _ = listener.accept()
    with connection:
        _serve(connection, backend)


def _backend(child: Child) -> Backend:
    module, name, extra = _BACKENDS[child.config["backend"]]
    try:
        made: Backend = getattr(importlib.import_module(module), name)(child.config)
    except ModuleNotFoundError:
        child.fail(f"The store of vectors is not installed: pip install 'aprendiz[{extra}]'.")
    except Refused as refused:
        child.fail(refused.detail)
    return made


def _serve(connection: socket.socket, backend: Backend) -> None:
    while True:
        ready, _, _ = select.select([connection], [], [], _IDLE_S)
        if not ready:
            backend.idle()
            continue
        header = _read(connection, wire.HEADER_BYTES)
        if header is None:
            return
        body = _read(connection, wire.length(header))
        if body is None:
            return
        connection.sendall(wire.frame(_answer(backend, wire.request(body))))


def _answer(backend: Backend, request: wire.Request) -> wire.Reply:
    try:
        return _do(backend, request)
    except Refused as refused:
        return wire.Failed(refused.detail, refused.configuration)
    except (OSError, ValueError, RuntimeError, MemoryError, msgspec.MsgspecError):
        logger.exception("a request failed")
        return wire.Failed("The search for vectors failed. Try again in a moment.")


def _do(backend: Backend, request: wire.Request) -> wire.Reply:
    match request:
        case wire.Search(key, generation, k, vector):
            hits = backend.search(key, generation, k, vector)
            return wire.Stale() if hits is None else wire.Found(hits)
        case wire.Compare(key, rows):
            return wire.Missing(backend.compare(key, rows))
        case wire.Put(key, vectors):
            backend.put(key, vectors)
        case wire.Commit(key, generation):
            backend.commit(key, generation)
        case wire.Purge(key):
            return wire.Done() if backend.purge(key) else wire.Stale()
        case wire.Forget(user, collection):
            backend.forget(user, collection)
        case wire.Stats():
            return backend.counts()
    return wire.Done()


def _read(connection: socket.socket, size: int) -> bytes | None:
    """Exactly so many bytes; None at the end of the connection."""
    buffer = bytearray(size)
    view, done = memoryview(buffer), 0
    while done < size:
        count = connection.recv_into(view[done:])
        if not count:
            return None
        done += count
    return bytes(buffer)


if __name__ == "__main__":
    main()
