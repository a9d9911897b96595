"""What the tests of the provider ``openai`` share: a model at a double of the vendor's API, and ways to ask it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from pydantic import SecretStr

from app.core.settings import Upstream
from app.core.types import (
    Answer,
    Event,
    GenerationRequest,
    Message,
    ModelSpec,
    Sampling,
    fold,
)
from app.providers.base import LoadedModel, ProviderContext
from app.providers.openai import OpenAIProvider

MakeContext = Callable[..., ProviderContext]

KEY = "sk-canary-3141592653"


def upstream_at(url: str, **fields: Any) -> Upstream:
    key = fields.pop("key", KEY)
    return Upstream(base_url=url, **fields).model_copy(update={"api_key": None if key is None else SecretStr(key)})


async def opened(context: ProviderContext, upstream: Upstream, model: str = "gpt-4o", name: str = "far") -> LoadedModel:
    return await OpenAIProvider(context, name, upstream).open(ModelSpec(name, model), on_state=lambda state: None)


def request(text: str = "Say hello", *, whole: bool = False, **sampling: Any) -> GenerationRequest:
    return GenerationRequest((Message("user", text),), sampling=Sampling(**sampling), whole=whole)


async def ask(model: LoadedModel, asked: GenerationRequest) -> Answer:
    async with contextlib.aclosing(model.stream(asked)) as events:
        return await fold(events)


async def events_of(model: LoadedModel, asked: GenerationRequest) -> list[Event]:
    async with contextlib.aclosing(model.batches(asked)) as batches:
        return [event async for batch in batches for event in batch]
