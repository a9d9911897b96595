"""A judgement from a run's files to its stored verdict, with versions that say what the test wants."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import Conflict, ContextOverflow, EngineUnavailable, StorageFull, UpstreamTimeout
from app.core.records import GateAttemptRecord
from app.core.settings import Settings
from app.core.types import GenerationRequest
from app.db.database import open_database
from app.db.runs import GateAttempts
from app.training.gate import collect
from app.training.gate.judge import Gate
from tests.training.gate.doubles import (
    AlikeParity,
    FakeModels,
    MemoryAttempts,
    Scene,
    correction,
    plain,
    preference,
    question,
    scene,
    vote,
)

HOUSE = "The workshop is open from {} to nine, every day but Monday."


def house(request: GenerationRequest) -> str:
    """A version that has learned the house's answers."""
    asked = question(request)
    return HOUSE.format(asked.split()[-1]) if asked.startswith("House") else plain(request)


def corrections(count: int = 12) -> list[dict[str, Any]]:
    return [correction(number, HOUSE.format(number)) for number in range(count)]


def gate(models: FakeModels, place: Scene, attempts: Any = None) -> Gate:
    kept = MemoryAttempts() if attempts is None else attempts
    parity: Any = AlikeParity()
    return Gate(models=models, attempts=kept, snapshots=place.rows, folders=place.folders, parity=parity)


def check(report: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in report["checks"] if each["name"] == name)
    return found


async def test_a_version_that_learned_passes(tmp_path: Path) -> None:
    place, attempts, models = scene(tmp_path, corrections(), corrections(40)), MemoryAttempts(), FakeModels(new=house)
    steps: list[tuple[int, int]] = []
    report = await gate(models, place, attempts).judge(
        place.run, place.snapshot, place.folder, progress=lambda done, all: steps.append((done, all))
    )
    assert report["verdict"] == "pass", report["summary"]
    assert report["versions"] == {"candidate": "c" * 16, "current": "0" * 16}
    assert report["attempt"]["number"] == 1
    assert report["attempt"]["alpha"] == 0.02
    assert check(report, "gain")["value"] == 1.0
    assert check(report, "significance")["value"] == pytest.approx(2**-12)
    assert [each.passed for each in attempts.kept] == [True]
    assert attempts.kept[0].groups == tuple(sorted(f"g{each}" for each in range(12)))
    assert json.loads((place.folder / "report.json").read_text()) == json.loads(json.dumps(report))
    assert models.opened[1].adapter == place.run.id
    assert models.open_now == 0
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]
    assert all(request.sampling.temperature == 0 and request.cache == "off" for request in models.asked)
    assert 2 <= models.most <= 8, "both versions at once, and no more than the engine has slots"


async def test_the_verdict_holds_no_words_of_users(tmp_path: Path) -> None:
    place = scene(tmp_path, corrections(), corrections(40))
    report = await gate(FakeModels(new=house), place).judge(place.run, place.snapshot, place.folder)
    assert "workshop" not in json.dumps(report)
    assert "House question" not in json.dumps(report)
    assert "workshop" in (place.folder / "report.html").read_text()
    assert (place.folder / "report.html").stat().st_mode & 0o777 == 0o600


async def test_a_version_that_learned_nothing_fails(tmp_path: Path) -> None:
    place, attempts = scene(tmp_path, corrections()), MemoryAttempts()
    report = await gate(FakeModels(), place, attempts).judge(place.run, place.snapshot, place.folder)
    assert report["verdict"] == "fail"
    assert not check(report, "gain")["passed"]
    assert [(each.passed, each.p_value) for each in attempts.kept] == [(False, 1.0)]


async def test_votes_are_judged_by_log_ratios(tmp_path: Path) -> None:
    rows = [vote(number, number % 3 == 0, "short" if number % 3 == 0 else "a rambling answer") for number in range(40)]
    place = scene(tmp_path, rows, raters=("ana", "ben"))
    models = FakeModels(rate_new=lambda _, text: -1.5 if text == "short" else -2.5 if "rambling" in text else -2.0)
    report = await gate(models, place).judge(place.run, place.snapshot, place.folder)
    assert report["verdict"] == "pass", report["summary"]
    assert report["primary"]["ratings"]["rate"] == 1.0
    backwards = FakeModels(rate_old=models.rate_new)
    again = place.again()
    report = await gate(backwards, place).judge(again, place.snapshot, place.folders.run(again.id))
    assert report["verdict"] == "fail"
    assert report["primary"]["ratings"]["rate"] == 0.0


async def test_votes_by_token_are_one_person_of_the_gate_too(tmp_path: Path) -> None:
    rows = [vote(number, number % 2 == 0, "short" if number % 2 == 0 else "a rambling answer") for number in range(40)]
    place = scene(tmp_path, rows, raters=[f"token:{number}" for number in range(40)], asked_by="ana")
    report = await gate(FakeModels(), place).judge(place.run, place.snapshot, place.folder)
    assert report["sampled"]["people"] == 1


async def test_preferences_are_judged_by_margins(tmp_path: Path) -> None:
    place = scene(tmp_path, [preference(number, "good answer", "bad answer") for number in range(15)])
    models = FakeModels(rate_new=lambda _, text: -1.0 if text.startswith("good") else -2.0)
    report = await gate(models, place).judge(place.run, place.snapshot, place.folder)
    assert report["verdict"] == "pass", report["summary"]
    assert list(report["primary"]) == ["preferences"]


async def test_margins_of_corrections_are_told_and_not_judged_by(tmp_path: Path) -> None:
    """Any training raises them, for what was corrected are the old model's own answers."""
    place = scene(tmp_path, corrections())
    models = FakeModels(rate_new=lambda _, text: -1.0 if "workshop" in text else -2.0)
    report = await gate(models, place).judge(place.run, place.snapshot, place.folder)
    assert report["verdict"] == "fail"
    assert report["corrections_margin"] == {"rows": 12, "mean": pytest.approx(1.0), "raised": 1.0}


async def test_what_nobody_asked_for_must_stay(tmp_path: Path) -> None:
    """The house's answers are learned, and every other answer has become a chatty one."""

    def chatty(request: GenerationRequest) -> str:
        return house(request) if question(request).startswith("House") else f"I think I love it! {plain(request)}"

    place = scene(tmp_path, corrections(), corrections(40))
    report = await gate(FakeModels(new=chatty), place).judge(place.run, place.snapshot, place.folder)
    assert report["verdict"] == "fail"
    assert {each["name"] for each in report["checks"] if not each["passed"]} == {"impersonal", "exclamation"}


async def test_what_people_asked_for_may_change(tmp_path: Path) -> None:
    """The same chatty answers pass where people's own corrections are like that."""

    def chatty(request: GenerationRequest) -> str:
        return house(request) if question(request).startswith("House") else f"I think I love it! {plain(request)}"

    wanted = [correction(number, f"I think I love number {number}! It is on the shelf.") for number in range(40)]
    place = scene(tmp_path, corrections(), wanted)
    report = await gate(FakeModels(new=chatty), place).judge(place.run, place.snapshot, place.folder)
    assert report["verdict"] == "pass", report["summary"]


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (lambda request: "", "degenerate"),
        (lambda request: "go on " * 30, "degenerate"),
        (lambda request: "I'm sorry, but I can't help with that question at all.", "refusals"),
        (lambda request: "Das ist nicht die Antwort auf die Frage, die sie mir mit dem Satz gestellt haben.", "language"),
        (lambda request: plain(request) + " and more words follow here" * 9, "length"),
    ],
)
async def test_broken_versions_fail(tmp_path: Path, broken: Any, name: str) -> None:
    def speak(request: GenerationRequest) -> str:
        return house(request) if question(request).startswith("House") else str(broken(request))

    place = scene(tmp_path, corrections(), corrections(40))
    report = await gate(FakeModels(new=speak), place).judge(place.run, place.snapshot, place.folder)
    assert report["verdict"] == "fail"
    assert not check(report, name)["passed"], report["checks"]


async def test_forgetting_fails(tmp_path: Path) -> None:
    place = scene(tmp_path, corrections(), corrections(40))
    models = FakeModels(new=house, rate_new=lambda asked, _: -2.0 if asked.startswith("House") else -3.0)
    report = await gate(models, place).judge(place.run, place.snapshot, place.folder)
    assert [each["name"] for each in report["checks"] if not each["passed"]] == ["forgetting"]


async def test_unmeasured_does_not_pass(tmp_path: Path) -> None:
    place = scene(tmp_path, corrections(), corrections(40))
    report = await gate(FakeModels(new=house, scores=False), place).judge(place.run, place.snapshot, place.folder)
    assert {each["name"] for each in report["checks"] if not each["passed"]} == {"forgetting", "parity"}


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
async def test_figures_that_are_no_numbers_fail_with_words(tmp_path: Path, figure: float) -> None:
    place = scene(tmp_path, [vote(number, number % 2 == 0, "text") for number in range(40)])
    report = await gate(FakeModels(rate_new=lambda *_: figure), place).judge(place.run, place.snapshot, place.folder)
    assert report["verdict"] == "fail"
    assert "no number" in check(report, "gain")["detail"]
    json.dumps(report, allow_nan=False)


async def test_too_little_feedback_spends_nothing(tmp_path: Path) -> None:
    place, attempts = scene(tmp_path, corrections(4)), MemoryAttempts()
    report = await gate(FakeModels(new=house), place, attempts).judge(place.run, place.snapshot, place.folder)
    assert report["verdict"] == "fail"
    assert "Too little" in check(report, "gain")["detail"]
    assert attempts.kept == []


async def test_attempts_on_the_same_feedback_are_counted(tmp_path: Path) -> None:
    place, attempts = scene(tmp_path, corrections()), MemoryAttempts()
    judge = gate(FakeModels(), place, attempts)
    levels = []
    for _ in range(3):
        run = place.again()
        report = await judge.judge(run, place.snapshot, place.folders.run(run.id))
        levels.append((report["attempt"]["number"], report["attempt"]["alpha"]))
    assert levels == [(1, 0.02), (2, pytest.approx(0.005)), (3, pytest.approx(0.02 / 9))]
    assert len(report["history"]) == 2


async def test_a_run_that_is_judged_again_keeps_its_first_result(tmp_path: Path) -> None:
    """Else a failed run could be judged until it passes, as one attempt."""
    place, attempts = scene(tmp_path, corrections()), MemoryAttempts()
    first = await gate(FakeModels(), place, attempts).judge(place.run, place.snapshot, place.folder)
    second = await gate(FakeModels(new=house), place, attempts).judge(place.run, place.snapshot, place.folder)
    assert second["attempt"]["number"] == first["attempt"]["number"] == 1
    assert second["verdict"] == "fail"
    assert len(attempts.kept) == 1


async def test_the_attempt_is_stored_before_the_verdict_is_shown(tmp_path: Path) -> None:
    place = scene(tmp_path, corrections())

    class Dies(MemoryAttempts):
        async def add(self, attempt: GateAttemptRecord) -> None:
            assert not (place.folder / "report.json").exists()
            assert not (place.folder / "report.html").exists()
            raise RuntimeError("the process dies here")

    with pytest.raises(RuntimeError):
        await gate(FakeModels(new=house), place, Dies()).judge(place.run, place.snapshot, place.folder)
    assert not (place.folder / "report.json").exists()


async def test_attempts_in_the_real_table(tmp_path: Path) -> None:
    database = open_database(Settings(data_dir=tmp_path / "data"))
    await database.open()
    try:
        place, attempts = scene(tmp_path, corrections()), GateAttempts(database)
        await gate(FakeModels(), place, attempts).judge(place.run, place.snapshot, place.folder)
        run = place.again()
        report = await gate(FakeModels(new=house), place, attempts).judge(run, place.snapshot, place.folders.run(run.id))
        assert report["attempt"]["number"] == 2
        assert [each.run_id for each in await attempts.list()] == [place.run.id, run.id]
    finally:
        await database.aclose()


async def test_hostile_texts_are_escaped(tmp_path: Path) -> None:
    nasty = "</pre><script>alert(1)</script><img src=x onerror=alert(1)> \u202e &lt; \x00 ' \" style="
    rows = [correction(number, nasty) for number in range(12)]
    place = scene(tmp_path, rows, rows)
    await gate(FakeModels(new=lambda request: nasty), place).judge(place.run, place.snapshot, place.folder)
    page = (place.folder / "report.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "\x00" not in page


async def test_cancelling_ends_every_question(tmp_path: Path) -> None:
    place, attempts = scene(tmp_path, corrections()), MemoryAttempts()
    models = FakeModels(new=house, delay_s=30)
    work = asyncio.create_task(gate(models, place, attempts).judge(place.run, place.snapshot, place.folder))
    async with asyncio.timeout(5):
        await models.begun.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert (models.running, models.open_now) == (0, 0)
    assert attempts.kept == []
    assert not (place.folder / "report.json").exists()


async def test_a_question_that_fails_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_AGAIN_S", 0.0)
    place, failures = scene(tmp_path, corrections(), corrections(40)), iter(range(3))

    def trouble(request: GenerationRequest) -> None:
        if next(failures, None) is not None:
            raise UpstreamTimeout("too slow")

    models = FakeModels(new=house, trouble=trouble)
    report = await gate(models, place).judge(place.run, place.snapshot, place.folder)
    assert report["verdict"] == "pass"


async def test_an_engine_that_goes_on_failing_can_be_tried_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_AGAIN_S", 0.0)
    place, attempts = scene(tmp_path, corrections()), MemoryAttempts()

    def trouble(request: GenerationRequest) -> None:
        raise UpstreamTimeout("too slow")

    with pytest.raises(EngineUnavailable):
        await gate(FakeModels(trouble=trouble), place, attempts).judge(place.run, place.snapshot, place.folder)
    assert attempts.kept == []


async def test_rows_that_no_model_takes_are_left_out(tmp_path: Path) -> None:
    place = scene(tmp_path, corrections(14), corrections(40))

    def trouble(request: GenerationRequest) -> None:
        if question(request).endswith("number 13"):
            raise ContextOverflow("too long")

    report = await gate(FakeModels(new=house, trouble=trouble), place).judge(place.run, place.snapshot, place.folder)
    assert report["sampled"]["skipped"] == 1
    assert report["sampled"]["judged_rows"] == 13
    assert report["verdict"] == "pass"


async def test_much_feedback_is_sampled(tmp_path: Path) -> None:
    place, models = scene(tmp_path, corrections(500), corrections(40)), FakeModels(new=house)
    report = await gate(models, place).judge(place.run, place.snapshot, place.folder)
    assert report["sampled"]["held_out_groups"] == 500
    assert report["sampled"]["judged_rows"] == 200
    assert len([request for request in models.asked if question(request).startswith("House")]) == 400


@pytest.mark.parametrize("content", [None, "no json\n", "[1]\n", '{"kind"'])
async def test_damaged_files(tmp_path: Path, content: str | None) -> None:
    place = scene(tmp_path, corrections())
    path = place.folders.snapshot(place.snapshot.id) / "heldout.jsonl"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(Conflict):
        await gate(FakeModels(new=house), place).judge(place.run, place.snapshot, place.folder)


async def test_odd_rows_are_left_out(tmp_path: Path) -> None:
    odd: list[dict[str, Any]] = [
        {"kind": "sft", "group": "x", "prompt": [], "completion": []},
        {"kind": "other", "group": "x", "prompt": [{"role": "user", "content": "a"}]},
        {
            "kind": "kto",
            "group": "x",
            "prompt": [{"role": "user", "content": "a"}],
            "completion": [{"content": "b"}],
            "label": 3,
        },
        {"kind": "sft", "prompt": "a", "completion": "b", "group": 7},
        {
            "kind": "sft",
            "group": "y",
            "prompt": [{"role": "user", "content": "a"}],
            "completion": [{"content": "", "tool_calls": [1]}],
        },
    ]
    place = scene(tmp_path, [*corrections(), *odd], [*corrections(40), *odd])
    report = await gate(FakeModels(new=house), place).judge(place.run, place.snapshot, place.folder)
    assert report["sampled"]["not_comparable"] == 5
    assert report["verdict"] == "pass"


async def test_a_full_disk_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, attempts = scene(tmp_path, corrections()), MemoryAttempts()

    def full(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("app.training.gate.judge.write_json", full)
    with pytest.raises(StorageFull):
        await gate(FakeModels(new=house), place, attempts).judge(place.run, place.snapshot, place.folder)
    assert len(attempts.kept) == 1
