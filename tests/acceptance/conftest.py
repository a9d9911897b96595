"""The bundled model, where it was pulled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def gguf() -> Path:
    path = os.environ.get("APRENDIZ_TEST_MODEL", "")
    if not Path(path).is_file():
        pytest.skip("APRENDIZ_TEST_MODEL names no GGUF file; ./run_tests.sh pulls one")
    return Path(path)
