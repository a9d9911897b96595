"""The documents that people write by hand name all that there is, and nothing else: routes, problems, metrics, M1's files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.api.openapi import PROBLEMS, inventory
from app.api.problems import STATUS
from app.core.metrics import Metrics
from app.core.types import EngineState
from app.main import create_app
from tests.conftest import make_settings

ROOT = Path(__file__).parents[2]
FILES_OF_M1 = (
    "app/core/config.py",
    "app/security/auth.py",
    "app/db/sqlite.py",
    "app/models/model_manager.py",
    "app/api/routers/auth.py",
    "app/api/routers/predict.py",
    "app/api/routers/feedback.py",
    "app/api/routers/model.py",
    "app/main.py",
    "app/llm_api.py",
    "app/providers/base.py",
    "app/providers/huggingface.py",
    "doc/M1_Diseño.md",
    "run_llm.sh",
    ".env.example",
)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(name: str, heading: str) -> str:
    return text(name).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_every_route_stands_in_the_api_document(tmp_path: Path) -> None:
    app = create_app(make_settings(tmp_path))
    served = {
        f"{method} {known.path}".replace("{path:path}", "{path}")
        for known in inventory(app.routes)
        for method in (["WS"] if known.websocket else known.methods - {"HEAD"})
    }
    assert set(re.findall(r"`((?:GET|POST|PATCH|DELETE|WS) /[^`?]*)`", section("doc/api.md", "All routes"))) == served


def test_every_problem_stands_in_the_api_document() -> None:
    rows = {slug: int(status) for slug, status in re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", text("doc/api.md"), re.M)}
    assert rows.pop("method-not-allowed") == 405  # the router's own, not of our tree
    assert rows == {kind.slug: status for kind, status in STATUS.items()}


def test_the_reference_names_every_status_of_a_problem() -> None:
    assert {int(status) for status in PROBLEMS} == {*STATUS.values(), 405}


def test_every_metric_stands_in_the_operations_document() -> None:
    metrics = Metrics()
    ours = [each for each in vars(metrics).values() if hasattr(each, "describe") and each is not metrics.registry]
    wanted = {
        f"{family.name}{'_total' if family.type == 'counter' else ''}": ", ".join(each._labelnames)
        for each in ours
        for family in each.describe()
    }
    rows = dict(re.findall(r"^\| `(aprendiz_[a-z_]+)` \| ([a-z, ]*?) ?\|", text("doc/operations.md"), re.M))
    assert rows == wanted


def test_the_states_of_an_engine_stand_in_the_operations_document() -> None:
    row = next(line for line in text("doc/operations.md").splitlines() if line.startswith("| `aprendiz_engine_state`"))
    assert set(re.findall(r"`([a-z]+)`", row)) == {state.value for state in EngineState}


@pytest.mark.parametrize("name", FILES_OF_M1)
def test_the_files_that_m1_names_are_there(name: str) -> None:
    assert (ROOT / name).is_file()


def test_feedback_goes_in_by_the_name_of_m1() -> None:
    from app.db.sqlite import store_feedback
    from app.models.model_manager import ModelManager
    from app.providers.base import BaseLLMProvider

    assert callable(store_feedback)
    assert callable(ModelManager.generate)
    assert BaseLLMProvider.__abstractmethods__ == {"open"}
