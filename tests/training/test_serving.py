"""How what serves leaves adapters that have to go. The models here are a table of aliases with the manager's contract."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from app.core.errors import Conflict
from app.core.records import AliasRecord
from app.core.types import ModelSpec, Principal
from app.training.serving import Serving

NOW = datetime(2026, 11, 23, tzinfo=UTC)


class Table:
    """Aliases, each with what it meant before, and the adapters that engines hold."""

    def __init__(self, **aliases: list[str | None]) -> None:
        self.aliases = aliases
        self.canary: str | None = None
        self.reloads = 0
        self.draining = 2

    def status(self) -> Any:
        held = [names[0] for names in self.aliases.values()]
        if self.draining:
            self.draining -= 1
            held.append("run")
        spec = SimpleNamespace(canary=SimpleNamespace(version="v-canary", spec=ModelSpec("p", "m", adapter=self.canary)))
        return SimpleNamespace(
            aliases=[SimpleNamespace(name=name, version=f"v-{names[0]}") for name, names in self.aliases.items()],
            engines=[SimpleNamespace(adapter=adapter) for adapter in held],
            canary=None if self.canary is None else spec,
        )

    def current(self, alias: str = "default") -> tuple[ModelSpec, str | None]:
        return ModelSpec("p", "m", adapter=self.aliases[alias][0]), None

    async def rollback(
        self, *, actor: Principal | None, note: Mapping[str, Any] | None = None, anywhere: bool = False
    ) -> AliasRecord:
        if len(self.aliases["default"]) == 1:
            raise Conflict("nothing before")
        self.aliases["default"].pop(0)
        return self._record("default")

    async def switch(self, spec: ModelSpec, *, actor: Principal | None, alias: str = "default") -> AliasRecord:
        self.aliases[alias].insert(0, spec.adapter)
        return self._record(alias)

    async def reload(self, *, actor: Principal | None) -> AliasRecord:
        self.reloads += 1
        return self._record("default")

    async def stop_canary(self, *, actor: Principal | None) -> Any:
        self.canary = None

    def _record(self, alias: str) -> AliasRecord:
        adapter = self.aliases[alias][0]
        return AliasRecord(alias, "p", "m", "auto", f"v-{adapter}", "p/m", NOW, adapter=adapter)


async def test_default_goes_back_to_the_newest_that_is_clean_and_others_to_the_base() -> None:
    table = Table(default=["run", "older run", "clean", None], team=["run"], quick=["clean"])
    table.canary = "older run"
    moved = await Serving(table, table).leave(["run", "older run"], actor=None)
    assert moved == {"default": "v-clean", "team": "v-None"}
    assert {name: held[0] for name, held in table.aliases.items()} == {"default": "clean", "team": None, "quick": "clean"}
    stopped: str | None = table.canary
    assert (stopped, table.reloads, table.draining) == (None, 1, 0)
    assert await Serving(table, table).leave(["run", "older run"], actor=None) == {}
    assert table.reloads == 1


async def test_where_nothing_before_is_clean_the_base_serves() -> None:
    table = Table(default=["run", "older run"])
    assert await Serving(table, table).leave(["run", "older run"], actor=None) == {"default": "v-None"}


async def test_what_is_clean_stays_and_all_uses_are_named() -> None:
    table = Table(default=["clean"], team=["clean"])
    table.draining, table.canary = 0, "other"
    assert await Serving(table, table).leave(["run"], actor=None) == {}
    assert (table.reloads, table.canary) == (0, "other")
    assert await Serving(table, table).uses() == {"v-clean": ("default", "team"), "v-canary": ("canary",)}
