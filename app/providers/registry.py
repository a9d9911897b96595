"""Which providers there are: ours by a table, strangers' by entry point, upstreams by configuration; usable are those that the
configuration allows.

An entry point in the group ``aprendiz.providers`` makes a provider known, ``providers.allowed`` makes it usable. Each entry
of ``providers.upstreams`` is a provider under its own name, of the class of its ``kind``, usable where that kind is allowed.
Nothing is imported before it is asked for. Neither a stranger nor an upstream can take the name of one of ours.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

from app.core.addresses import upstream_address
from app.core.errors import ConfigurationError, UnknownModel
from app.core.settings import VENDOR_URLS, Upstream
from app.providers.base import BaseLLMProvider, ProviderContext

GROUP = "aprendiz.providers"
BUILT_IN = {
    "echo": "app.providers.echo:EchoProvider",
    "llamacpp": "app.providers.llamacpp:LlamaCppProvider",
    "hf": "app.providers.huggingface:HuggingFaceProvider",
    "onnx": "app.providers.onnx:OnnxProvider",
}
"""Ours, so that a checkout works without being installed as a distribution."""
REMOTE = {
    "openai": "app.providers.openai:OpenAIProvider",
    "claude": "app.providers.claude:ClaudeProvider",
}
"""The kinds of upstreams: classes that also take the upstream's name and settings, one instance each."""

logger = logging.getLogger(__name__)


class ProviderRegistry:
    """Gives providers by name, one instance each.

    Args:
        context: goes to every provider.
        allowed: names and kinds that may be used (``providers.allowed``).

    Raises:
        ConfigurationError: an upstream has the name of another provider, or an address that is refused.
    """

    def __init__(self, context: ProviderContext, allowed: Sequence[str]) -> None:
        self._context = context
        self._allowed = tuple(allowed)
        self._loaders = _loaders()
        self._upstreams = dict(context.providers.upstreams)
        self._providers: dict[str, BaseLLMProvider] = {}
        for name, upstream in self._upstreams.items():
            if name in self._loaders:
                raise ConfigurationError(f"providers.upstreams.{name}: a provider of this name is there; take another name.")
            upstream_address(name, upstream)

    def names(self) -> list[str]:
        """Names that are both known and allowed; upstreams that lack the key they need are not among them."""
        local = [name for name in self._loaders if name in self._allowed]
        return sorted([*local, *(name for name, upstream in self._upstreams.items() if self._usable(upstream))])

    def get(self, name: str) -> BaseLLMProvider:
        """The provider called ``name``.

        Raises:
            UnknownModel: it is not known, not allowed, or not installed; the text says what to do.
            ConfigurationError: an installed plug-in does not fulfil the contract.
        """
        if name not in self._providers:
            self._providers[name] = self._build(name)
        return self._providers[name]

    def _build(self, name: str) -> BaseLLMProvider:
        shown = name[:64]
        available = ", ".join(self.names()) or "none"
        upstream = self._upstreams.get(name)
        kind = name if upstream is None else upstream.kind
        if upstream is None and name not in self._loaders:
            raise UnknownModel(f"There is no provider {shown!r} here; available: {available}.", field="provider")
        if kind not in self._allowed:
            raise UnknownModel(
                f"The provider {shown!r} is not allowed by the setting providers.allowed; available: {available}.",
                field="provider",
            )
        loader = self._loaders[name] if upstream is None else _loader(REMOTE[kind])
        try:
            candidate = loader()
        except (ImportError, AttributeError) as error:
            logger.warning("a provider cannot be imported", extra={"data": {"provider": name, "error": repr(error)}})
            how = f"pip install 'aprendiz[{name}]'" if name in BUILT_IN else "install the package that brings it completely"
            raise UnknownModel(f"The provider {shown!r} is not installed completely: {how}.", field="provider") from error
        if upstream is not None:
            return _remote(candidate, self._context, name, upstream)
        return check_provider(name, candidate)(self._context)

    def _usable(self, upstream: Upstream) -> bool:
        return upstream.kind in self._allowed and (upstream.api_key is not None or upstream.url != VENDOR_URLS[upstream.kind])


def _remote(
    candidate: Callable[[ProviderContext, str, Upstream], BaseLLMProvider],
    context: ProviderContext,
    name: str,
    upstream: Upstream,
) -> BaseLLMProvider:
    return candidate(context, name, upstream)


def check_provider(name: str, candidate: Any) -> type[BaseLLMProvider]:
    """``candidate`` if it has the shape of a provider called ``name``: what mypy cannot see, since it comes by entry point.

    Raises:
        ConfigurationError: it has not; the text says what is missing.
    """
    complaint = _complaint(name, candidate)
    if complaint is not None:
        raise ConfigurationError(f"The provider {name!r} does not fulfil the contract: {complaint}.")
    provider: type[BaseLLMProvider] = candidate
    return provider


def _complaint(name: str, candidate: Any) -> str | None:
    if not inspect.isclass(candidate) or not issubclass(candidate, BaseLLMProvider):
        return "its entry point must be a subclass of BaseLLMProvider"
    missing = sorted(getattr(candidate, "__abstractmethods__", ()))
    if missing:
        return f"it lacks {', '.join(missing)}"
    if getattr(candidate, "name", None) != name:
        return f"its attribute `name` must be {name!r}, as in the entry point"
    if not inspect.iscoroutinefunction(candidate.open):
        return "`open` must be `async def`"
    try:
        inspect.signature(candidate.open).bind(None, None, on_state=None)
    except TypeError:
        return "`open` must take (spec, *, on_state)"
    return None


def _loaders() -> dict[str, Callable[[], Any]]:
    loaders: dict[str, Callable[[], Any]] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.name in BUILT_IN or entry.name in REMOTE:
            if entry.value != BUILT_IN.get(entry.name):
                data = {"provider": entry.name, "value": entry.value}
                logger.warning("an entry point with the name of a built-in provider is ignored", extra={"data": data})
            continue
        loaders[entry.name] = entry.load
    for name, target in BUILT_IN.items():
        loaders[name] = _loader(target)
    return loaders


def _loader(target: str) -> Callable[[], Any]:
    module, _, attribute = target.partition(":")
    return lambda: getattr(importlib.import_module(module), attribute)
