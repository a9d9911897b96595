"""Which providers there are, and what is said of those that are not."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import ConfigurationError, UnknownModel
from app.core.settings import Upstream
from app.core.types import ModelSpec
from app.providers.base import BaseLLMProvider, LoadedModel, ProviderContext
from app.providers.claude import ClaudeProvider
from app.providers.echo import EchoProvider
from app.providers.llamacpp import LlamaCppProvider
from app.providers.openai import OpenAIProvider
from app.providers.registry import ProviderRegistry, check_provider

MakeContext = Callable[..., ProviderContext]


class Other(BaseLLMProvider):
    name = "other"

    async def open(self, spec: ModelSpec, *, on_state: Any) -> LoadedModel:
        raise NotImplementedError


def install(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str]) -> None:
    """Stands for installed distributions that bring these entry points."""
    points = [importlib.metadata.EntryPoint(name, value, "aprendiz.providers") for name, value in entries]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: points)


def test_one_instance_a_name(make_context: MakeContext) -> None:
    registry = ProviderRegistry(make_context(), ["echo", "llamacpp"])
    assert isinstance(registry.get("echo"), EchoProvider)
    assert registry.get("echo") is registry.get("echo")
    assert registry.names() == ["echo", "llamacpp"]


@pytest.mark.parametrize("name", ["openai", "claude", "", "../x", "x" * 10_000])
def test_unknown_name_says_what_there_is(make_context: MakeContext, name: str) -> None:
    with pytest.raises(UnknownModel, match="available: echo, llamacpp") as caught:
        ProviderRegistry(make_context(), ["llamacpp", "echo"]).get(name)
    assert len(caught.value.detail) < 300


def test_known_and_not_allowed(make_context: MakeContext) -> None:
    with pytest.raises(UnknownModel, match=r"not allowed by the setting providers\.allowed; available: echo"):
        ProviderRegistry(make_context(), ["echo"]).get("llamacpp")


def test_plug_in_by_entry_point(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ("other", f"{__name__}:Other"))
    registry = ProviderRegistry(make_context(), ["other", "echo"])
    assert isinstance(registry.get("other"), Other)
    with pytest.raises(UnknownModel, match="not allowed"):
        ProviderRegistry(make_context(), ["echo"]).get("other")


def test_stranger_cannot_take_a_name_of_ours(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ("echo", f"{__name__}:Other"))
    assert isinstance(ProviderRegistry(make_context(), ["echo"]).get("echo"), EchoProvider)


def test_missing_parts_say_what_to_install(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ("gone", "no_such_module:Provider"))
    with pytest.raises(UnknownModel, match="not installed completely"):
        ProviderRegistry(make_context(), ["gone"]).get("gone")


class NoName(Other):
    name = "x"


class Synchronous(BaseLLMProvider):
    name = "other"

    def open(self, spec: ModelSpec, *, on_state: Any) -> Any:
        raise NotImplementedError


class Positional(BaseLLMProvider):
    name = "other"

    async def open(self, spec: ModelSpec) -> LoadedModel:  # type: ignore[override]
        raise NotImplementedError


class Incomplete(BaseLLMProvider):
    name = "other"


@pytest.mark.parametrize("candidate", [object, "text", Other.open, NoName, Synchronous, Positional, Incomplete])
def test_what_is_no_provider_is_refused(candidate: Any) -> None:
    with pytest.raises(ConfigurationError, match="does not fulfil the contract"):
        check_provider("other", candidate)


def test_looking_up_providers_imports_no_engine(tmp_path: Path) -> None:
    program = (
        "import sys, json, app.providers.registry as r\n"
        "from app.providers import llamacpp, echo, contract, engine\n"
        "print(json.dumps([m for m in ('torch', 'transformers', 'gguf', 'xllamacpp') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


async def test_what_is_not_there_is_named_without_its_path(make_context: MakeContext) -> None:
    spec = ModelSpec("llamacpp", "/home/ana/secret/model.gguf")
    with pytest.raises(UnknownModel) as caught:
        await LlamaCppProvider(make_context()).open(spec, on_state=lambda state: None)
    assert "llamacpp/model.gguf" in caught.value.detail
    assert "ana" not in caught.value.detail


def with_upstreams(context: ProviderContext, **upstreams: Upstream) -> ProviderContext:
    providers = context.providers.model_copy(update={"upstreams": upstreams})
    return dataclasses.replace(context, providers=providers)


def test_an_upstream_is_a_provider_under_its_own_name(make_context: MakeContext) -> None:
    near = Upstream(base_url="http://127.0.0.1:1")
    registry = ProviderRegistry(with_upstreams(make_context(), near=near, far=near, openai=Upstream()), ["echo", "openai"])
    assert isinstance(registry.get("near"), OpenAIProvider)
    assert registry.get("near") is registry.get("near")
    assert registry.get("near") is not registry.get("far")
    assert registry.names() == ["echo", "far", "near"]  # openai has no key
    assert isinstance(registry.get("openai"), OpenAIProvider)


def test_each_kind_has_its_class(make_context: MakeContext) -> None:
    far = Upstream(kind="claude", base_url="http://127.0.0.1:1")
    assert isinstance(ProviderRegistry(with_upstreams(make_context(), far=far), ["claude"]).get("far"), ClaudeProvider)


def test_an_upstream_needs_its_kind_to_be_allowed(make_context: MakeContext) -> None:
    context = with_upstreams(make_context(), near=Upstream(base_url="http://127.0.0.1:1"))
    registry = ProviderRegistry(context, ["echo", "claude", "near"])
    assert registry.names() == ["echo"]
    with pytest.raises(UnknownModel, match="not allowed"):
        registry.get("near")


@pytest.mark.parametrize("name", ["echo", "hf", "llamacpp", "other"])
def test_an_upstream_takes_no_other_providers_name(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    install(monkeypatch, ("other", f"{__name__}:Other"))
    with pytest.raises(ConfigurationError, match="take another name"):
        ProviderRegistry(with_upstreams(make_context(), **{name: Upstream()}), ["openai"])


def test_a_stranger_takes_no_vendors_name(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ("openai", f"{__name__}:Other"))
    registry = ProviderRegistry(with_upstreams(make_context(), openai=Upstream()), ["openai"])
    assert isinstance(registry.get("openai"), OpenAIProvider)


def test_a_bad_address_stops_the_start(make_context: MakeContext) -> None:
    with pytest.raises(ConfigurationError, match=r"providers\.upstreams\.far\.base_url"):
        ProviderRegistry(with_upstreams(make_context(), far=Upstream(base_url="http://169.254.169.254")), [])
