"""The examples of ``doc/sdk.md`` run as they stand there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.core.settings import Settings
from tests.sdk.conftest import Site
from tests.sdk.test_node import folder

__all__ = ["folder"]

DOCUMENT = (Path(__file__).parents[2] / "doc" / "sdk.md").read_text(encoding="utf-8")
QUESTION = "What is the capital of France?"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


def variables(site: Site) -> dict[str, str]:
    return {
        "OPENAI_BASE_URL": site.v1,
        "OPENAI_API_KEY": site.key,
        "ANTHROPIC_BASE_URL": site.url,
        "ANTHROPIC_API_KEY": site.key,
    }


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # short examples close no clients
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python(site: Site, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in variables(site).items():
        monkeypatch.setenv(name, value)
    code = compile(blocks("python")[number], f"example {number}", "exec", dont_inherit=True)
    exec(code, {"__name__": "example"})
    assert QUESTION in capsys.readouterr().out or "rating" in blocks("python")[number]


def test_javascript(site: Site, folder: Path) -> None:
    node = shutil.which("node")
    assert node is not None
    (folder / "example.mjs").write_text("\n".join(blocks("js")))
    done = subprocess.run(
        [node, "example.mjs"], cwd=folder, env=variables(site), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == f"{QUESTION}\n{QUESTION}", done.stderr


def test_yaml() -> None:
    routes, models = map(yaml.safe_load, blocks("yaml"))
    assert set(Settings.model_validate(routes).routing.models) == {"gpt-4o-mini", "text-embedding-3-small"}
    fields: dict[str, Any] = models[0]
    assert fields.keys() <= {"model_id", "model_name", "api_base", "api_key_name", "supports_schema", "supports_tools"}
