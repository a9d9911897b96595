"""The whole loop with the bundled model, as `aprendiz demo` shows it: minutes of two cores, so only on demand."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.torch
@pytest.mark.timeout(2400)
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the extra train")
def test_a_newcomer_sees_the_model_learn(tmp_path: Path) -> None:
    file = os.environ.get("APRENDIZ_TEST_MODEL")
    if file is None:
        pytest.skip("needs the bundled model")
    shutil.copytree(Path(file).parent, tmp_path / "models" / Path(file).parent.name)
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "APRENDIZ_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "app.cli.main", "demo", "--json", "--no-install"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["verdict"] == "pass"
    assert result["dropped"] == 0
    assert result["right"] >= result["asked"] - 1
    assert result["at_once"]
    assert result["rolled_back"]
