"""Where a model's files are, and whether they may be read at all. No torch; the network only for a Hub name that is not here.

A model folder comes from strangers. It is read only if it can hold nothing but data: weights as safetensors, no Python, no
``auto_map``, no link that leads out of it, no index that names files elsewhere. Pickled weights are never read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.core.files import hash_file

_log = logging.getLogger(__name__)

_MOST_FILES = 10_000
_MOST_JSON_BYTES = 64 << 20
_PROGRAMS = frozenset({".py", ".pyc", ".pyo", ".so", ".dll", ".dylib", ".sh"})
_PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".msgpack", ".h5"})
_WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_UNWANTED = ("*/*", "consolidated*", "training_args*")
_HUB_WAIT_S = 4.0
_NO_HUB = (
    "The model is not on this machine and no hub can be reached. Name a local folder or GGUF file, fetch a model with "
    "`aprendiz models pull`, or connect this machine to a hub (HF_ENDPOINT names another one, HF_HOME a filled cache)."
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)


class LoadRefused(Exception):
    """The model is not loaded; ``detail`` says why to the caller. ``unknown``: there is no such model."""

    def __init__(self, detail: str, *, unknown: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.unknown = unknown


@dataclass(frozen=True, slots=True)
class Source:
    """Checked files: a folder of safetensors, or one GGUF file."""

    path: Path
    is_gguf: bool
    revision: str | None = None
    """The Hub's commit, for a model from there."""

    def weights(self) -> list[Path]:
        """The files that hold the weights, by name."""
        return [self.path] if self.is_gguf else sorted(self.path.glob("*.safetensors"))


def is_hub_name(name: str) -> bool:
    """Whether this can be the name of a model on a hub: ``name`` or ``owner/name``."""
    return _HUB_NAME.fullmatch(name) is not None and ".." not in name and "--" not in name


def local(path: Path) -> Source:
    """A folder or GGUF file on this machine.

    Raises:
        LoadRefused: it is neither, or holds what is never read.
    """
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise LoadRefused("A model file must be a GGUF file; for other formats name the folder that holds it.")
        return Source(path, is_gguf=True)
    if not path.is_dir():
        raise LoadRefused("There is no such file or folder.", unknown=True)
    ggufs = sorted(path.glob("*.gguf"))
    if ggufs and not (path / "config.json").exists():
        if len(ggufs) > 1:
            raise LoadRefused("The folder holds several GGUF files; name the one to load.")
        _check_links(path, path)
        return Source(ggufs[0], is_gguf=True)
    # A snapshot in a hub cache consists of links into its repository's blobs, beside it.
    check_folder(path, root=path.parent.parent if path.parent.name == "snapshots" else path)
    return Source(path, is_gguf=False)


def check_folder(folder: Path, *, root: Path) -> None:
    """Refuses a model folder that could hold anything but data. ``root``: where its links may lead.

    Raises:
        LoadRefused: with the reason.
    """
    _check_links(folder, root)
    config = _read_json(folder / "config.json")
    if config is None:
        hint = " It looks like an adapter, which needs its base." if (folder / "adapter_config.json").exists() else ""
        raise LoadRefused(f"The folder holds no config.json, so it is not a model in the transformers format.{hint}")
    for path in folder.glob("*.json"):
        if "auto_map" in _keys(_read_json(path)):
            raise LoadRefused("The model wants to run its own program code (auto_map); only models without it are loaded.")
    if not any(folder.glob("*.safetensors")):
        if any(path.suffix.lower() in _PICKLES for path in folder.iterdir()):
            raise LoadRefused("The weights are pickled, and a pickle can run programs. Convert them to safetensors first.")
        raise LoadRefused("The folder holds no weights in the safetensors format.")
    _check_index(folder)


def _check_links(folder: Path, root: Path) -> None:
    inside = root.resolve()
    for count, path in enumerate(_walk(folder)):
        if count >= _MOST_FILES:
            raise LoadRefused(f"The folder holds more than {_MOST_FILES} files, so it is hardly a model.")
        if path.suffix.lower() in _PROGRAMS:
            raise LoadRefused("The folder holds program code; only models that are data alone are loaded.")
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise LoadRefused("The folder holds a link that leads out of it.")
        if not (path.is_file() or path.is_dir()):
            raise LoadRefused("The folder holds something that is neither a file nor a folder.")


def _walk(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            yield Path(where, name)


def _check_index(folder: Path) -> None:
    index = _read_json(folder / "model.safetensors.index.json")
    if index is None:
        return
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise LoadRefused("The index of the weights cannot be read.")
    for name in set(names.values()):
        if name != os.path.basename(name) or not name.endswith(".safetensors"):
            raise LoadRefused("The index of the weights names files outside the folder, or of another format.")
        if not (folder / name).is_file():
            raise LoadRefused("Some weight files are missing: the download is not complete.")


def _read_json(path: Path) -> Any:
    """The content, or None where there is no such file."""
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise LoadRefused(f"{path.name} is too large to be read.")
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise LoadRefused(f"{path.name} cannot be read as JSON.") from None


def _keys(tree: Any) -> set[str]:
    """The keys of an object and of the objects directly in it."""
    if not isinstance(tree, dict):
        return set()
    return set(tree).union(*(set(value) for value in tree.values() if isinstance(value, dict)))


def from_hub(name: str, *, token: str | None) -> Source:
    """A model by its Hub name: from the local cache of the hub if it is whole there, else downloaded.

    Raises:
        LoadRefused: there is no such model, no hub can be reached, or the model is refused.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        check_folder(folder, root=folder.parent.parent)
        return Source(folder, is_gguf=False, revision=folder.name)
    except LocalEntryNotFoundError:
        _log.info("not in the cache of the hub")
    except LoadRefused as refused:
        _log.info("the cached copy is not used: %s", refused.detail)
    return _download(name, token)


def _download(name: str, token: str | None) -> Source:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = HfApi(token=token).model_info(name, timeout=_HUB_WAIT_S)
        files = [sibling.rfilename for sibling in info.siblings or ()]
        if not any(file.endswith(".safetensors") and "/" not in file for file in files):
            raise LoadRefused("This model has no weights in the safetensors format; pickled weights are never loaded.")
        wanted, unwanted = list(_WANTED), list(_UNWANTED)
        folder = Path(snapshot_download(name, revision=info.sha, token=token, allow_patterns=wanted, ignore_patterns=unwanted))
    except LoadRefused:
        raise
    except GatedRepoError:
        raise LoadRefused("The hub gives this model only to accounts that accepted its terms; set HF_TOKEN.") from None
    except RepositoryNotFoundError:
        raise LoadRefused("The hub has no model of this name, or it is private (then set HF_TOKEN).", unknown=True) from None
    except Exception as error:  # noqa: BLE001 (the client's own errors, those of two HTTP libraries and the system's: one outcome)
        _log.warning("nothing came from the hub: %r", error)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise LoadRefused("The disk is full; the model could not be downloaded.") from None
        raise LoadRefused(_NO_HUB) from None
    check_folder(folder, root=folder.parent.parent)
    return Source(folder, is_gguf=False, revision=info.sha)


def base_hash(source: Source, cache: Path) -> str:
    """SHA-256 of the weights in hex: of the file where there is one, else of the lines ``sha256 name`` of all, by name."""
    digests = [(_file_hash(path, cache), path.name) for path in source.weights()]
    if len(digests) == 1:
        return digests[0][0]
    return hashlib.sha256("".join(f"{digest} {name}\n" for digest, name in digests).encode()).hexdigest()


def _file_hash(path: Path, cache: Path) -> str:
    """The file's SHA-256, remembered under its place, size and times: hashing gigabytes at each start would be felt."""
    stat = path.stat()
    identity = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n{stat.st_ctime_ns}\n{stat.st_ino}"
    note = cache / "hashes" / hashlib.sha256(identity.encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError):  # no note, or one that cannot be read: the file itself is there
        known = note.read_text()
        if re.fullmatch("[0-9a-f]{64}", known):
            return known
    digest = hash_file(path)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        fresh = note.with_name(f"{note.name}.{os.getpid()}")
        fresh.write_text(digest)
        fresh.replace(note)
    except OSError as error:
        _log.info("the hash is not remembered: %s", error.strerror)
    return digest
