"""The small parts that runs are made of: when a child may compute, what is read of its events, how far it is."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest

from app.training.feed import EventFile, note
from app.training.folders import Folders, read_bytes, read_tail
from app.training.packages import NEEDED, packages
from app.training.progress import Progress
from app.training.throttle import Throttle


def share(*, busy: float, idle: float, seconds: int = 200) -> float:
    """Which part of the time a run gets where people are served ``busy`` seconds, then not for ``idle`` ones, over and over."""
    throttle, ran, tick = Throttle(), 0, 0.05
    for at in range(int(seconds / tick)):
        now = at * tick
        ran += throttle.may_run(now, busy=now % (busy + idle) < busy)
    return ran * tick / seconds


def test_nobody_is_served() -> None:
    assert share(busy=0, idle=1) == 1


def test_a_load_without_a_pause_leaves_a_tenth() -> None:
    assert share(busy=1, idle=0) == pytest.approx(0.1, abs=0.01)


def test_a_light_load_leaves_more_and_questions_close_together_are_one() -> None:
    assert share(busy=1, idle=1.5) == pytest.approx(0.1, abs=0.01)
    assert share(busy=1, idle=9) == pytest.approx(0.7, abs=0.03)


def test_the_first_question_stops_it_at_once() -> None:
    throttle = Throttle()
    assert throttle.may_run(0, busy=False)
    assert not throttle.may_run(0.05, busy=True)
    assert not throttle.may_run(2.0, busy=False)
    assert throttle.may_run(2.06, busy=False)


def test_a_clock_that_stands_still_changes_nothing() -> None:
    throttle = Throttle()
    assert not any(throttle.may_run(5, busy=True) for _ in range(1000))


def test_events_while_the_file_grows(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    file = EventFile(path)
    assert file.read() == []
    path.write_bytes(b'{"event": "a"}\n{"event": ')
    [first] = file.read()
    assert first.event == {"event": "a"} and first.end == 15
    with path.open("ab") as more:
        more.write(b'"b"}\n')
    assert [heard.event["event"] for heard in file.read()] == ["b"]
    assert file.read() == [] and file.skipped == 0


@pytest.mark.parametrize(
    "line", [b"[]", b"{}", b'{"event": 1}', b'{"event": "a", "x": NaN}', b"\xff", b"[" * 100_000, b"x" * 900_000]
)
def test_what_is_no_event_is_passed_over_and_counted(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line + b'\n{"event": "after"}\n')
    file = EventFile(path)
    assert [heard.event["event"] for heard in file.read()] == ["after"]
    assert file.skipped == 1


@pytest.mark.parametrize("mark", [-5, 0, 3, 15, 16, 1 << 60])
def test_any_mark_is_safe(tmp_path: Path, mark: int) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "a"}\n{"event": "b"}\n')
    names = [heard.event["event"] for heard in EventFile(path, after=mark).read()]
    assert names in (["a", "b"], ["b"], [])


def test_a_note_behind_half_a_line_stands_on_its_own(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "st')
    note(path, "phase", phase="gate")
    assert [heard.event["phase"] for heard in EventFile(path).read()] == ["gate"]


def test_progress_believes_numbers_only() -> None:
    progress = Progress({"loss": "much", "step": True}, "waiting")
    assert progress.to_json() == {"phase": "waiting", "percent": 0, "paused": False}
    progress.hear({"event": "phase", "phase": "gate"})
    assert progress.phase == "waiting", "not one of the child's"
    progress.hear({"event": "phase", "phase": "train"})
    progress.hear({"event": "step", "step": 5, "steps": 10, "loss": -1, "eta_s": "soon"})
    assert progress.to_json() == {"phase": "train", "percent": 40.0, "step": 5, "steps": 10, "paused": False}


def test_ids_become_paths_and_nothing_else_does(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    for name in ("..", "jobs.lock", "/etc", "", "01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e77/.."):
        for place in (folders.run, folders.snapshot, folders.adapter):
            with pytest.raises(ValueError, match="not an id"):
                place(name)


def test_reads_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert read_bytes(path, limit=5) is None and read_tail(path, limit=5) == b""
    path.write_bytes(b"first line\nlast\n")
    assert read_bytes(path, limit=5) == b"first"
    assert read_tail(path, limit=7) == b"last\n"


def test_looking_for_packages_imports_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    assert packages().installing is False
    (tmp_path / ".installing-train").touch()
    assert packages().installing is True
    os.utime(tmp_path / ".installing-train", (0, 0))
    assert packages().installing is False


def test_a_run_is_refused_where_any_package_of_its_extra_is_missing() -> None:
    """One that is found missing at the end of a run has cost all of it."""
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {re.split(r"[^a-z0-9_-]", each)[0] for each in (*extras["hf"], *extras["train"])} - {"aprendiz"}
    assert names == set(NEEDED)
