"""Models on this machine's disk: one folder each, complete or absent, with a manifest that says what must be in it.

``models_dir/<name>/`` holds the file (or the files of a folder) and ``manifest.json``. It is built elsewhere and renamed into
place, so whoever sees the folder sees all of it. A hash is checked before the rename and again before use. Nothing here
parses a model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.core.errors import InvalidRequest, ModelLoadFailed, StorageFull, StorageUnavailable
from app.core.files import FileHashes, hash_file, sync
from app.models.catalogue import NAME

Progress = Callable[[int, int | None, str], None]
"""``(bytes done, bytes in all or None, phase)``; phases: wait, download, unpack, copy, verify, convert, done."""

MANIFEST = "manifest.json"
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What lies in a model's folder. ``files``: name to SHA-256; ``file``: the one that is the model, or None for a whole
    folder."""

    name: str
    source: str
    file: str | None
    files: dict[str, str]
    bytes: int
    provider: str | None = None
    licence: str | None = None
    pulled_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def sha256(self) -> str:
        """The model file's hash; for a folder the hash over its files' names and hashes."""
        if self.file is not None:
            return self.files[self.file]
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


@dataclass(slots=True)
class Resolver:
    """`resolve` for one folder that remembers what it has hashed: give this to providers, with the same ``hashes``."""

    models_dir: Path
    hashes: FileHashes = field(default_factory=FileHashes)

    def __call__(self, name: str) -> Path | None:
        return resolve(name, self.models_dir, hashes=self.hashes)


def resolve(name: str, models_dir: Path, *, hashes: FileHashes | None = None) -> Path | None:
    """The local file or folder that ``name`` means, its hashes checked against the manifest; None if it is nothing local.

    ``name``: of a pulled model; or a path that begins with ``/``, ``.`` or ``~`` or ends with ``.gguf`` (no hash is known
    then). ``hashes``: remembers what was hashed; left out, everything is hashed.

    Raises:
        ModelLoadFailed: the files differ from the manifest, or are not all there.
    """
    if NAME.fullmatch(name) and (manifest := read_manifest(models_dir / name)) is not None:
        folder = models_dir / name
        hashes = hashes or FileHashes()
        for file, digest in manifest.files.items():
            _check(folder / file, digest, name, hashes)
        return folder / manifest.file if manifest.file is not None else folder
    if "\0" in name or not (name.startswith(("/", ".", "~")) or name.endswith(".gguf")):
        return None
    try:
        path = Path(name).expanduser()
        return path if path.is_file() or path.is_dir() else None
    except (OSError, RuntimeError):  # too long a name, no such user, no right to look
        return None


def list_models(models_dir: Path) -> list[Manifest]:
    """The manifests of all models on disk, by name. Hashes are not checked here."""
    if not models_dir.is_dir():
        return []
    folders = sorted(each for each in models_dir.iterdir() if NAME.fullmatch(each.name) and each.is_dir())
    return [manifest for folder in folders if (manifest := read_manifest(folder)) is not None]


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in ``folder``, or None where there is none. Raises ModelLoadFailed where it is damaged."""
    try:
        values: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest = Manifest(**values)
        names = [*manifest.files, *([] if manifest.file is None else [manifest.file])]
        sane = all(is_inside(name) for name in names) and (manifest.file is None or manifest.file in manifest.files)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(folder.name) from error
    if not sane:
        raise _damaged(folder.name)
    return manifest


def is_inside(name: str) -> bool:
    """Whether ``name`` is a plain relative path of ordinary names, as a file of a model may have."""
    return all(_FILE.fullmatch(part) for part in name.split("/"))


def verify(manifest: Manifest, models_dir: Path, on_progress: Progress) -> None:
    """Hashes every file of a model. Raises ModelLoadFailed for any difference."""
    done = 0
    for file, digest in manifest.files.items():
        path = models_dir / manifest.name / file
        if not path.is_file() or hash_file(path, lambda n, d=done: on_progress(d + n, manifest.bytes, "verify")) != digest:  # type: ignore[misc]
            raise _damaged(manifest.name)
        done += path.stat().st_size


@contextlib.contextmanager
def locked(name: str, models_dir: Path, on_progress: Progress) -> Iterator[Path]:
    """Holds the lock of one model name and gives a staging folder for it; a second process waits here.

    The staging folder outlives a failed download, so that the next try can resume; anything but ``*.part`` files in it goes.
    """
    if not NAME.fullmatch(name):
        raise InvalidRequest(f"{name[:100]!r} cannot be a model's name: it must match {NAME.pattern}.", field="model")
    staging = models_dir / ".staging" / name
    with disk_errors():
        staging.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (models_dir / ".staging" / f"{name}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_progress(0, None, "wait")
                fcntl.flock(lock, fcntl.LOCK_EX)
            staging.mkdir(parents=True, exist_ok=True, mode=0o700)
            _tidy(staging)
            try:
                yield staging
            finally:
                _tidy(staging)


def install(staged: Path, manifest: Manifest, models_dir: Path) -> None:
    """Puts a complete folder in place of whatever had its name, in one rename, durable when it returns."""
    text = json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"
    (staged / MANIFEST).write_text(text, encoding="utf-8")
    for path in (*staged.rglob("*"), staged):
        sync(path)
    target, old = models_dir / manifest.name, staged.parent / "old"
    if target.exists():
        target.rename(old)
    try:
        staged.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    sync(models_dir)
    shutil.rmtree(old, ignore_errors=True)


def need_space(models_dir: Path, wanted: int) -> None:
    """Raises StorageFull where ``wanted`` bytes do not fit."""
    free = shutil.disk_usage(models_dir).free
    if free < wanted:
        raise StorageFull(
            f"The model needs {wanted / 1e6:.0f} MB of disk and {free / 1e6:.0f} MB are free. Make room and try again."
        )


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turns the operating system's errors about our own disk into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull("The disk became full; what was written has been removed. Make room and try again.") from error
        raise StorageUnavailable(f"The models folder cannot be written ({error.strerror or type(error).__name__}).") from error


def _check(path: Path, digest: str, name: str, hashes: FileHashes) -> None:
    try:
        found = hashes.sha256(path)
    except OSError as error:
        raise _damaged(name) from error
    if found != digest:
        raise _damaged(name)


def _damaged(name: str) -> ModelLoadFailed:
    return ModelLoadFailed(f"The files of {name} differ from what was pulled. Pull it again: aprendiz models pull {name}")


def _tidy(staging: Path) -> None:
    """Removes all but unfinished downloads; the folder too where nothing is left."""
    for path in staging.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif not path.name.endswith((".part", ".part.json")):
            path.unlink(missing_ok=True)
