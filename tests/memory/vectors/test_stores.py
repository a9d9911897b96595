"""Which store is made: by the setting, by what is installed, by the database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.core.errors import ConfigurationError, Unavailable
from app.core.settings import Memory, Settings
from app.db.database import open_database
from app.db.vectors import Vectors
from app.memory.vectors import stores
from app.memory.vectors.base import VectorStore
from app.memory.vectors.stores import make_store
from tests.db.conftest import postgres_settings
from tests.memory.vectors.world import World, axis, ids, partition


def made(settings: Settings, store: str = "auto") -> VectorStore:
    """The store by settings; nothing is opened."""
    settings = settings.model_copy(update={"memory": Memory(store=store)})
    database = open_database(settings)
    return make_store(settings, Vectors(database), database)


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        ("auto", "faiss"),
        ("faiss", "faiss"),
        ("chroma", "chroma"),
        ("http://127.0.0.1:8000", "chroma server"),
        ("https://chroma/", "chroma server"),
    ],
)
def test_the_setting_names_the_store(settings: Settings, chosen: str, name: str) -> None:
    assert made(settings, chosen).name == name


@pytest.mark.parametrize("chosen", ["http://169.254.169.254", "http://0.0.0.0:8000", "http://0177.0.0.1", "http://[fe80::1]"])
def test_addresses_where_no_server_of_ours_is_are_refused(settings: Settings, chosen: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^memory\.store: "):
        made(settings, chosen)


def test_pgvector_needs_postgresql(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match="PostgreSQL"):
        made(settings, "pgvector")


@pytest.mark.parametrize(
    ("chosen", "extra"), [("faiss", "aprendiz[memory]"), ("chroma", "aprendiz[chroma]"), ("http://a", "aprendiz[chroma]")]
)
def test_what_was_asked_for_and_is_not_installed_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, chosen: str, extra: str
) -> None:
    monkeypatch.setattr(stores, "_installed", lambda package: False)
    with pytest.raises(ConfigurationError) as caught:
        made(settings, chosen)
    assert extra in caught.value.detail


async def test_nobody_asked_so_the_service_starts_without(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_installed", lambda package: False)
    store = made(settings)
    await store.open()
    here = partition("somebody")
    with pytest.raises(Unavailable, match=r"aprendiz\[memory\]"):
        await store.search(here, axis(0), 3)
    await store.refresh(here)
    await store.forget("somebody")
    assert store.status()["state"] == "missing"
    await store.aclose()


@pytest.mark.postgres
@pytest.mark.parametrize("has_it", [True, False])
async def test_auto_takes_pgvector_where_the_server_has_it(
    cluster: Any, postgres_name: str, tmp_path: Path, has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = postgres_settings(cluster, postgres_name, tmp_path)
    database = open_database(settings)
    await database.open()
    try:
        world = World(database)
        store = make_store(settings, world.source, database)
        assert isinstance(store, stores.AutoStore)
        if not has_it:

            async def without() -> bool:
                return False

            monkeypatch.setattr(store._first, "available", without)
        await store.open()
        assert store.name == ("pgvector" if has_it else "faiss")
        here = partition(await world.owner(f"auto-{has_it}"))
        await world.put(here, [(f"one-{has_it}", axis(0))])
        assert ids(await store.search(here, axis(0), 1)) == [f"one-{has_it}"]
        await store.aclose()
    finally:
        await database.aclose()
