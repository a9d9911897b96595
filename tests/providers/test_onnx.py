"""The embedding engine with its real model: meaning in two languages, parity, prefixes, hostile texts and files, restarts."""

from __future__ import annotations

import asyncio
import json
import operator
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from app.core.errors import AprendizError, EngineUnavailable, InvalidRequest, ModelLoadFailed, UnknownModel
from app.core.types import EmbeddingRequest, ModelSpec
from app.providers.base import LoadedModel, ProviderContext
from app.providers.contract import verify
from app.providers.engine import Timings
from app.providers.onnx import OnnxProvider

Context = Callable[..., ProviderContext]


def near(one: Sequence[float], other: Sequence[float]) -> float:
    return float(sum(map(operator.mul, one, other)))


async def opened(context: ProviderContext, folder: Path | str) -> LoadedModel:
    timings = Timings(health_interval_s=0.1, backoff_first_s=0.05)
    return await OnnxProvider(context, timings=timings).open(ModelSpec("onnx", str(folder)), on_state=lambda _state: None)


@pytest.fixture
async def model(make_context: Context, embedder_folder: Path) -> AsyncIterator[LoadedModel]:
    found = await opened(make_context(), embedder_folder)
    yield found
    await found.aclose()


async def test_it_keeps_the_contract(make_context: Context, embedder_folder: Path) -> None:
    assert await verify(lambda: opened(make_context(), embedder_folder)) == []


async def test_meaning_in_two_languages_prefixes_and_bounds(model: LoadedModel) -> None:
    questions = ("How much protein should a woman eat?", "¿Cuánta proteína debe comer una mujer?")
    texts = ("Women need about 46 grams of protein a day.", "París es la capital de Francia.")
    [english, spanish] = (await model.embed(EmbeddingRequest(questions))).vectors
    [right, wrong] = (await model.embed(EmbeddingRequest(texts, kind="passage"))).vectors
    assert near(english, right) > near(english, wrong) + 0.05
    assert near(spanish, right) > near(spanish, wrong) + 0.05
    assert near(english, spanish) > 0.9
    [other] = (await model.embed(EmbeddingRequest(questions[:1], kind="passage"))).vectors
    assert 0.8 < near(english, other) < 0.9999  # the prefix is read
    hostile = ("\0", "🙂" * 3000, "x" * 1_000_000, "<s></s><mask>", "")
    found = await model.embed(EmbeddingRequest(hostile))
    assert all(abs(near(vector, vector) - 1) < 1e-4 for vector in found.vectors)
    assert found.prompt_tokens <= 512 * len(hostile)
    with pytest.raises(InvalidRequest):
        await model.embed(EmbeddingRequest(("a",), dimensions=100))


async def test_a_killed_worker_comes_back(model: LoadedModel) -> None:
    pid = model.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailable):
        await model.embed(EmbeddingRequest(("a",)))
    async with asyncio.timeout(30):
        while True:
            try:
                await model.embed(EmbeddingRequest(("a",)))
                break
            except EngineUnavailable:
                await asyncio.sleep(0.1)


async def test_a_missing_model_says_how_to_get_it(make_context: Context) -> None:
    with pytest.raises(UnknownModel, match="aprendiz models pull no-such-model"):
        await opened(make_context(), "no-such-model")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.onnx", b"not a model"),
        ("model.onnx", b""),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b'{"model": ' + b"[" * 50_000),
        ("embedder.json", b'{"pooling": "../x"}'),
        ("embedder.json", json.dumps({"max_tokens": 10**12}).encode()),
        ("embedder.json", b'{"unknown": 1}'),
    ],
)
async def test_hostile_files_end_in_words(
    make_context: Context, embedder_folder: Path, tmp_path: Path, file: str, content: bytes
) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in ("model.onnx", "tokenizer.json"):
        (folder / name).symlink_to(embedder_folder / name)
    (folder / file).unlink(missing_ok=True)
    (folder / file).write_bytes(content)
    with pytest.raises(ModelLoadFailed) as caught:
        await opened(make_context(), folder)
    assert str(tmp_path) not in caught.value.detail


async def test_a_model_that_wants_a_file_from_elsewhere_is_refused(
    make_context: Context, embedder_folder: Path, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    hidden = onnx.ModelProto.FromString((embedder_folder / "model.onnx").read_bytes())
    tensor = hidden.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(hidden.SerializeToString())
    shutil.copy(embedder_folder / "tokenizer.json", folder)
    with pytest.raises(AprendizError, match="not part of it"):
        await opened(make_context(), folder)
