"""The service as a process of its own, whose runs train a tiny model on tiny snapshots: ``python -m`` it through the harness.

``TRAINING_STEP_S``: a child that counts, so long a step; without it the real trainer trains ``tiny`` in the data directory.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from fastapi import FastAPI

from app.api import server
from app.core import config
from app.core.files import FileHashes
from app.core.logging import configure
from app.core.settings import Settings
from app.core.types import ModelSpec
from app.db.snapshots import Snapshots
from app.main import create_app
from app.training.bases import Bases
from app.training.child import COMMAND
from app.training.tools import Tools
from tests.training.jobs_world import FakeBuilder, FakeModels
from tests.training.served_tools import counting


class RowsBuilder(FakeBuilder):
    """Snapshots of the rows in ``rows.jsonl`` of the data directory."""

    def rows(self) -> bytes:
        return (self.folders.data / "rows.jsonl").read_bytes()


def real(tools: Tools) -> Tools:
    """The real trainer, all else as small as it can be."""
    assert isinstance(tools.snapshots, Snapshots)
    return dataclasses.replace(
        counting()(tools),
        builder=RowsBuilder(tools.snapshots, tools.folders),
        models=FakeModels(ModelSpec("hf", str(tools.folders.data / "tiny"), "cpu")),
        bases=Bases(Path, FileHashes(), cache=tools.folders.data),
        command=COMMAND,
        threads=1,
    )


def app(settings: Settings) -> FastAPI:
    step_s = os.environ.get("TRAINING_STEP_S")
    change = real if step_s is None else counting(**{"steps": 100, "step_s": float(step_s)})
    return create_app(settings, training_tools=change)


if __name__ == "__main__":
    found = config.with_secret_key(config.load()).settings
    configure(found.logging)
    server.run(app, found)
