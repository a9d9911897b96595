"""Runs as jobs, with a real child process that counts instead of training."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.db.database import Database
from tests.training.jobs_world import ADMIN, VERSION, World, command


@pytest.fixture
async def world(sqlite: Database, tmp_path: Path) -> AsyncIterator[World]:
    found = World(sqlite, tmp_path)
    yield found
    await found.jobs.aclose()
    found.end_children()


async def test_a_run_goes_its_whole_way(world: World) -> None:
    async with world.started() as jobs:
        run = await jobs.submit(method="auto", promote="if_passed", actor=ADMIN)
        assert (run.state, run.phase, run.created_by) == ("queued", "waiting", ADMIN.user_id)
        done = await world.ended(run.id)
    assert (done.state, done.phase, done.error) == ("succeeded", "done", None)
    assert (done.method, done.config["method"], done.config["epochs"]) == ("sft", "sft", 6.0)
    assert done.snapshot_id is not None
    assert done.base["sha256"] and done.base["version"] == "b" * 16
    assert done.adapter_hash is not None
    assert (done.version, done.gate and done.gate["verdict"]) == (VERSION, "pass")
    assert world.promoter.promoted == [VERSION]
    assert done.progress["percent"] == 100
    assert done.progress["step"] == done.progress["steps"] == 20
    folder = world.folders.run(run.id)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "job.json").stat().st_mode & 0o777 == 0o600
    heard = [event async for event in jobs.events(run.id)]
    assert [event["phase"] for event in heard if event["event"] == "phase"] == [
        "snapshot", "prepare", "train", "export", "gate", "promote"
    ]  # fmt: skip
    again = [event async for event in jobs.events(run.id, after=heard[4]["id"])]
    assert again == heard[5:]
    assert [line.action for line in await world.audit.list()] == ["training.submit"]


async def test_one_after_the_other(sqlite: Database, tmp_path: Path) -> None:
    world = World(sqlite, tmp_path, command=command(steps=5, step_s=0.01))
    async with world.started() as jobs:
        ordered = [await jobs.submit(actor=None) for _ in range(3)]
        ended = [await world.ended(run.id) for run in ordered]
    for before, after in itertools.pairwise(ended):
        assert before.ended_at is not None and after.started_at is not None
        assert before.ended_at <= after.started_at
