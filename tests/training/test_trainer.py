"""The trainer as a process: what it leaves behind, what it says, and that neither kills nor damage change what comes out."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.training.lock import RUN_LOCK, RunLock
from tests.training import tiny
from tests.training.forks import Forks

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the extra `hf`"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of libraries, as they are imported
]

_ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as running:
        yield running


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_base(tmp_path_factory.mktemp("base") / "tiny")


def adapter(folder: Path) -> bytes:
    """The trained weights of a run."""
    return (folder.parent.parent / "adapters" / folder.name / _ADAPTER).read_bytes()


def until_step(folder: Path, step: int, pid: int) -> None:
    """Returns once a running trainer has said that it took so many steps."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (folder / "events.jsonl").exists():
            # The last line may still be written.
            lines = (folder / "events.jsonl").read_bytes().split(b"\n")[:-1]
            if any(each["event"] == "step" and each["step"] >= step for each in map(json.loads, lines)):
                return
        os.kill(pid, 0)
        time.sleep(0.005)
    raise AssertionError("the trainer does not get on")


def test_a_run_from_its_job_to_its_adapter(base: Path, tmp_path: Path) -> None:
    folder = tiny.make_run(tmp_path, base, [*tiny.sft_rows(), *tiny.kto_rows(2)], config={"epochs": 8}, threads=2)
    assert tiny.finish(folder) == 0, (folder / "log.txt").read_text()
    result = json.loads((folder / "result.json").read_text())
    made = tmp_path / "adapters" / "run-1"
    assert result["adapter"] == str(made)
    assert result["adapter_hash"] == hashlib.sha256((made / _ADAPTER).read_bytes()).hexdigest()
    assert (result["rows"], result["left_out"], result["other"], result["steps"]) == (12, 0, 2, 24)
    assert result["loss_last"] < 0.9 * result["loss_first"]
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["name"] == "run-1" and manifest["method"] == "sft"
    assert (
        set(manifest["files"])
        == {_ADAPTER, "adapter_config.json"}
        == {each.name for each in made.iterdir()} - {"manifest.json"}
    )
    phases = [each["phase"] for each in tiny.events(folder, "phase")]
    assert phases == ["prepare", "train", "export"]
    steps = tiny.events(folder, "step")
    assert [each["step"] for each in steps] == list(range(1, 25))
    assert {"steps", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_s", "eta_s"} <= set(steps[0])
    assert tiny.events(folder)[-1]["event"] == "done" and "adapter" not in tiny.events(folder)[-1]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in (folder / "events.jsonl").read_text()
    assert not list(folder.glob("**/*.pt")) and not list(folder.glob("**/*.pkl"))
    assert [each.name for each in tmp_path.rglob("*") if each.name.startswith((".new", ".old", ".try"))] == []


@pytest.mark.parametrize(
    ("method", "rows"),
    [
        pytest.param("dpo", tiny.dpo_rows(), marks=pytest.mark.slow),
        ("kto", tiny.kto_rows()),
        ("dpo", tiny.sft_rows(original=[tiny.assistant("I cannot say.")])),
    ],
)
def test_preferences_move_the_rewards_apart(
    forks: Forks, base: Path, tmp_path: Path, method: str, rows: list[tiny.Row]
) -> None:
    folder = tiny.make_run(tmp_path, base, rows, config={"method": method})
    assert forks.finish(folder) == 0, (folder / "log.txt").read_text()
    steps = tiny.events(folder, "step")
    assert steps[-1]["rewards"]["margin"] > 0.1 > abs(steps[0]["rewards"]["margin"])
    assert steps[-1]["loss"] < steps[0]["loss"]
    if method == "dpo":
        assert steps[-1]["rewards"]["accuracy"] == 1
    assert (folder / "reference.safetensors").exists()


def test_killed_at_any_moment_it_ends_in_the_same_adapter(forks: Forks, base: Path, tmp_path: Path) -> None:
    _kill(forks, base, tmp_path, kills=1, seed=5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_twenty_moments_it_ends_in_the_same_adapter(forks: Forks, base: Path, tmp_path: Path) -> None:
    _kill(forks, base, tmp_path, kills=20, seed=2)


def _kill(forks: Forks, base: Path, data: Path, *, kills: int, seed: int) -> None:
    dice = random.Random(seed)
    options: dict[str, Any] = {"config": {"method": "dpo", "dropout": 0.1, "epochs": 8, "batch": 5}}
    whole = tiny.make_run(data / "whole", base, tiny.dpo_rows(), **options)
    began = time.monotonic()
    assert forks.finish(whole) == 0, (whole / "log.txt").read_text()
    lasted = time.monotonic() - began
    folder = tiny.make_run(data / "killed", base, tiny.dpo_rows(), **options)
    killed = 0
    while killed < kills:
        pid = forks.start(folder)
        time.sleep(dice.uniform(0.05, 1.1) * lasted)
        os.kill(pid, signal.SIGKILL)
        # One that ended before the kill starts again from nothing.
        if forks.wait(pid) == 0:
            _forget(folder)
        killed += 1
    assert forks.finish(folder) == 0, (folder / "log.txt").read_text()
    assert adapter(folder) == adapter(whole)
    left = [each.name for each in data.rglob(".*")]
    assert left == []
    assert [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()][-1] == "done"


def _forget(folder: Path) -> None:
    (folder / "result.json").unlink()
    for path in sorted((folder / "checkpoints").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def test_sigterm_keeps_the_work_and_the_next_start_goes_on(forks: Forks, base: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"config": {"epochs": 20, "checkpoint_s": 3600}}
    whole = tiny.make_run(tmp_path / "whole", base, tiny.sft_rows(), **options)
    assert forks.finish(whole) == 0
    folder = tiny.make_run(tmp_path / "ended", base, tiny.sft_rows(), **options)
    pid = forks.start(folder)
    until_step(folder, 3, pid)
    os.kill(pid, signal.SIGTERM)
    assert forks.wait(pid) == 3
    assert tiny.events(folder)[-1]["event"] == "cancelled"
    saved = tiny.events(folder, "checkpoint")[-1]["step"]
    assert saved >= 3 and not (folder / "result.json").exists()
    assert forks.finish(folder) == 0
    assert [each["step"] for each in tiny.events(folder, "resumed")] == [saved]
    assert adapter(folder) == adapter(whole)
    # A run that is done is not done again; one whose adapter has been damaged is.
    count = len(tiny.events(folder, "step"))
    assert forks.finish(folder) == 0 and len(tiny.events(folder, "step")) == count
    (tmp_path / "ended" / "adapters" / folder.name / _ADAPTER).write_bytes(b"rot")
    assert forks.finish(folder) == 0
    assert adapter(folder) == adapter(whole)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(forks: Forks, base: Path, tmp_path: Path) -> None:
    folder = tiny.make_run(tmp_path, base, tiny.sft_rows(), config={"epochs": 24})
    pid = forks.start(folder)
    until_step(folder, 10, pid)
    os.kill(pid, signal.SIGTERM)
    assert forks.wait(pid) == 3
    newest, before = sorted((folder / "checkpoints").iterdir(), reverse=True)
    tensors = bytearray((newest / "tensors.safetensors").read_bytes())
    tensors[-1] ^= 1
    (newest / "tensors.safetensors").write_bytes(tensors)
    assert forks.finish(folder) == 0
    assert [each["step"] for each in tiny.events(folder, "note")] == [int(newest.name)]
    assert [each["step"] for each in tiny.events(folder, "resumed")] == [int(before.name)]
    whole = tiny.make_run(tmp_path / "whole", base, tiny.sft_rows(), config={"epochs": 24})
    assert forks.finish(whole) == 0
    assert adapter(folder) == adapter(whole)


def test_other_rows_under_a_run_that_began_are_refused(forks: Forks, base: Path, tmp_path: Path) -> None:
    folder = tiny.make_run(tmp_path, base, tiny.sft_rows(), config={"epochs": 30})
    pid = forks.start(folder)
    until_step(folder, 2, pid)
    os.kill(pid, signal.SIGTERM)
    assert forks.wait(pid) == 3
    (tmp_path / "snapshots" / "of-run-1" / "train.jsonl").write_text(json.dumps(tiny.sft_rows()[0]) + "\n")
    assert forks.finish(folder) == 2
    assert "other rows" in tiny.events(folder)[-1]["detail"]


def test_a_second_trainer_leaves_the_first_alone(forks: Forks, base: Path, tmp_path: Path) -> None:
    folder = tiny.make_run(tmp_path, base, tiny.sft_rows())
    lock = RunLock(folder / RUN_LOCK)
    assert lock.acquire()
    assert forks.finish(folder) == 4
    assert "Another process" in (folder / "log.txt").read_text() and not (folder / "events.jsonl").exists()
    lock.release()


def test_a_full_disk_is_said_and_leaves_nothing_half_made(forks: Forks, base: Path, tmp_path: Path) -> None:
    # A limit on the size of files, which the checkpoint is too large for, stands for the disk.
    folder = tiny.make_run(tmp_path, base, tiny.sft_rows())
    assert forks.finish(folder, RLIMIT_FSIZE=60_000) == 2
    last = tiny.events(folder)[-1]
    assert last["event"] == "failed" and "disk is full" in last["detail"]
    assert list(tmp_path.glob("adapters/*")) == [] == list(tmp_path.glob("**/.*"))
    assert forks.finish(folder) == 0


def test_a_loss_that_is_no_number_is_a_failure(forks: Forks, base: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "models" / "broken"
    broken.mkdir(parents=True)
    for path in base.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    folder = tiny.make_run(tmp_path, broken, tiny.sft_rows())
    assert forks.finish(folder) == 2
    assert "finite" in tiny.events(folder)[-1]["detail"] and not (tmp_path / "adapters" / "run-1").exists()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda base: (base / "evil.py").write_text("raise SystemExit"), "program code"),
        (lambda base: (base / "model.safetensors").write_bytes(b"\xff" * 64), "not those"),
        (lambda base: (base / "config.json").write_text('{"model_type": "nonsense"}'), "cannot be loaded"),
        (lambda base: (base / "tokenizer.json").write_text("{}"), "cannot be loaded"),
        (lambda base: (base / "chat_template.jinja").write_text("{{ raise_exception('no') }}"), "template"),
        (lambda base: (base / "chat_template.jinja").write_text("{% for i in range(10**9) %}{% endfor %}"), "template"),
        (lambda base: (base / "model.safetensors").unlink(), "no weights"),
    ],
)
def test_a_base_that_cannot_be_trained_is_refused_in_words(
    forks: Forks, base: Path, tmp_path: Path, spoil: Any, words: str
) -> None:
    own = tmp_path / "models" / "own"
    own.mkdir(parents=True)
    for path in base.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    folder = tiny.make_run(tmp_path, own, tiny.sft_rows())
    spoil(own)
    assert forks.finish(folder) == 2
    last = tiny.events(folder)[-1]
    assert last["event"] == "failed" and words in last["detail"], (folder / "log.txt").read_text()
    assert str(tmp_path) not in last["detail"] and "Error" not in last["detail"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_torchrun_shares_a_run_between_two_processes(base: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    alone = tiny.make_run(tmp_path / "alone", base, tiny.dpo_rows(), config={"method": "dpo"})
    assert tiny.finish(alone) == 0
    folder = tiny.make_run(tmp_path / "two", base, tiny.dpo_rows(), config={"method": "dpo"})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, "-m", "app.training.trainer", str(folder)], capture_output=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    first, second = tiny.events(alone, "step"), tiny.events(folder, "step")
    assert [each["loss"] for each in second] == pytest.approx([each["loss"] for each in first], rel=1e-3)
    assert [each["step"] for each in second] == [each["step"] for each in first]
    assert (tmp_path / "two" / "adapters" / "run-1" / _ADAPTER).exists()
