"""The job of one run, as its starter wrote it to ``job.json``: read once, checked to the last field. No torch, no network.

The child trusts nothing in its folder: sizes are bounded, unknown fields refused, and what it reads and writes (snapshot,
adapters) must lie in the same data directory as the run itself.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from app.training.config import TrainConfig

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 2
EXIT_CANCELLED: Final = 3

_MOST_JOB_BYTES = 1 << 20
_MOST_TEMPLATE = 256 << 10
_RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

_Path = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^/[^\x00]*$")]


class TrainingFailed(Exception):
    """The run cannot go on; ``detail`` says why in words that may be shown to anyone: no path, no foreign text."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Cancelled(BaseException):
    """SIGTERM came. Not an `Exception`, so that nothing that handles failures takes it for one."""


class BaseModelFiles(BaseModel):
    """The base model: a folder of safetensors or a GGUF file, the SHA-256 of its weights, and where conversions are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    path: _Path
    is_gguf: bool
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    cache: _Path


class _JobFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    run_id: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    base: BaseModelFiles
    snapshot: _Path
    config: TrainConfig
    adapters: _Path
    rehearsal: _Path | None = None
    threads: int = Field(0, ge=0, le=1024)
    chat_template: Annotated[str, StringConstraints(max_length=_MOST_TEMPLATE)] | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    nice: int = Field(10, ge=0, le=19)


@dataclass(frozen=True, slots=True)
class Job:
    """A checked job. ``config.method`` is ``sft``, ``dpo`` or ``kto``; ``threads`` 0: as many as there are cores."""

    folder: Path
    run_id: str
    base: BaseModelFiles
    snapshot: Path
    config: TrainConfig
    adapters: Path
    threads: int
    chat_template: str | None
    device: str
    nice: int
    rehearsal: Path | None = None
    """The rows to rehearse; see `app.training.rehearsal`."""

    @property
    def rows(self) -> Path:
        """The file with the training rows."""
        return self.snapshot / "train.jsonl"


def read_job(folder: Path) -> Job:
    """The job of the run whose folder this is.

    Raises:
        TrainingFailed: there is none, or something in it is not as it must be.
    """
    folder = folder.resolve()
    found = _checked(read_json(folder / "job.json", "job.json", most_bytes=_MOST_JOB_BYTES))
    if _RUN_ID.fullmatch(found.run_id) is None or found.run_id != folder.name:
        raise TrainingFailed("job.json is not valid: run_id must be the name of the run's folder.")
    if found.config.method == "auto" or found.config.learning_rate is None or found.config.epochs is None:
        raise TrainingFailed("job.json is not valid: config must name its method, learning_rate and epochs.")
    data = folder.parent.parent
    return Job(
        folder=folder,
        run_id=found.run_id,
        base=found.base,
        snapshot=_inside(data, found.snapshot, "snapshot"),
        config=found.config,
        adapters=_inside(data, found.adapters, "adapters"),
        threads=found.threads,
        chat_template=found.chat_template,
        device=found.device,
        nice=found.nice,
        rehearsal=None if found.rehearsal is None else _inside(data, found.rehearsal, "rehearsal"),
    )


def read_json(path: Path, name: str, *, most_bytes: int) -> Any:
    """The content of a JSON file. ``name`` stands in errors.

    Raises:
        TrainingFailed: missing, too large, not JSON, or with numbers that JSON does not know (NaN).
    """
    try:
        with path.open("rb") as file:
            text = file.read(most_bytes + 1)
    except FileNotFoundError:
        raise TrainingFailed(f"{name} is missing.") from None
    except (OSError, ValueError):
        raise TrainingFailed(f"{name} cannot be read.") from None
    if len(text) > most_bytes:
        raise TrainingFailed(f"{name} is larger than {most_bytes >> 10} KiB.")
    return parse_json(text, name)


def parse_json(text: bytes, name: str) -> Any:
    """JSON without NaN, Infinity and lone surrogates. Raises TrainingFailed."""
    try:
        found = json.loads(text.decode(), parse_constant=_no_constant, parse_float=_finite)
        if b"\\ud" in text.lower():
            json.dumps(found, ensure_ascii=False).encode()  # half of a pair cannot be encoded, by a tokenizer neither
        return found
    except (ValueError, RecursionError):
        raise TrainingFailed(f"{name} is not valid JSON.") from None


def _no_constant(_name: str) -> NoReturn:
    raise ValueError("not a number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("too large for a number")
    return number


def _checked(found: Any) -> _JobFile:
    try:
        return _JobFile.model_validate(found)
    except ValidationError as error:
        # The names of fields that nobody knows are foreign text; those of our own are not.
        known = {".".join(map(str, each["loc"])) for each in error.errors() if each["type"] != "extra_forbidden"}
        if any(each["type"] == "extra_forbidden" for each in error.errors()):
            known.add("unknown fields")
        raise TrainingFailed(f"job.json is not valid: {', '.join(sorted(known)[:8]) or 'it must be an object'}.") from None


def _inside(data: Path, text: str, name: str) -> Path:
    try:
        path = Path(text).resolve()
        outside = not path.is_relative_to(data)
    except (OSError, ValueError, RuntimeError):
        outside = True
    if outside:
        raise TrainingFailed(f"job.json is not valid: {name} must lie in the data directory of the run.")
    return path
