"""From trained weights to the folder that is served: PEFT's two files, for a GGUF base ``adapter.gguf``, and ``manifest.json``.

Made under another name, brought to the disk and renamed: nobody ever sees half an adapter, and a full disk leaves none behind.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from app.core.errors import ModelLoadFailed
from app.core.files import hash_file, sync
from app.training.worker.job import Job, TrainingFailed
from app.training.worker.policy import Policy

MANIFEST: Final = "manifest.json"
GGUF: Final = "adapter.gguf"
_MOST_MANIFEST_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished adapter. ``hash``: SHA-256 of its weights; of several files, that of the lines ``sha256 name``."""

    folder: Path
    hash: str


def export(job: Job, policy: Policy) -> Exported:
    """Writes ``<adapters>/<run id>``; one that is there already and the same is left as it is.

    Raises:
        TrainingFailed: the adapter cannot be converted for its base.
        OSError: disk full.
    """
    job.adapters.mkdir(parents=True, exist_ok=True)
    for left in job.adapters.glob(f".*-{job.run_id}-*"):
        shutil.rmtree(left, ignore_errors=True)
    target = job.adapters / job.run_id
    fresh = Path(tempfile.mkdtemp(prefix=f".new-{job.run_id}-", dir=job.adapters))
    try:
        _write(job, policy, fresh)
        exported = Exported(target, _manifest(job, fresh))
        for path in (*fresh.iterdir(), fresh):
            sync(path)
        if finished(job) != exported:
            if target.exists():
                shutil.rmtree(target.rename(Path(tempfile.mkdtemp(prefix=f".old-{job.run_id}-", dir=job.adapters)) / "old"))
            fresh.rename(target)
            sync(job.adapters)
    finally:
        for left in job.adapters.glob(f".*-{job.run_id}-*"):
            shutil.rmtree(left, ignore_errors=True)
    return exported


def try_out(job: Job, policy: Policy) -> None:
    """Writes an untrained adapter and throws it away: what cannot be exported should be known before the training.

    Raises:
        TrainingFailed: the adapter could not be converted for its base.
        OSError: disk full.
    """
    with tempfile.TemporaryDirectory(prefix=".try-", dir=job.folder) as folder:
        _write(job, policy, Path(folder))


def finished(job: Job) -> Exported | None:
    """The adapter of this run, if it is there and every file in it is what its manifest says."""
    folder = job.adapters / job.run_id
    try:
        if (folder / MANIFEST).stat().st_size > _MOST_MANIFEST_BYTES:
            return None
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files: dict[str, Any] = manifest["files"]
        if manifest["name"] != job.run_id or manifest["base_hash"] != job.base.sha256 or not files:
            return None
        if any(Path(name).name != name or hash_file(folder / name) != digest for name, digest in files.items()):
            return None
        return Exported(folder, _hash_of(files))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _write(job: Job, policy: Policy, folder: Path) -> None:
    policy.save(folder)
    if not job.base.is_gguf or job.config.tuning == "full":
        return
    from app.training.worker.adapter_gguf import write_gguf_adapter

    try:
        write_gguf_adapter(folder, Path(job.base.path), folder / GGUF)
    except ModelLoadFailed as error:
        raise TrainingFailed(error.detail) from error


def _manifest(job: Job, folder: Path) -> str:
    """Writes the manifest of what lies in ``folder``; returns the hash of the weights."""
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    found = {
        "name": job.run_id,
        "base_hash": job.base.sha256,
        "method": job.config.method,
        "tuning": job.config.tuning,
        "files": files,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (folder / MANIFEST).write_text(json.dumps(found, indent=2) + "\n")
    return _hash_of(files)


def _hash_of(files: dict[str, Any]) -> str:
    weights = [(digest, name) for name, digest in sorted(files.items()) if name.endswith(".safetensors")]
    if len(weights) == 1:
        return str(weights[0][0])
    return hashlib.sha256("".join(f"{digest} {name}\n" for digest, name in weights).encode()).hexdigest()
