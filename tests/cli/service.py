"""The service beside the command line, for the commands that speak HTTP."""

from __future__ import annotations

from typing import Self

from tests.acceptance.harness import ServiceProcess
from tests.cli.conftest import Cli

_SHARED = ("APRENDIZ_SERVER__PORT", "APRENDIZ_MODEL__PROVIDER", "APRENDIZ_MODEL__MODEL")


class Service(ServiceProcess):
    """``aprendiz serve`` beside a `Cli` that shares its data directory; ``ada`` is its admin."""

    def __init__(self, cli: Cli) -> None:
        super().__init__(cli.data_dir, environ=cli.environment())
        self.cli = cli
        cli.environ |= {name: self.environ[name] for name in _SHARED}

    def __enter__(self) -> Self:
        self.start()
        self.admin("ada")
        return self
