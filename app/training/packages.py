"""Whether the packages of the extra ``train`` are here, without importing any of them: they never enter the service."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.core.errors import TrainingUnavailable

NEEDED: Final = ("torch", "transformers", "safetensors", "gguf", "matplotlib")
_MARKER: Final = ".installing-train"
_LONGEST_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Packages:
    """``missing``: names; ``installing``: an installation is under way, so they may be here in a while."""

    missing: tuple[str, ...] = ()
    installing: bool = False

    @property
    def ready(self) -> bool:
        """Whether a run can start now."""
        return not self.missing and not self.installing

    def check(self) -> None:
        """Raises TrainingUnavailable where packages are missing and nobody installs them."""
        if self.missing and not self.installing:
            raise TrainingUnavailable(
                f"Training is not installed here ({', '.join(self.missing)} missing). Install it with"
                " ./run_llm.sh --train --setup-only, or pip install 'aprendiz[train]'."
            )


def packages() -> Packages:
    """What is here now. Looks at the disk anew: an installation may have ended since."""
    importlib.invalidate_caches()
    missing = tuple(name for name in NEEDED if importlib.util.find_spec(name) is None)
    return Packages(missing, _is_installing(Path(sys.prefix) / _MARKER))


def _is_installing(marker: Path) -> bool:
    """Whether the marker is there and fresh: an installer that was killed leaves it behind."""
    try:
        age = time.time() - marker.stat().st_mtime
    except OSError:
        return False
    return age < _LONGEST_S
