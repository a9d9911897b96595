"""What the provider tests share: a context with short paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from app.core.settings import Model, Providers
from app.providers.base import ProviderContext


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A short path: Unix sockets take about 107 bytes."""
    with TemporaryDirectory(prefix="apr-") as folder:
        yield Path(folder)


@pytest.fixture
def make_context(runtime_dir: Path, tmp_path: Path) -> Callable[..., ProviderContext]:
    """Builds a context; keyword arguments are fields of the section `model`."""

    def make(*, engine_memory_mb: int = 0, **model: object) -> ProviderContext:
        return ProviderContext(
            model=Model.model_validate({"slots": 4, "context_tokens": 512, "load_timeout_s": 60, **model}),
            providers=Providers(engine_memory_mb=engine_memory_mb),
            models_dir=tmp_path,
            runtime_dir=runtime_dir,
            resolve=lambda name: Path(name) if Path(name).exists() else None,
        )

    return make
