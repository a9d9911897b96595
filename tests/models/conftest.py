"""A factory of houses that are closed at the end, engines and all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.models.doubles import House, ScriptedProvider

MakeHouse = Callable[..., Awaitable[House]]


@pytest.fixture
async def make_house() -> AsyncIterator[MakeHouse]:
    houses: list[House] = []

    async def make(*args: Any, **settings: Any) -> House:
        house = House(*args, **settings)
        houses.append(house)
        await house.manager.start()
        return house

    yield make
    for house in houses:
        await house.manager.aclose()
        if isinstance(house.provider, ScriptedProvider):
            assert house.provider.alive == [], "an engine outlived its manager"
