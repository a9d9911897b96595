"""What a real service trains with in tests: its own queue, database and routes, the counting child, and doubles around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.core.files import FileHashes
from app.core.types import ModelSpec
from app.db.snapshots import Snapshots
from app.training.bases import Bases
from app.training.packages import Packages
from app.training.tools import Tools
from tests.training.jobs_world import QUICK, FakeBuilder, FakeJudge, FakeModels, FakePromoter, command


def counting(**options: Any) -> Callable[[Tools], Tools]:
    """Tools whose child counts (see `tests.training.fake_trainer`), whose snapshots are tiny and whose gate is a double."""

    def change(tools: Tools) -> Tools:
        base = tools.folders.data / "base.gguf"
        base.write_bytes(b"GGUF weights")
        models = FakeModels(ModelSpec("llamacpp", str(base), "cpu"))
        assert isinstance(tools.snapshots, Snapshots)
        return dataclasses.replace(
            tools,
            models=models,
            builder=FakeBuilder(tools.snapshots, tools.folders),
            judge=FakeJudge(),
            promoter=FakePromoter(models),
            bases=Bases(Path, FileHashes(), cache=tools.folders.data),
            packages=Packages,
            rehearsal=None,
            command=command(**options),
            timings=QUICK,
        )

    return change
