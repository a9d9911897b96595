"""Which providers there are: ours by a table, strangers' by entry point; usable are those that the configuration allows.

An entry point in the group ``aprendiz.providers`` makes a provider known, ``providers.allowed`` makes it usable. Nothing is
imported before it is asked for. A stranger cannot take the name of one of ours.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

from app.core.errors import ConfigurationError, UnknownModel
from app.providers.base import BaseLLMProvider, ProviderContext

GROUP = "aprendiz.providers"
BUILT_IN = {
    "echo": "app.providers.echo:EchoProvider",
    "llamacpp": "app.providers.llamacpp:LlamaCppProvider",
    "hf": "app.providers.huggingface:HuggingFaceProvider",
}
"""Ours, so that a checkout works without being installed as a distribution."""

logger = logging.getLogger(__name__)


class ProviderRegistry:
    """Gives providers by name, one instance each.

    Args:
        context: goes to every provider.
        allowed: names that may be used (``providers.allowed``).
    """

    def __init__(self, context: ProviderContext, allowed: Sequence[str]) -> None:
        self._context = context
        self._allowed = tuple(allowed)
        self._loaders = _loaders()
        self._providers: dict[str, BaseLLMProvider] = {}

    def names(self) -> list[str]:
        """Names that are both known and allowed."""
        return sorted(name for name in self._loaders if name in self._allowed)

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
        if name not in self._loaders:
            raise UnknownModel(f"There is no provider {shown!r} here; available: {available}.", field="provider")
        if name not in self._allowed:
            raise UnknownModel(
                f"The provider {shown!r} is not allowed by the setting providers.allowed; available: {available}.",
                field="provider",
            )
        try:
            candidate = self._loaders[name]()
        except (ImportError, AttributeError) as error:
            logger.warning("a provider cannot be imported", extra={"data": {"provider": name, "error": repr(error)}})
            how = f"pip install 'aprendiz[{name}]'" if name in BUILT_IN else "install the package that brings it completely"
            raise UnknownModel(f"The provider {shown!r} is not installed completely: {how}.", field="provider") from error
        return check_provider(name, candidate)(self._context)


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
        if entry.name in BUILT_IN:
            if entry.value != BUILT_IN[entry.name]:
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
