"""What goes wrong with runs: children that die, fail, hang and babble, services that end, disks and databases that refuse."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.core.errors import (
    Conflict,
    EngineUnavailable,
    NotFound,
    NotPromotable,
    ShuttingDown,
    StorageUnavailable,
    TooLittleFeedback,
    TooManyRequests,
    TrainingUnavailable,
    UpstreamTimeout,
)
from app.core.types import ModelSpec
from app.db.database import Database
from app.training.child import Child
from app.training.lock import RUN_LOCK, began
from app.training.packages import Packages
from app.training.snapshots import SnapshotConfig
from tests.training.jobs_world import ADMIN, World, command, report


@pytest.fixture
async def world(sqlite: Database, tmp_path: Path) -> AsyncIterator[World]:
    found = World(sqlite, tmp_path)
    yield found
    await found.jobs.aclose()
    found.end_children()


async def test_a_child_that_dies_is_started_again_and_goes_on(world: World) -> None:
    async with world.started(world.another(command=command(crash_at=5, crashes=2))) as jobs:
        run = await jobs.submit(actor=None)
        done = await world.ended(run.id)
        heard = [event async for event in jobs.events(run.id)]
    assert done.state == "succeeded"
    assert len(world.lives(run.id)) == 3
    assert [event["step"] for event in heard if event["event"] == "step"] == list(range(1, 21))
    assert world.metrics.run_restarts._value.get() == 2


async def test_a_child_that_never_comes_further_is_given_up_in_words(world: World) -> None:
    said = "Traceback in /home/ada/secret/trainer.py: \x1b[31mno luck"
    async with world.started(world.another(command=command(crash_at=1, crashes=99, say=said))) as jobs:
        done = await world.ended((await jobs.submit(actor=None)).id)
    assert done.state == "failed"
    assert done.error is not None
    assert "killed" in done.error or "died 3 times" in done.error
    assert "/home" not in done.error and "\x1b" not in done.error
    assert len(world.lives(done.id)) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"fail": "There is not enough memory in /var/tmp/x to train this model."},
            "There is not enough memory in … to train this model.",
        ),
        ({"exit": 0}, "The training process ended without a result."),
        ({"exit": 2, "say": "cannot read /etc/shadow"}, "The training process gave up. Its last words: cannot read …"),
    ],
)
async def test_a_child_that_fails_says_why(world: World, options: dict[str, object], words: str) -> None:
    async with world.started(world.another(command=command(**options))) as jobs:
        done = await world.ended((await jobs.submit(actor=None)).id)
    assert (done.state, done.error) == ("failed", words)
    assert len(world.lives(done.id)) == 1
    assert done.phase in ("prepare", "train")


async def test_lines_that_are_no_events_are_passed_over(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async with world.started(world.another(command=command(garbage=True))) as jobs:
        run = await jobs.submit(actor=None)
        done = await world.ended(run.id)
        heard = [event async for event in jobs.events(run.id)]
    assert done.state == "succeeded"
    assert len([event for event in heard if event["event"] == "step" and isinstance(event["step"], int)]) == 20
    assert "passed over" in caplog.text


async def test_cancel_while_it_waits_and_while_it_trains(world: World) -> None:
    async with world.started(world.another(command=command(steps=1000))) as jobs:
        first, second = await jobs.submit(actor=ADMIN), await jobs.submit(actor=ADMIN)
        assert (await jobs.cancel(second.id, actor=ADMIN)).state == "cancelled"
        await world.until(lambda: world.count(first.id) > 2)
        await jobs.cancel(first.id, actor=ADMIN)
        done = await world.ended(first.id)
        assert (done.state, done.error) == ("cancelled", None)
        assert done.ended_at is not None
        for run in (first, second):
            with pytest.raises(Conflict, match="ended already"):
                await jobs.cancel(run.id, actor=ADMIN)
        with pytest.raises(NotFound):
            await jobs.cancel("../jobs.lock", actor=ADMIN)
    assert began(world.lives(first.id)[0]) is None
    assert world.lives(second.id) == []
    assert [line.action for line in await world.audit.list()][:2] == ["training.cancel", "training.cancel"]


async def test_a_child_that_takes_no_sigterm_is_killed(world: World) -> None:
    async with world.started(world.another(command=command(steps=1000, stubborn=True))) as jobs:
        run = await jobs.submit(actor=None)
        await world.until(lambda: world.count(run.id) > 2)
        await jobs.cancel(run.id, actor=None)
        assert (await world.ended(run.id)).state == "cancelled"
    assert began(world.lives(run.id)[0]) is None


async def test_cancel_in_the_gate(world: World) -> None:
    world.judge.takes_s = 60
    async with world.started() as jobs:
        run = await jobs.submit(promote="if_passed", actor=None)
        await world.until(lambda: world.judge.judged)
        assert jobs.progress(await jobs.get(run.id))["percent"] == pytest.approx(85.5)
        await jobs.cancel(run.id, actor=None)
        done = await world.ended(run.id)
    assert (done.state, done.gate) == ("cancelled", None)
    assert world.promoter.promoted == []


async def test_serving_wins(world: World) -> None:
    async with world.started(world.another(command=command(steps=100_000, step_s=0.005))) as jobs:
        run = await jobs.submit(actor=None)
        await world.until(lambda: world.count(run.id) > 5)
        world.models.served = True
        await asyncio.sleep(0.2)
        stopped_at = world.count(run.id)
        assert jobs.progress(await jobs.get(run.id))["paused"] is True
        await asyncio.sleep(0.3)
        assert world.count(run.id) <= stopped_at + 1
        world.models.served = False
        await asyncio.sleep(0.15)
        assert world.count(run.id) <= stopped_at + 1, "somebody may ask again at once"
        await world.until(lambda: world.count(run.id) > stopped_at + 10)
        assert jobs.progress(await jobs.get(run.id))["paused"] is False
        world.models.served = True
        await world.until(lambda: world.heard(jobs, run)["paused"])
        await jobs.cancel(run.id, actor=None)
        assert (await world.ended(run.id)).state == "cancelled", "one that is paused ends, too"
    assert world.metrics.run_paused_seconds._value.get() > 0.4


async def test_the_child_outlives_the_service_and_is_found_again(world: World) -> None:
    slow = world.another(command=command(steps=60, step_s=0.02))
    async with world.started(slow) as jobs:
        run = await jobs.submit(actor=None)
        await world.until(lambda: world.count(run.id) > 3)
        world.models.served = True
        await world.until(lambda: world.heard(slow, run)["paused"])
    world.models.served = False
    stopped_at = world.count(run.id)
    await world.until(lambda: world.count(run.id) > stopped_at + 3)
    row = await world.runs.get(run.id)
    assert row is not None and row.state == "running"
    async with world.started() as again:
        done = await world.ended(run.id)
        assert again.progress(done)["step"] == 60
    assert done.state == "succeeded"
    assert len(world.lives(run.id)) == 1


async def test_a_child_that_died_while_nobody_looked_is_started_again(world: World) -> None:
    async with world.started(world.another(command=command(steps=1000, step_s=0.01))) as jobs:
        run = await jobs.submit(actor=None)
        await world.until(lambda: world.count(run.id) > 3)
    os.kill(world.lives(run.id)[0], signal.SIGKILL)
    async with world.started(world.another(command=command(steps=30))):
        done = await world.ended(run.id)
    assert done.state == "succeeded"
    assert len(world.lives(run.id)) == 2


async def test_a_child_that_finished_while_nobody_looked_is_not_started_again(world: World) -> None:
    async with world.started(world.another(command=command(steps=15))) as jobs:
        run = await jobs.submit(actor=None)
        await world.until(lambda: world.count(run.id) > 3)
    await world.until(lambda: (world.folders.run(run.id) / "result.json").exists())
    async with world.started():
        done = await world.ended(run.id)
    assert done.state == "succeeded"
    assert len(world.lives(run.id)) == 1


async def test_only_the_holder_of_the_lock_works_and_others_can_cancel(world: World) -> None:
    async with world.started(world.another(command=command(steps=5000))) as first, world.started() as second:
        run = await second.submit(actor=None)
        await world.until(lambda: world.count(run.id) > 2)
        assert world.heard(first, run)["phase"] == "train"
        assert second._course is None
        await second.cancel(run.id, actor=None)
        assert (await world.ended(run.id)).state == "cancelled"


async def test_the_next_process_takes_over(world: World) -> None:
    first, second = world.another(command=command(steps=1000)), world.another(command=command(steps=1000))
    await first.start()
    async with world.started(second):
        run = await second.submit(actor=None)
        await world.until(lambda: world.count(run.id) > 2)
        await first.aclose()
        await world.until(lambda: second._course is not None)
        await second.cancel(run.id, actor=None)
        assert (await world.ended(run.id)).state == "cancelled"
    assert len(world.lives(run.id)) == 1


async def test_a_running_row_of_another_data_directory_is_left_alone(world: World) -> None:
    foreign = await world.jobs.submit(actor=None)
    await world.runs.update(foreign.id, state="running")
    async with world.started() as jobs:
        mine = await jobs.submit(actor=None)
        assert (await world.ended(mine.id)).state == "succeeded"
        row = await world.runs.get(foreign.id)
        assert row is not None and row.state == "running"
        assert (await jobs.cancel(foreign.id, actor=None)).state == "cancelled"


def test_nobody_but_the_child_is_signalled(tmp_path: Path) -> None:
    """A run folder whose lock names a process that is not the holder."""
    innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        folder = tmp_path / "folder"
        folder.mkdir()
        for content in (
            {"pid": innocent.pid, "began": began(innocent.pid)},
            {"pid": 1, "began": 1},
            {"pid": -1, "began": None},
        ):
            (folder / RUN_LOCK).write_text(json.dumps(content))
            assert Child.find(folder) is None, "the lock is not held"
        held = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import fcntl,time; f=open({str(folder / RUN_LOCK)!r},'r+'); fcntl.flock(f,2); time.sleep(60)",
            ]
        )
        try:
            time.sleep(0.3)
            (folder / RUN_LOCK).write_text(json.dumps({"pid": innocent.pid, "began": 5}))
            assert Child.find(folder) is None, "its number was used again"
            assert innocent.poll() is None
        finally:
            held.kill()
            held.wait()
    finally:
        innocent.kill()
        innocent.wait()


async def test_what_can_be_refused_is_refused_at_once(world: World) -> None:
    world.builder.told = report()
    with pytest.raises(TooLittleFeedback, match="7 more sft"):
        await world.jobs.submit(actor=None)
    world.builder.told = report(kto=True)
    with pytest.raises(TooLittleFeedback, match="7 more dpo"):
        await world.jobs.submit(method="dpo", actor=None)
    for name in ("01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e77", "../../etc"):
        with pytest.raises(NotFound, match="snapshot"):
            await world.jobs.submit(snapshot_id=name, actor=None)
    world.models.spec = ModelSpec("openai", "gpt-x")
    with pytest.raises(Conflict, match="aprendiz models load"):
        await world.jobs.submit(actor=None)
    assert await world.runs.list() == []


async def test_quotas(sqlite: Database, tmp_path: Path) -> None:
    world = World(sqlite, tmp_path, runs_per_day=17)
    for _ in range(16):
        await world.jobs.submit(actor=None)
    with pytest.raises(TooManyRequests, match="16 training runs wait"):
        await world.jobs.submit(actor=None)
    await world.jobs.cancel((await world.runs.list())[0].id, actor=None)
    await world.jobs.submit(actor=None)
    with pytest.raises(TooManyRequests, match="runs_per_day") as refused:
        await world.jobs.submit(actor=None)
    assert refused.value.retry_after is not None and 86_000 < refused.value.retry_after <= 86_400


async def test_two_orders_at_once_keep_the_quota(sqlite: Database, tmp_path: Path) -> None:
    world = World(sqlite, tmp_path, runs_per_day=1)
    found = await asyncio.gather(*(world.jobs.submit(actor=None) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(each, TooManyRequests) for each in found) == 4


async def test_packages(world: World) -> None:
    here = [Packages(("torch",), installing=False)]
    async with world.started(world.another(packages=lambda: here[0])) as jobs:
        with pytest.raises(TrainingUnavailable, match="--train --setup-only"):
            await jobs.submit(actor=None)
        here[0] = Packages(("torch",), installing=True)
        run = await jobs.submit(actor=None)
        await asyncio.sleep(0.3)
        row = await jobs.get(run.id)
        assert (row.state, row.phase) == ("running", "waiting")
        assert "being installed" in jobs.progress(row)["detail"]
        here[0] = Packages()
        assert (await world.ended(run.id)).state == "succeeded"


async def test_an_installation_that_fails(world: World) -> None:
    here = [Packages(("torch",), installing=True)]
    async with world.started(world.another(packages=lambda: here[0])) as jobs:
        run = await jobs.submit(actor=None)
        here[0] = Packages(("torch",))
        done = await world.ended(run.id)
    assert done.state == "failed" and done.error is not None and "--setup-only" in done.error


async def test_the_gate_is_asked_again_where_what_serves_cannot_answer(world: World) -> None:
    world.judge.failures = [EngineUnavailable("it restarts"), UpstreamTimeout("it hangs")]
    async with world.started() as jobs:
        assert (await world.ended((await jobs.submit(actor=None)).id)).state == "succeeded"
        world.judge.failures = [EngineUnavailable("it restarts") for _ in range(3)]
        done = await world.ended((await jobs.submit(actor=None)).id)
    assert (done.state, done.error) == ("failed", "it restarts")


async def test_a_gate_that_the_end_of_the_service_cuts_off_judges_after_the_restart(world: World) -> None:
    world.judge.failures = [ShuttingDown("later")]
    async with world.started() as jobs:
        run = await jobs.submit(promote="if_passed", actor=None)
        await world.until(lambda: world.judge.judged)
        await asyncio.sleep(0.1)
        row = await jobs.get(run.id)
        assert row.state == "running" and row.adapter_hash is not None
    async with world.started():
        done = await world.ended(run.id)
    assert (done.state, len(world.lives(run.id)), len(world.judge.judged)) == ("succeeded", 1, 2)
    assert len(world.promoter.promoted) == 1


async def test_what_failed_its_gate_is_not_promoted(world: World) -> None:
    world.judge.verdict = "fail"
    async with world.started() as jobs:
        done = await world.ended((await jobs.submit(promote="if_passed", actor=None)).id)
    assert (done.state, done.gate and done.gate["verdict"]) == ("succeeded", "fail")
    assert world.promoter.promoted == []


async def test_a_promotion_that_fails_is_told(world: World) -> None:
    world.promoter.failure = NotPromotable("Its adapter was retired.")
    async with world.started() as jobs:
        done = await world.ended((await jobs.submit(promote="if_passed", actor=None)).id)
    assert done.state == "failed"
    assert done.error == "The version passed its gate, but it was not promoted: Its adapter was retired."


async def test_a_run_whose_data_was_erased_ends(world: World) -> None:
    async with world.started(world.another(command=command(steps=2000))) as jobs:
        run = await jobs.submit(promote="if_passed", actor=None)
        await world.until(lambda: world.count(run.id) > 2)
        await world.runs.update(run.id, retired_at=datetime.now(UTC), retired_reason="a person's data was erased")
        await jobs.cancel(run.id, actor=None)
        done = await world.ended(run.id)
    assert done.state in ("cancelled", "failed")
    assert world.judge.judged == []


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "The disk is full."),
        (OSError(errno.EACCES, "Permission denied", "/data/x"), "cannot be read or written"),
        (RuntimeError("a defect at /data/x"), "Something went wrong on our side."),
        (StorageUnavailable("The data folder cannot be written."), "The data folder cannot be written."),
    ],
)
async def test_a_disk_that_refuses(world: World, failure: Exception, words: str) -> None:
    world.builder.failure = failure
    async with world.started() as jobs:
        done = await world.ended((await jobs.submit(actor=None)).id)
        assert done.state == "failed" and done.error is not None
        assert words in done.error and "/data" not in done.error
        world.builder.failure = None
        assert (await world.ended((await jobs.submit(actor=None)).id)).state == "succeeded", "the queue goes on"


async def test_a_damaged_snapshot_and_a_changed_base_are_not_trained_on(world: World) -> None:
    made = await world.builder.build(SnapshotConfig(), actor=None)
    (world.folders.snapshot(made.id) / "train.jsonl").write_bytes(b"other rows\n")
    async with world.started() as jobs:
        done = await world.ended((await jobs.submit(snapshot_id=made.id, actor=None)).id)
        assert done.state == "failed" and done.error is not None and "damaged" in done.error
        assert world.lives(done.id) == []
        world.base.unlink()
        done = await world.ended((await jobs.submit(actor=None)).id)
        assert done.state == "failed"
        assert done.error is not None and str(world.base.parent) not in done.error


async def test_a_log_that_never_ends_stays_bounded(world: World) -> None:
    chatty = command(steps=20, step_s=0.05, say="x" * 1000, say_times=3000)
    async with world.started(world.another(command=chatty)) as jobs:
        run = await jobs.submit(actor=None)
        assert (await world.ended(run.id)).state == "succeeded"
    assert (world.folders.run(run.id) / "log.txt").stat().st_size < 1_200_000


async def test_the_database_comes_back(world: World) -> None:
    class Refusing:
        left = 2

        async def update(self, *args: object, **changes: object) -> object:
            if "adapter_hash" in changes and self.left:
                self.left -= 1
                raise StorageUnavailable("not now")
            return await world.runs.update(*args, **changes)  # type: ignore[arg-type]

    async with world.started(world.another(runs=Refusing())) as jobs:
        done = await world.ended((await jobs.submit(actor=None)).id)
    assert done.state == "succeeded"
