"""Aprendiz behind Aprendiz: our own ``/v1`` as an upstream of the provider ``openai``, alone and in a whole service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from pydantic import SecretStr

from app.core.errors import ContextOverflow, InvalidRequest, UnknownModel, UpstreamRefused
from app.core.settings import Upstream
from app.core.types import GenerationRequest, Message, ModelSpec, Sampling, fold
from app.providers.base import LoadedModel, ProviderContext
from app.providers.contract import ask, verify
from app.providers.openai import OpenAIProvider
from tests.conftest import Account, Serve, Service, make_settings, running
from tests.vendors.openai_server import OpenAIServer

MakeContext = Callable[..., ProviderContext]
CONTEXT = 512


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the echo model."""
    with running(make_settings(tmp_path_factory.mktemp("far"), model={"context_tokens": CONTEXT})) as service:
        yield service


@pytest.fixture
def key(far: Service) -> str:
    """An API key of a user there."""
    return key_of(far, far.user())


def key_of(service: Service, account: Account) -> str:
    with service.client(account) as client:
        made = client.post("/auth/keys", json={"name": "upstream", "scopes": ["predict", "read"]})
    assert made.status_code == 201, made.text
    found: str = made.json()["key"]
    return found


async def opened(context: ProviderContext, url: str, key: str, model: str = "default") -> LoadedModel:
    upstream = Upstream(base_url=url, context_tokens=CONTEXT).model_copy(update={"api_key": SecretStr(key)})
    return await OpenAIProvider(context, "far", upstream).open(ModelSpec("far", model), on_state=lambda state: None)


@pytest.fixture
async def model(make_context: MakeContext, far: Service, key: str) -> AsyncIterator[LoadedModel]:
    loaded = await opened(make_context(), far.url, key)
    yield loaded
    await loaded.aclose()


async def test_it_keeps_the_contract(make_context: MakeContext, far: Service, key: str) -> None:
    assert await verify(lambda: opened(make_context(), far.url, key)) == []


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"const": 1}}}}}


@pytest.mark.parametrize("whole", [False, True])
async def test_the_two_ways_of_an_answer_are_one(model: LoadedModel, whole: bool) -> None:
    asked = GenerationRequest((Message("user", "one two three"),), sampling=Sampling(max_tokens=2), whole=whole)
    answer = await fold(model.stream(asked))
    assert (answer.text, answer.finish_reason, answer.usage.completion_tokens) == ("one two", "length", 2)


async def test_refusals_keep_their_class(make_context: MakeContext, model: LoadedModel, far: Service, key: str) -> None:
    with pytest.raises(ContextOverflow):
        await fold(model.stream(ask("word " * CONTEXT)))
    with pytest.raises(InvalidRequest) as caught:
        await fold(model.stream(ask("x", temperature=-1.0)))
    assert caught.value.field == "temperature"
    for name, presented, kind in (("nothing/here", key, UnknownModel), ("default", "apr_wrong", UpstreamRefused)):
        other = await opened(make_context(), far.url, presented, name)
        with pytest.raises(kind):
            await fold(other.stream(ask()))
        await other.aclose()


async def test_a_whole_service_in_front(far: Service, key: str, serve: Serve) -> None:
    """Caller, near service, far service: text, stream, tools, schema, and the far one's refusal, each once through both."""
    upstream = {"base_url": far.url, "api_key": key, "context_tokens": CONTEXT, "models": ["*"]}
    near = serve(providers={"upstreams": {"far": upstream}}, model={"provider": "far", "model": "default"})
    account = near.user()

    def work() -> None:
        with near.client(account) as client:
            chat = {"model": "far/default", "messages": [{"role": "user", "content": "one two"}]}
            whole = client.post("/v1/chat/completions", json=chat)
            assert whole.status_code == 200, whole.text
            assert whole.json()["choices"][0]["message"]["content"] == "one two"
            assert whole.json()["usage"]["completion_tokens"] == 2
            streamed = client.post("/v1/chat/completions", json={**chat, "stream": True}).text
            assert "one" in streamed
            assert streamed.rstrip().endswith("data: [DONE]")
            form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": {"a": 1}}}}
            formed = client.post("/v1/chat/completions", json={**chat, "response_format": form})
            assert formed.json()["choices"][0]["message"]["content"].replace(" ", "") == '{"a":1}'
            called = client.post("/v1/chat/completions", json={**chat, "tools": [TOOL], "tool_choice": "required"}).json()
            (call,) = called["choices"][0]["message"]["tool_calls"]
            assert (call["function"]["name"], called["choices"][0]["finish_reason"]) == ("f", "tool_calls")
            refused = client.post("/v1/chat/completions", json={**chat, "model": "far/nothing"})
            assert refused.status_code == 404, refused.text
            assert near.predict(account, "three")["text"] == "three"

    await asyncio.to_thread(work)


async def test_no_page_shows_the_key_of_an_upstream(serve: Serve) -> None:
    """A vendor that repeats our key in its refusal; then everything that a caller and an admin can see."""
    secret = "sk-quokka-1123581321"
    async with OpenAIServer(key="another") as vendor:
        upstream = {"base_url": vendor.url, "api_key": secret, "models": ["*"]}
        near = serve(providers={"upstreams": {"far": upstream}}, model={"provider": "far", "model": "m"})

        def work() -> list[str]:
            admin = near.admin()
            with near.client(admin) as client:
                chat = {"model": "far/m", "messages": [{"role": "user", "content": "x"}]}
                seen = [client.post("/v1/chat/completions", json=chat), client.post("/predict", json={"prompt": "x"})]
                seen.append(client.post("/v1/chat/completions", json={**chat, "stream": True}))
                assert [answer.status_code for answer in seen] == [502, 502, 502], [answer.text for answer in seen]
                paths = ("/model", "/model/versions", "/v1/models", "/health/ready", "/metrics", "/openapi.json")
                seen += [client.get(path) for path in paths]
            return [f"{answer.headers} {answer.text}" for answer in seen]

        shown = await asyncio.to_thread(work)
        assert secret in vendor.received[-1].headers["authorization"]
        assert not [text for text in shown if secret in text or "quokka" in text]
