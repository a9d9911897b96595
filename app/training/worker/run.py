"""One run from its job to its adapter: prepare, train, export. What `app.training.trainer` calls once torch may be imported."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from app.core.files import sync
from app.training.worker.base import Base, open_base
from app.training.worker.batch import Example
from app.training.worker.data import Data, read_data
from app.training.worker.events import Events
from app.training.worker.export import Exported, export, finished, try_out
from app.training.worker.group import Group, joined
from app.training.worker.job import Job, TrainingFailed
from app.training.worker.loop import Loop, Progress, Setting
from app.training.worker.opening import Device, open_policy
from app.training.worker.policy import Policy
from app.training.worker.rehearsal import read_rehearsal
from app.training.worker.stop import Stop

RESULT: Final = "result.json"
_REFERENCE: Final = "reference.safetensors"
_FORMAT: Final = 1
"""Of checkpoints: raised whenever the same inputs would no longer give the same weights."""
_MOST_RESULT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the event ``done`` says: the content of ``result.json`` without any path."""

    result: dict[str, Any]


def run(job: Job, events: Events, stop: Stop) -> Outcome:
    """See `app.training.trainer.train`."""
    known = _known_result(job)
    if known is not None:
        return _outcome(known)
    (job.folder / RESULT).unlink(missing_ok=True)  # of an adapter that is no longer whole
    os.environ.setdefault("MPLCONFIGDIR", str(Path(job.base.cache) / "matplotlib"))  # where it remembers the fonts it found
    threads = _threads(job)
    torch.set_num_threads(threads)
    with joined(job.device) as group:
        with stop.at_once():
            events.write("phase", phase="prepare")
            base = open_base(job.base, template=job.chat_template, device=job.device, dtype=job.config.dtype, group=group)
            most = min(job.config.max_tokens, base.context or job.config.max_tokens)
            data = read_data(job.rows, job.config, base.format, most_tokens=most)
            if job.rehearsal is not None and job.config.rehearsal:
                data = replace(data, rehearsed=read_rehearsal(job.rehearsal, base.format, most_tokens=most))
            policy = open_policy(base.folder, config=job.config, device=cast(Device, job.device), threads=threads)
        try:
            return _train(job, events, stop, group, base, data, policy, threads)
        finally:
            policy.close()


def _train(job: Job, events: Events, stop: Stop, group: Group, base: Base, data: Data, policy: Policy, threads: int) -> Outcome:
    fingerprint = _fingerprint(job, base, data)
    balance = data.desirable_balance if job.config.method == "kto" else 1.0
    setting = Setting(job.folder, job.config, threads, fingerprint, balance)
    with stop.at_once():
        if group.first:
            try_out(job, policy)
        examples: Sequence[Example] = data.examples
        if job.config.method != "sft":
            examples = _with_reference(job, policy, data.examples, group, fingerprint)
    loop = Loop(setting, policy, examples, events, group, stop, data.rehearsed)
    events.write(
        "phase",
        phase="train",
        method=job.config.method,
        rows=len(examples),
        left_out=dict(data.left_out),
        other=data.other,
        steps=loop.steps,
        device=str(policy.device),
        dtype=str(policy.dtype).removeprefix("torch."),
        threads=threads,
    )
    loop.resume()
    loop.run()
    if not group.first:
        return Outcome({})
    with stop.at_once():
        events.write("phase", phase="export")
        exported = export(job, policy)
    return _outcome(_write_result(job, exported, data, loop.progress))


def _threads(job: Job) -> int:
    """Threads of this process: its share, where a launcher started several on this machine."""
    threads = job.threads or len(os.sched_getaffinity(0))
    return max(1, threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _fingerprint(job: Job, base: Base, data: Data) -> str:
    inputs = [
        _FORMAT,
        job.run_id,
        job.base.sha256,
        job.config.model_dump(),
        base.format.template_hash,
        data.sha256,
        data.rehearsed.sha256,
    ]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _with_reference(job: Job, policy: Policy, examples: Sequence[Example], group: Group, fingerprint: str) -> Sequence[Example]:
    """The examples with their log-probabilities under the base: kept in the run's folder, so that they are computed once."""
    path = job.folder / _REFERENCE
    known = _known_reference(path, examples, fingerprint)
    group.wait()  # all have looked before the first one writes
    if known is None:
        mine = policy.reference(group.share(examples))
        width = len(examples[0].rows)
        flat = [0.0] * (len(examples) * width)
        for example in mine:
            flat[example.number * width : (example.number + 1) * width] = example.reference
        known = torch.tensor(group.sum(flat), dtype=torch.float64).view(-1, width)
        if not bool(torch.isfinite(known).all()):
            raise TrainingFailed("The base model gives log-probabilities that are no numbers. Try dtype float32.")
        if group.first:
            fresh = path.with_suffix(".new")
            save_file({"reference": known}, fresh, metadata={"fingerprint": fingerprint})
            sync(fresh)
            fresh.replace(path)
    return [_referenced(example, row) for example, row in zip(examples, known.tolist(), strict=True)]


def _referenced(example: Example, row: Sequence[float]) -> Example:
    return Example(example.rows, example.weight, example.desirable, example.number, tuple(row))


def _known_reference(path: Path, examples: Sequence[Example], fingerprint: str) -> Any | None:
    try:
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("fingerprint") != fingerprint:
                return None
            found = file.get_tensor("reference")
    except (OSError, SafetensorError):
        return None
    fits = found.shape == (len(examples), len(examples[0].rows)) and bool(torch.isfinite(found).all())
    return found if fits else None


def _write_result(job: Job, exported: Exported, data: Data, progress: Progress) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {
        "adapter_hash": exported.hash,
        "adapter": str(exported.folder),
        "method": job.config.method,
        "rows": len(data.examples),
        "left_out": sum(data.left_out.values()),
        "other": data.other,
        "steps": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 3),
        "loss_first": progress.loss_first,
        "loss_last": progress.loss_last,
        "peak_rss_bytes": peak if sys.platform == "darwin" else peak * 1024,
    }
    fresh = job.folder / f".{RESULT}.new"
    fresh.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    sync(fresh)
    fresh.replace(job.folder / RESULT)
    sync(job.folder)
    return result


def _known_result(job: Job) -> dict[str, Any] | None:
    """The result of a run that had ended already, if its adapter is there and whole."""
    path = job.folder / RESULT
    try:
        result = json.loads(path.read_bytes()) if path.stat().st_size <= _MOST_RESULT_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    whole = finished(job)
    return result if isinstance(result, dict) and whole is not None and result.get("adapter_hash") == whole.hash else None


def _outcome(result: dict[str, Any]) -> Outcome:
    return Outcome({name: value for name, value in result.items() if name != "adapter"})
