"""The real embedder behind the door, beside a chat model; and our own service as somebody else's embedder."""

from __future__ import annotations

import base64
import struct
from pathlib import Path

import httpx
import pytest

from tests.conftest import Serve, Service


@pytest.fixture
def near(serve: Serve, embedder_folder: Path) -> Service:
    """One seat for chat models, and the embedder beside it."""
    return serve(memory={"embedder": f"onnx/{embedder_folder}"}, model={"max_loaded": 1})


def ask(client: httpx.Client, **body: object) -> httpx.Response:
    return client.post("/v1/embeddings", json={"input": ["¿Dónde está la llave?"], **body})


def test_the_embedder_is_asked_by_its_name_beside_the_chat_model(near: Service, embedder_folder: Path) -> None:
    name = f"onnx/{embedder_folder.name}"
    with near.client(near.user()) as client:
        assert name in [each["id"] for each in client.get("/v1/models").json()["data"]]
        query, passage = (ask(client, model=name, input_type=kind) for kind in ("query", "passage"))
        assert query.status_code == passage.status_code == 200, query.text
        one, other = (each.json()["data"][0]["embedding"] for each in (query, passage))
        assert len(one) == 384
        assert one != other
        coded = ask(client, model=name, encoding_format="base64").json()["data"][0]["embedding"]
        assert struct.unpack("<384f", base64.b64decode(coded)) == pytest.approx(one, abs=1e-6)
        assert ask(client, model=name, dimensions=10).status_code == 400
        assert ask(client, model=name, input_type="other").status_code == 400
        chat = client.post("/v1/chat/completions", json={"model": name, "messages": [{"role": "user", "content": "hi"}]})
        assert chat.status_code == 400
        assert "embeddings" in chat.json()["error"]["message"]
        assert client.post("/predict", json={"prompt": "hi"}).status_code == 200
    loaded = {engine.model for engine in near.services.models.status().engines if not engine.draining}
    assert len(loaded) == 2, loaded  # neither threw the other out


async def test_memory_asks_a_folder_as_the_settings_name_it(near: Service) -> None:
    asked = near.settings.memory.embedder
    with near.client(near.user()) as client:
        answer = ask(client, model=asked)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "onnx/multilingual-e5-small"  # no path of this machine


def test_default_is_the_embedder_where_the_default_model_makes_no_vectors(
    serve: Serve, embedder_folder: Path, model_file: Path
) -> None:
    chat = {"provider": "llamacpp", "model": str(model_file), "max_loaded": 1, "context_tokens": 256}
    service = serve(memory={"embedder": f"onnx/{embedder_folder}"}, model=chat)
    with service.client(service.user()) as client:
        answer = ask(client, model="default")
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"][0]["embedding"]) == 384


async def test_our_own_service_is_somebody_elses_embedder(serve: Serve) -> None:
    far = serve()
    with far.client(far.user()) as client:
        key = client.post("/auth/keys", json={"name": "vectors", "scopes": ["predict", "read"]}).json()["key"]
    upstream = {"kind": "openai", "base_url": far.url, "api_key": key}
    near = serve(memory={"embedder": "far/echo/echo"}, providers={"upstreams": {"far": upstream}})
    with near.client(near.user()) as client:
        answer = ask(client, model="far/echo/echo")
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"][0]["embedding"]) == 64
