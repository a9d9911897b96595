"""Memory's embedder: spaces, unit vectors, and a cache that keeps users apart."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

import pytest

from app.core.errors import InvalidRequest, Unavailable
from app.core.settings import Memory
from app.core.types import EmbeddingRequest, Embeddings, VersionInfo
from app.memory.embedding import ModelEmbedder, VectorCache
from app.providers import echo_vectors


@dataclass
class Model:
    """Echo's vectors under a version that a test changes, and what was asked by whom."""

    version: str = "v1"
    asked: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)

    async def __call__(self, request: EmbeddingRequest, user_id: str) -> tuple[Embeddings, VersionInfo, str]:
        self.asked.append((user_id, request.kind, request.inputs))
        return echo_vectors.embed(request), VersionInfo(self.version, "echo", "echo", None, None, None), "echo/echo"


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def embedder(model: Model) -> ModelEmbedder:
    return ModelEmbedder(Memory(embedder="echo/echo"), model)


async def test_a_space_names_model_version_and_length(embedder: ModelEmbedder) -> None:
    assert await embedder.space() == "echo/echo@v1/64"
    [vector] = await embedder.embed(["a red car"], kind="query", user_id="u")
    numbers = struct.unpack("<64f", vector)
    assert math.hypot(*numbers) == pytest.approx(1, abs=1e-6)


async def test_known_texts_come_from_the_cache_of_the_same_user_only(embedder: ModelEmbedder, model: Model) -> None:
    first = await embedder.embed(["one", "two"], kind="passage", user_id="ana")
    before = len(model.asked)
    assert await embedder.embed(["two", "one"], kind="passage", user_id="ana") == first[::-1]
    assert len(model.asked) == before
    await embedder.embed(["one"], kind="passage", user_id="ben")
    await embedder.embed(["one"], kind="query", user_id="ana")
    assert [asked[:2] for asked in model.asked[before:]] == [("ben", "passage"), ("ana", "query")]
    embedder.forget("ana")
    await embedder.embed(["one"], kind="passage", user_id="ben")
    await embedder.embed(["one"], kind="passage", user_id="ana")
    assert [asked[0] for asked in model.asked[before + 2 :]] == ["ana"]


async def test_vectors_of_another_version_are_never_given_as_those_of_this(embedder: ModelEmbedder, model: Model) -> None:
    old = await embedder.space()
    model.version = "v2"
    with pytest.raises(Unavailable):
        await embedder.embed(["a"], kind="query", user_id="u")
    assert await embedder.space() == "echo/echo@v2/64"
    with pytest.raises(Unavailable):
        await embedder.embed(["a"], kind="query", user_id="u", space=old)
    assert await embedder.embed(["a"], kind="query", user_id="u")


async def test_calls_are_bounded_and_nothing_configured_is_said(embedder: ModelEmbedder, model: Model) -> None:
    assert len(await embedder.embed([f"text {n}" for n in range(100)], kind="passage", user_id="u")) == 100
    assert max(len(inputs) for _, _, inputs in model.asked) <= 32
    assert await embedder.embed(["", "a\0b"], kind="passage", user_id="u")
    none = ModelEmbedder(Memory(embedder=""), model)
    assert await none.space() is None
    with pytest.raises(InvalidRequest):
        await none.embed(["a"], kind="query", user_id="u")


def test_the_cache_is_bounded_in_bytes() -> None:
    cache = VectorCache(10_000)
    for number in range(100):
        cache.put(("u", "s", "query", bytes([number])), bytes(256))
    assert cache.get(("u", "s", "query", bytes([99]))) is not None
    assert cache.get(("u", "s", "query", bytes([0]))) is None
    cache.forget("u")
    assert cache.get(("u", "s", "query", bytes([99]))) is None
