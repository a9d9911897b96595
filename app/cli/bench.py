"""``aprendiz bench``: runs the benchmarks of a checkout. What they measure, and how, stands in ``bench/``."""

from __future__ import annotations

import subprocess
import sys
from enum import StrEnum
from pathlib import Path

import typer

from app.core.errors import ConfigurationError

_ROOT = Path(__file__).parents[2]


class Benchmark(StrEnum):
    """What there is to measure."""

    gateway = "gateway"
    serving = "serving"
    startup = "startup"
    commits = "commits"
    training = "training"
    gate = "gate"
    vectors = "vectors"
    retrieval = "retrieval"


def bench(
    context: typer.Context,
    name: Benchmark = typer.Argument(
        help="gateway: beside LiteLLM and Portkey; serving: against the bare engine; startup; commits; training: beside TRL; "
        "gate: whether it keeps its promises; vectors: the vector stores side by side; "
        "retrieval: how well documents are found, and what that does to answers."
    ),
) -> None:
    """Measure this machine; further arguments go to the benchmark (`aprendiz bench gateway --help`). Needs a checkout."""
    if not (_ROOT / "bench" / "__init__.py").is_file():
        raise ConfigurationError("The benchmarks are part of the repository: run this in a checkout.")
    done = subprocess.run(  # noqa: S603  # the operator's own command, with the operator's rights
        [sys.executable, "-m", f"bench.{name.value}", *context.args], cwd=_ROOT, check=False
    )
    raise typer.Exit(done.returncode)
