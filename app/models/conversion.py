"""Turns what a package holds into an embedding model's folder, in a child process with bounded memory and time.

The parser of a foreign format is the part that could be fooled, so it never runs here. What it makes must have the hashes that
the catalogue pins: the same bytes come out on every machine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from app.core.errors import ModelLoadFailed
from app.core.files import hash_file
from app.models.catalogue import CatalogueEntry
from app.providers.process import base_environment

logger = logging.getLogger(__name__)

_WORKER: Final = "app.providers.workers.onnx_convert"
_MEMORY_MB: Final = 6144
_TIME_S: Final = 300
_FILES: Final = ("embedder.json", "model.onnx", "tokenizer.json")


def convert(entry: CatalogueEntry, source: Path, target: Path) -> dict[str, str]:
    """Fills ``target`` from the files in ``source``; the SHA-256 of what it made, by name. Blocks.

    Raises:
        ModelLoadFailed: it cannot be converted, or became something else than the catalogue says.
    """
    config = {
        "kind": entry.convert,
        "source": str(source),
        "target": str(target),
        "options": dict(entry.options),
        "memory_mb": _MEMORY_MB,
        "parent_pid": os.getpid(),
    }
    _run(config)
    try:
        hashes = {name: hash_file(target / name) for name in _FILES}
    except OSError as error:
        raise ModelLoadFailed("The conversion of the model did not make all its files.") from error
    if hashes != dict(entry.made):
        logger.error("a conversion made other files", extra={"data": {"model": entry.name, "made": hashes}})
        raise ModelLoadFailed(
            "The converted model has another SHA-256 than the catalogue says. Install the versions that were tested "
            "(pip install --upgrade 'aprendiz[memory]'), then pull it again."
        )
    return hashes


def _run(config: dict[str, object]) -> None:
    command = [sys.executable, "-P", "-m", _WORKER]
    pipe, environ = subprocess.PIPE, base_environment()
    with subprocess.Popen(  # noqa: S603
        command, stdin=pipe, stdout=pipe, stderr=pipe, env=environ, start_new_session=True
    ) as child:
        assert child.stdin is not None  # noqa: S101  # asked for above
        try:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps(config).encode() + b"\n")
                child.stdin.flush()
            # stdin stays open: its end would tell the child that we are gone.
            said, log = _output(child)
        finally:
            if child.poll() is None:
                child.kill()
    report: dict[str, Any] = next((json.loads(line) for line in said.splitlines() if line.startswith(b"{")), {})
    if child.returncode == 0 and "listening" in report:
        return
    logger.warning("a model was not converted", extra={"data": {"log": log[-4000:].decode(errors="replace")}})
    detail = str((report.get("failed") or {}).get("detail") or "The conversion of the model ended before its time.")
    raise ModelLoadFailed(detail[:500])


def _output(child: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """What it wrote until its end. Raises ModelLoadFailed after `_TIME_S` seconds."""
    stdin, child.stdin = child.stdin, None  # `communicate` would close it
    try:
        return child.communicate(timeout=_TIME_S)
    except subprocess.TimeoutExpired:
        raise ModelLoadFailed("The conversion of the model took too long.") from None
    finally:
        if stdin is not None:
            stdin.close()
