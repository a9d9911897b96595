"""``aprendiz train`` against a real service whose child counts instead of training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.training.config import TrainConfig
from tests.cli.conftest import Cli
from tests.conftest import Service, make_settings, running
from tests.training.served_tools import counting


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = make_settings(tmp_path_factory.mktemp("home") / "data")
    with running(settings, training_tools=counting(steps=5, step_s=0.01)) as service:
        service.admin()
        yield service


@pytest.fixture
def cli(served: Service) -> Cli:
    return Cli(served.settings.data_dir.parent, {"APRENDIZ_SERVER__PORT": str(served.port)})


def test_a_run_is_followed_to_its_end(cli: Cli) -> None:
    done = cli("train", "run", "--method", "sft", "--rank", "4", "--learning-rate", "0.001", "--promote", "if_passed")
    assert "gain" in done.stdout and "0.1 to 0.5" in done.stdout
    assert "The gate's verdict: pass." in done.stderr
    assert [word for word in done.stderr.split("\n") if word in ("snapshot", "prepare", "train", "export", "gate")] == [
        "snapshot", "prepare", "train", "export", "gate"
    ]  # fmt: skip
    shown = json.loads(cli("train", "show", "latest", "--json").stdout)
    assert (shown["state"], shown["method"], shown["promote"]) == ("succeeded", "sft", "if_passed")
    assert (shown["config"]["rank"], shown["config"]["learning_rate"]) == (4, 0.001)
    assert shown["id"] in cli("train", "list").stdout
    assert "succeeded" in cli("train", "show", shown["id"]).stderr


def test_events_as_lines_for_scripts(cli: Cli) -> None:
    lines = [json.loads(line) for line in cli("train", "run", "--json").stdout.splitlines()]
    assert [line["step"] for line in lines if line["event"] == "step"] == [1, 2, 3, 4, 5]


def test_a_detached_run_prints_its_id_alone(cli: Cli) -> None:
    run_id = cli("train", "run", "--detach").stdout.strip()
    followed = cli("train", "show", run_id, "--follow")
    assert f"Run {run_id}: succeeded" in followed.stderr
    assert "ended already" in cli("train", "cancel", run_id, code=1).stderr


def test_reports_and_snapshots(cli: Cli, tmp_path: Path) -> None:
    cli("train", "run")
    assert json.loads(cli("train", "report", "latest", "--json").stdout) == {"verdict": "pass"}
    page = tmp_path / "report.html"
    cli("train", "report", "latest", "--html", "--output", str(page))
    assert page.read_text().startswith("<!doctype html>")
    run = json.loads(cli("train", "show", "latest", "--json").stdout)
    assert run["snapshot"] in cli("train", "snapshots").stdout
    assert json.loads(cli("train", "snapshots", "--preview", "--json").stdout)["method"] == "sft"


def test_bad_values_are_refused_before_anything_is_asked(cli: Cli) -> None:
    refused = cli("train", "run", "--rank", "0", "--dropout", "2", code=2)
    assert "--rank" in refused.stderr and "--dropout" in refused.stderr
    cli("train", "run", "--method", "ppo", code=2)


def test_what_the_service_refuses_is_one_line(cli: Cli) -> None:
    for command in ("show", "cancel", "report"):
        assert "There is no such training run." in cli("train", command, "nothing", code=1).stderr
    assert (
        "There is no such snapshot." in cli("train", "run", "--snapshot", "01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e77", code=1).stderr
    )


def test_every_hyper_parameter_is_an_option(cli: Cli) -> None:
    said = cli.process("train", "run", "--help", COLUMNS="200").stdout
    for name in TrainConfig.model_fields:
        assert f"--{name.replace('_', '-')}" in said


def test_without_a_service_it_says_what_to_do(tmp_path: Path) -> None:
    done = Cli(tmp_path, {"APRENDIZ_SERVER__PORT": "1"})("train", "list", code=1)
    assert "aprendiz serve" in done.stderr
