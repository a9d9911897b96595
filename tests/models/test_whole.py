"""The manager on the real parts: the real database under it, and (slow) the bundled model in real engines."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.core.metrics import Metrics
from app.core.records import UserRecord
from app.core.settings import Settings
from app.core.types import EngineState, ModelSpec, TextDelta
from app.db.audit import Audit
from app.db.database import Database
from app.db.predictions import Predictions
from app.db.users import Users
from app.db.versions import Aliases, Versions
from app.models.generation import Completed
from app.models.local import Resolver
from app.models.model_manager import ModelManager, ModelStores
from app.models.pull import pull
from app.providers.base import ProviderContext
from app.providers.registry import ProviderRegistry
from tests.models.doubles import ask, until, user

SMOL = ModelSpec("llamacpp", "smollm2-135m-instruct")


@pytest.fixture
async def database(sqlite: Database) -> Database:
    for name in ("ana", "root"):
        await Users(sqlite).create(UserRecord(name, name, "user", "hash", datetime.now(UTC)))
    return sqlite


def manager_of(database: Database, tmp_path: Path, models: Path | None = None, **model: object) -> ModelManager:
    settings = Settings.model_validate({"data_dir": tmp_path, "model": {"preload": False, "context_tokens": 512, **model}})
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    folder = models or tmp_path / "models"
    context = ProviderContext(settings.model, settings.providers, folder, runtime, Resolver(folder))
    stores = ModelStores(Predictions(database), Versions(database), Aliases(database), Audit(database))
    providers = ProviderRegistry(context, settings.providers.allowed)
    return ModelManager(settings.model, providers=providers, stores=stores, metrics=Metrics())


async def test_predictions_versions_aliases_and_audit_reach_the_database(database: Database, tmp_path: Path) -> None:
    manager = manager_of(database, tmp_path, provider="echo", model="echo")
    await manager.start()
    first = await manager.answer(ask("hello there"), user())
    assert await Predictions(database).get(first.prediction.id, user_id="ana") == first.prediction
    second = await manager.switch(ModelSpec("echo", "upper"), actor=user("root", "admin"))
    assert (await manager.answer(ask("hello"), user())).answer.text == "HELLO"
    back = await manager.rollback(actor=user("root", "admin"))
    assert back.version == first.prediction.version
    assert (await manager.promote(second.version, actor=None)).model == "upper"
    assert {version.model for version in await manager.versions()} == {"echo", "upper"}
    actions = [line.action for line in await Audit(database).list()]
    assert sorted(actions) == ["model.promote", "model.rollback", "model.switch"]
    await manager.aclose()
    again = manager_of(database, tmp_path, provider="echo", model="echo")
    await again.start()
    assert (await again.answer(ask("hello"), user())).answer.text == "HELLO"
    await again.aclose()


async def test_a_storm_of_streams_on_the_real_database(database: Database, tmp_path: Path) -> None:
    manager = manager_of(database, tmp_path, provider="echo", model="echo", queue=1000, queue_per_user=1000)
    await manager.start()

    async def one(index: int) -> str:
        async with await manager.generate(ask(f"a b c {index}"), user()) as generation:
            async for event in generation.events():
                if index % 4 == 0:
                    break
                if isinstance(event, Completed):
                    assert await Predictions(database).get(event.prediction.id) is not None, "the id works at once"
        return generation.id

    ids = await asyncio.gather(*(one(index) for index in range(80)))
    rows = [await Predictions(database).get(each) for each in ids]
    assert [row is not None and row.status for row in rows] == ["cancelled" if i % 4 == 0 else "ok" for i in range(80)]
    await manager.aclose()


@pytest.mark.slow
@pytest.mark.model
async def test_the_bundled_model_through_switches_reload_and_leaving(
    database: Database, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    models = tmp_path_factory.mktemp("models")
    pull(SMOL.model, models)
    manager = manager_of(database, tmp_path, models)
    await manager.start()
    stop = asyncio.Event()
    statuses: list[tuple[str, str]] = []

    async def stream(index: int) -> None:
        while not stop.is_set():
            async with await manager.generate(ask("Count to five.", max_tokens=24), user()) as generation:
                async for event in generation.events():
                    if isinstance(event, Completed):
                        assert event.prediction.version == generation.version
                        statuses.append((event.prediction.model, event.prediction.status))

    async with asyncio.timeout(110), asyncio.TaskGroup() as group:
        for index in range(3):
            group.create_task(stream(index))
        for target in (ModelSpec("echo", "upper"), SMOL, ModelSpec("echo", "reverse")):
            record = await manager.switch(target, actor=None)
            completed = await manager.answer(ask("Say hi.", max_tokens=8), user())
            assert completed.prediction.version == record.version
        await manager.switch(SMOL, actor=None)
        before = [each.engine.pid for each in manager.status().engines if not each.draining]
        await manager.reload(actor=None)
        after = [each.engine.pid for each in manager.status().engines if not each.draining]
        assert before != after
        stop.set()
    assert {status for _, status in statuses} == {"ok"}
    assert SMOL.model in {model for model, _ in statuses}
    async with await manager.generate(ask("Tell me a very long story.", max_tokens=400), user()) as generation:
        async for event in generation.events():
            if isinstance(event, TextDelta):
                break
    row = await Predictions(database).get(generation.id)
    assert row is not None and row.status == "cancelled" and row.prompt_tokens > 0
    await until(lambda: len(manager.status().engines) == 1)
    assert manager.status().aliases[0].state is EngineState.READY
    await manager.aclose()
