"""doc/providers.md is true: its example starts, its table names every field, its errors are ours."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from app.api.problems import STATUS
from app.core.config import load
from app.core.settings import Upstream

DOCUMENT = (Path(__file__).parents[2] / "doc" / "providers.md").read_text(encoding="utf-8")


def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "config.yaml").write_text(example)
    keys = {match: "sk-example" for match in re.findall(r"api_key_env: (\w+)", example)}
    there = load(folder=tmp_path, environ=keys).settings.providers.upstreams
    assert set(yaml.safe_load(example)["providers"]["upstreams"]) | {"claude"} == set(there)
    assert there["in-the-cluster"].private


def test_the_table_names_every_field() -> None:
    table = DOCUMENT.partition("| field | default | |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == set(Upstream.model_fields) - {"api_key"}


def test_its_errors_are_ours() -> None:
    table = DOCUMENT.partition("## Errors")[2].partition("\n\nAfter")[0]
    slugs = set(re.findall(r"\| `([a-z-]+)`", table))
    assert len(slugs) == 8
    assert slugs <= {kind.slug for kind in STATUS}
