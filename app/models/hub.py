"""Which files make a model of a Hugging Face style hub, with their sizes and hashes. Asks two questions and downloads nothing.

The hub is ``HF_ENDPOINT`` where that is set (a mirror, a company's own), else the public one. Only public models: no token is
sent.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from app.core.errors import InvalidRequest, Unavailable, UnknownModel
from app.models.fetch import RemoteFile, get_json
from app.models.local import is_inside

PUBLIC = "https://huggingface.co"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_WANTED = re.compile(r".+\.(safetensors|json|jinja|txt|model)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def files_of(name: str, file: str | None, *, endpoint: str, sha256: str | None = None) -> list[RemoteFile]:
    """The files to fetch for ``owner/name``: the named one, the only GGUF, or the safetensors with configuration and tokenizer.

    All are of one commit, so that a push meanwhile cannot mix two versions. Code and pickles are never among them.

    Raises:
        UnknownModel: no such model or file. Unavailable: no hub to ask.
        InvalidRequest: several GGUF files, and none named; the text lists them.
    """
    base = endpoint.rstrip("/")
    about = get_json(f"{base}/api/models/{name}?blobs=true")
    if not isinstance(about, Mapping) or not isinstance(about.get("siblings"), list):
        raise Unavailable("The hub's answer is not what a hub says.")
    revision = str(about.get("sha") or "main")
    entries = [each for each in about["siblings"] if isinstance(each, Mapping) and is_inside(str(each.get("rfilename", "")))]
    chosen = _choose({str(each["rfilename"]): each for each in entries}, file)
    return [_remote(base, name, revision, each, sha256 if len(chosen) == 1 else None) for each in chosen]


def _choose(entries: Mapping[str, Mapping[str, Any]], file: str | None) -> list[Mapping[str, Any]]:
    ggufs = [name for name in entries if name.endswith(".gguf")]
    if file is not None:
        if file not in entries or file not in ggufs:
            raise UnknownModel(
                f"That model has no GGUF file of that name; it has: {', '.join(ggufs) or 'none'}.", field="model"
            )
        return [entries[file]]
    if len(ggufs) == 1:
        return [entries[ggufs[0]]]
    if ggufs:
        raise InvalidRequest(f"Say which file, as owner/name:FILE. There are: {', '.join(sorted(ggufs))}.", field="model")
    wanted = [name for name in entries if _WANTED.fullmatch(name) and "/" not in name]
    if not any(name.endswith(".safetensors") for name in wanted) or "config.json" not in wanted:
        raise UnknownModel("That model has neither a GGUF nor safetensors with a config.json; other kinds are not loaded.")
    return [entries[name] for name in wanted]


def _remote(base: str, name: str, revision: str, entry: Mapping[str, Any], sha256: str | None) -> RemoteFile:
    path = str(entry["rfilename"])
    lfs = entry.get("lfs")
    digest = lfs.get("sha256") or lfs.get("oid") if isinstance(lfs, Mapping) else None
    digest = digest if isinstance(digest, str) and _SHA256.fullmatch(digest) else None
    blob = entry.get("blobId")
    url = f"{base}/{name}/resolve/{urllib.parse.quote(revision, safe='')}/{urllib.parse.quote(path)}"
    size = entry.get("size")
    return RemoteFile(
        url=url,
        name=path,
        size=size if isinstance(size, int) else None,
        sha256=sha256 or digest,
        git_sha1=str(blob) if digest is None and sha256 is None and blob else None,
    )
