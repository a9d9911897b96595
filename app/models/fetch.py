"""Fetches one file over HTTPS into a folder, resuming what an earlier try left, and checks it before anybody may use it.

Plain HTTP only to this very machine. No credentials, no cookies; the only header that is ours is ``Range``.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.core.errors import AprendizError, InvalidRequest, ModelLoadFailed, Unavailable, UnknownModel
from app.core.files import hash_file
from app.models.local import need_space

logger = logging.getLogger(__name__)

_TIMEOUT_S = 30.0
_CHUNK = 1 << 18
_TRIES = 5
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_JSON_LIMIT = 16 << 20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to fetch. At least one hash: ``sha256``, or ``git_sha1`` (of the git blob, as hubs give it for small files)."""

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None


class _Broken(Exception):
    """The connection broke; what has come stays and the next try goes on from there."""


class _StaleRange(_Broken):
    """The server has nothing from where we would go on: what is here is not a piece of what is there."""


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_url(url: str) -> None:
    """Raises InvalidRequest for anything but https, or http to this machine."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and parts.hostname in _LOOPBACK:
        return
    raise InvalidRequest("Models are fetched over https:// only.", field="model")


def get_json(url: str) -> Any:
    """A small JSON document. Raises UnknownModel for 404 (and 401: hubs hide so what is not there), Unavailable otherwise."""
    try:
        with _open(url, {}) as response:
            body = response.read(_JSON_LIMIT + 1)
        if len(body) > _JSON_LIMIT:
            raise Unavailable("The hub's answer is too large to be right.")
        return json.loads(body)
    except (_Broken, ValueError) as error:
        raise Unavailable("The hub could not be reached. Check the network, or pull a local file instead.") from error


def fetch(file: RemoteFile, folder: Path, on_bytes: Callable[[int, int | None], None], *, pause_s: float = 1.0) -> Path:
    """Downloads ``file`` to ``folder/<its last name>.part`` and returns the path once its hash is right.

    Args:
        on_bytes: hears ``(bytes done, bytes in all or None)``.
        pause_s: wait before the second try; doubles after that.

    Raises:
        UnknownModel: it is not there. Unavailable: it could not be reached. ModelLoadFailed: it has another hash.
    """
    part = folder / f"{hashlib.sha256(file.name.encode()).hexdigest()[:16]}.part"
    for attempt in range(_TRIES):
        try:
            _download(file, part, on_bytes)
            break
        except OSError:  # our own disk: nothing half-written stays on a full one
            _forget(part)
            raise
        except _Broken as error:
            if isinstance(error, _StaleRange):
                _forget(part)
            logger.warning("download interrupted", extra={"data": {"file": file.name, "attempt": attempt + 1}})
            if attempt + 1 == _TRIES:
                words = "The download broke off. Run the same command again; it goes on from where it stopped."
                raise Unavailable(words if part.exists() else _UNREACHABLE) from error
            time.sleep(pause_s * 2**attempt)
    if not _matches(part, file):
        _forget(part)
        raise ModelLoadFailed("The downloaded file has another SHA-256 than it should have; it was removed.")
    part.with_name(part.name + ".json").unlink(missing_ok=True)
    return part


_UNREACHABLE = "The server could not be reached. Check the network, or pull a local file instead."


def _download(file: RemoteFile, part: Path, on_bytes: Callable[[int, int | None], None]) -> None:
    identity = {"url": file.url, "sha256": file.sha256, "git_sha1": file.git_sha1}
    note = part.with_name(part.name + ".json")
    known = _read_note(note)
    if {key: known.get(key) for key in identity} != identity:
        part.unlink(missing_ok=True)
        known = {}
    have = part.stat().st_size if part.exists() else 0
    if file.size is not None and have == file.size:
        return
    headers = {"Range": f"bytes={have}-", "If-Range": known["etag"]} if have and known.get("etag") else {}
    if have and not known.get("etag") and (file.sha256 or file.git_sha1):
        # Without a validator the server may send another file's tail; the hash at the end would tell.
        headers = {"Range": f"bytes={have}-"}
    with _open(file.url, headers) as response:
        resumed = response.status == 206 and str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-")
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdigit() else file.size
        need_space(part.parent, (total or 0) - start)
        etag = response.headers.get("ETag")
        # Weak validators say nothing about bytes.
        strong = etag if etag and not etag.startswith("W/") else None
        note.write_text(json.dumps({**identity, "etag": strong}), encoding="utf-8")
        _receive(response, part, start, total, file.size, on_bytes)


def _receive(
    response: http.client.HTTPResponse,
    part: Path,
    start: int,
    total: int | None,
    size: int | None,
    on_bytes: Callable[[int, int | None], None],
) -> None:
    done = start
    with part.open("ab" if start else "wb") as out:
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _Broken from error
            if not chunk:
                break
            done += len(chunk)
            if size is not None and done > size:
                raise ModelLoadFailed("The server sends more than the file should have.")
            out.write(chunk)
            on_bytes(done, total)
    if total is not None and done < total:
        raise _Broken


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    check_url(url)
    opener = urllib.request.build_opener(_SafeRedirects())
    request = urllib.request.Request(url, headers={"User-Agent": "aprendiz", **headers})  # noqa: S310  # checked above
    try:
        response: http.client.HTTPResponse = opener.open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            raise _StaleRange from error
        raise _refusal(error.code) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken from error
    return response


def _refusal(code: int) -> AprendizError:
    if code in (401, 403, 404, 410):
        return UnknownModel("There is no such model there, or it is not public.", field="model")
    return Unavailable(f"The server answered with status {code}. Try again later.")


def _matches(part: Path, file: RemoteFile) -> bool:
    if file.sha256 is not None:
        return hash_file(part) == file.sha256
    if file.git_sha1 is None:
        return False
    # A git blob id is the SHA-1 over a header and the content; hubs give no other hash for small files.
    digest = hashlib.sha1(f"blob {part.stat().st_size}\0".encode(), usedforsecurity=False)
    with part.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == file.git_sha1


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(part.name + ".json").unlink(missing_ok=True)


def _read_note(note: Path) -> dict[str, Any]:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
