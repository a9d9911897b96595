"""The Python package ``openai`` on completions, embeddings and models."""

from __future__ import annotations

import math
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.sdk.conftest import Site


@pytest.fixture
def client(site: Site) -> Iterator[OpenAI]:
    with OpenAI(base_url=site.v1, api_key=site.key, max_retries=0) as made:
        yield made


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(model="default", prompt="one two three", max_tokens=2, stop=["four"], echo=False)
    assert [(choice.text, choice.finish_reason) for choice in answer.choices] == [("one two", "length")]
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5
    several = client.completions.create(model="default", prompt=["a", "b"], n=2)
    assert [(choice.index, choice.text) for choice in several.choices] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]
    stream = client.completions.create(model="default", prompt="one two", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == "one two"
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model="default", prompt=[1, 2, 3])
    assert (raised.value.param or "").startswith("prompt")


def test_embeddings(client: OpenAI) -> None:
    texts = ["a red car", "a blue boat"]
    by_default = client.embeddings.create(model="default", input=texts)  # the package asks for base64 and decodes it
    as_numbers = client.embeddings.create(model="default", input=texts, encoding_format="float")
    assert [each.index for each in by_default.data] == [0, 1]
    for left, right in zip(by_default.data, as_numbers.data, strict=True):
        assert left.embedding == pytest.approx(right.embedding, abs=1e-6)
        assert math.hypot(*right.embedding) == pytest.approx(1, abs=1e-4)
    encoded: object = client.embeddings.create(model="default", input="a", encoding_format="base64").data[0].embedding
    assert isinstance(encoded, str)
    short = client.embeddings.create(model="default", input="a", dimensions=8)
    assert len(short.data[0].embedding) == 8
    assert short.usage.prompt_tokens == short.usage.total_tokens == 1
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(model="default", input=[1, 2, 3])
    assert (raised.value.param or "").startswith("input")


async def test_asynchronous(site: Site) -> None:
    async with AsyncOpenAI(base_url=site.v1, api_key=site.key, max_retries=0) as client:
        assert "default" in [model.id async for model in client.models.list()]
        vectors = await client.embeddings.create(model="default", input="a")
        assert vectors.data[0].embedding


def test_models(client: OpenAI) -> None:
    found = {model.id: model for model in client.models.list()}
    assert {"default", "thinks", "echo/echo"} <= found.keys()
    one = client.models.retrieve("echo/echo")
    assert (one.id, one.object, one.owned_by) == ("echo/echo", "model", "echo")
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("gpt-9")
    assert raised.value.code == "model_not_found"


def test_what_the_service_does_not_offer_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model="default", prompt="a cat")
    with pytest.raises(openai.NotFoundError):
        client.audio.speech.create(model="default", voice="alloy", input="hello")
