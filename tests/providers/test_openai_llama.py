"""The provider ``openai`` against a real server that is not ours: llama-server with the bundled model, over HTTP with a key."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.core.errors import UpstreamRefused
from app.core.settings import Upstream
from app.core.types import ModelSpec, fold
from app.providers.base import LoadedModel, ProviderContext
from app.providers.contract import ask, verify
from app.providers.openai import OpenAIProvider
from app.providers.process import spawn
from app.providers.wire import WireClient

MakeContext = Callable[..., ProviderContext]
pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(300)]
KEY = "k" * 40
_WORKER = "app.providers.workers.llamacpp_worker"


@pytest.fixture
async def url(model_file: Path, runtime_dir: Path) -> AsyncIterator[str]:
    """llama-server on a loopback port."""
    config = {"model_path": str(model_file), "device": "cpu", "slots": 4, "context_tokens": 512, "threads": 2, "memory_mb": 0}
    log: deque[str] = deque(maxlen=100)
    worker = await spawn(
        "app.providers.workers.llamacpp_worker",
        {**config, "api_key": KEY, "host": "127.0.0.1"},
        cwd=runtime_dir,
        env={},
        log=log,
    )
    try:
        async with asyncio.timeout(60):
            facts = await worker.listening
            address = f"http://127.0.0.1:{int(facts['port'])}"
            client = WireClient(address, api_key=KEY)
            while not await client.healthy(timeout_s=1):  # noqa: ASYNC110 - only asking tells
                await asyncio.sleep(0.05)
            await client.aclose()
        yield address
    finally:
        await worker.stop(grace_s=2)


async def opened(context: ProviderContext, url: str, key: str = KEY) -> LoadedModel:
    upstream = Upstream(base_url=url, context_tokens=512, max_concurrency=4).model_copy(update={"api_key": SecretStr(key)})
    return await OpenAIProvider(context, "far", upstream).open(ModelSpec("far", "smollm2"), on_state=lambda state: None)


async def test_llama_server_as_an_upstream(make_context: MakeContext, url: str) -> None:
    assert await verify(lambda: opened(make_context(), url)) == []
    model = await opened(make_context(), url)
    for whole in (False, True):
        request = replace(ask("Say hi.", logprobs=2, top_k=20), whole=whole)
        answer = await fold(model.stream(request))
        assert len(answer.logprobs) == answer.usage.completion_tokens
    await model.aclose()
    stranger = await opened(make_context(), url, key="wrong-key")
    with pytest.raises(UpstreamRefused):
        await fold(stranger.stream(ask()))
    await stranger.aclose()
