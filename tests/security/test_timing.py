"""Whether time tells a known account from an unknown one. Statistics, so not in the default run."""

from __future__ import annotations

import statistics
import time

import pytest

from app.core.errors import Unauthenticated
from app.core.settings import Settings
from app.db.database import Database
from app.security.passwords import Argon2idHasher
from tests.security.world import World, settings_with

ROUNDS = 100


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_known_unknown_and_disabled_take_equally_long(settings: Settings, database: Database) -> None:
    world = World(settings_with(settings, rate_limits={"enabled": False}), database, hasher=Argon2idHasher())
    await world.user("known")
    await world.user("locked", disabled=True)
    taken: dict[str, list[float]] = {name: [] for name in ("known", "unknown", "locked", "not a name")}
    for _ in range(ROUNDS):
        for name, times in taken.items():
            began = time.perf_counter()
            with pytest.raises(Unauthenticated):
                await world.accounts.login(name, "wrong password here", kind="access", address="a")
            times.append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    print(medians)
    for name, median in medians.items():
        assert 0.95 <= median / medians["unknown"] <= 1.05, (name, medians)
    await world.aclose()
