"""What the providers of other people's models share: the connection that an upstream's settings ask for, and the parts of a
`LoadedModel` that need no process. No wire format, no retries, no fallback: those have files of their own.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import AsyncGenerator, Callable

from app.core.addresses import upstream_address
from app.core.errors import ModelLoadFailed, UnknownModel
from app.core.settings import VENDOR_URLS, Upstream
from app.core.types import EngineState, Event, GenerationRequest, ModelSpec, VersionInfo
from app.providers.base import BaseLLMProvider, Capabilities, EngineStatus, LoadedModel, ProviderContext, flat
from app.providers.versions import text_hash, version_info
from app.providers.wire import WireClient

_MAX_NAME = 256
_SLOW = 30.0
"""Tokens a second of a slow model."""
_USUAL_TOKENS = 2048
"""An answer has no more, as a rule, where nobody names a limit."""


def is_vendor(upstream: Upstream) -> bool:
    """Whether it is the vendor's own server, and no other that speaks its format."""
    return upstream.url == VENDOR_URLS[upstream.kind]


def is_inside(name: str, upstream: Upstream) -> bool:
    """Whether it is, or may be, within a private network. Raises ConfigurationError as `upstream_address` does."""
    return upstream.private or upstream_address(name, upstream).reach == "private"


def allows_private(name: str, upstream: Upstream) -> bool:
    """Whether a connection may lead to a private address: one written as such, or any where ``private`` says so.

    Raises ConfigurationError as `upstream_address` does.
    """
    return upstream.private or upstream_address(name, upstream).reach != "name"


def wire_client(name: str, upstream: Upstream) -> WireClient:
    """The client of an upstream that speaks the OpenAI format, with its key. Raises ConfigurationError for a bad address."""
    return WireClient(
        upstream_address(name, upstream).url,
        api_key=None if upstream.api_key is None else upstream.api_key.get_secret_value(),
        connect_timeout_s=upstream.connect_timeout_s,
        read_timeout_s=upstream.read_timeout_s,
        allow_private=allows_private(name, upstream),
    )


def whole_is_safe(upstream: Upstream, max_tokens: int | None) -> bool:
    """Whether an answer may be fetched in one piece: it comes after one silence, which must not look like a fault.

    Args:
        max_tokens: the longest answer, or None where nobody named a limit.
    """
    return (max_tokens or _USUAL_TOKENS) <= upstream.read_timeout_s * _SLOW


def remote_version(name: str, upstream: Upstream, model: str) -> VersionInfo:
    """The version of a remote model. Its weights are unknown here, so address and model name stand for them."""
    return version_info(
        name,
        model,
        base_hash=text_hash(f"{upstream_address(name, upstream).url}\n{model}"),
        template_hash=None,
        context_tokens=upstream.context_tokens,
        details={"kind": upstream.kind},
    )


def check_remote(spec: ModelSpec, upstream: Upstream) -> None:
    """Refuses what no upstream can open.

    Raises:
        UnknownModel: no name of a model.
        ModelLoadFailed: an adapter, or a vendor without a key.
    """
    model = spec.model
    if not model or len(model) > _MAX_NAME or not model.isascii() or not model.isprintable() or " " in model:
        raise UnknownModel("This is no name of a model: use up to 256 visible ASCII characters.", field="model")
    if spec.adapter is not None:
        raise ModelLoadFailed("An upstream takes no adapters of ours; load the model without one.")
    if is_vendor(upstream) and upstream.api_key is None:
        raise ModelLoadFailed(f"The upstream {spec.provider} has no key; set {upstream.key_name} in the environment.")


class RemoteProvider(BaseLLMProvider):
    """The models of one upstream.

    Args:
        context: as for every provider.
        name: the upstream's name; its models are ``NAME/MODEL``.
        upstream: its settings, key included.
    """

    def __init__(self, context: ProviderContext, name: str, upstream: Upstream) -> None:
        super().__init__(context)
        self._upstream_name = name
        self._upstream = upstream
        self._gate = asyncio.Semaphore(upstream.max_concurrency)

    async def open(self, spec: ModelSpec, *, on_state: Callable[[EngineState], None]) -> LoadedModel:
        """Ready at once: the upstream is asked nothing before the first request. Raises as `check_remote`."""
        check_remote(spec, self._upstream)
        model = self.model(remote_version(self._upstream_name, self._upstream, spec.model), on_state=on_state)
        on_state(EngineState.READY)
        return model

    @abc.abstractmethod
    def model(self, version: VersionInfo, *, on_state: Callable[[EngineState], None]) -> RemoteModel:
        """One model of the upstream, in its format."""


class RemoteModel(LoadedModel):
    """The parts of a remote model that are the same in every format: it is ready until it is closed.

    Args:
        gate: how many requests its upstream gets at once, over all of its models.
        on_state: hears of the close.
    """

    def __init__(
        self,
        version: VersionInfo,
        capabilities: Capabilities,
        *,
        gate: asyncio.Semaphore,
        on_state: Callable[[EngineState], None],
    ) -> None:
        self.version = version
        self.capabilities = capabilities
        self._gate = gate
        self._on_state = on_state
        self._closed = False

    def stream(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """See `LoadedModel.stream`."""
        return flat(self.batches(request))

    def status(self) -> EngineStatus:
        """See `LoadedModel.status`; there is no process of ours."""
        return EngineStatus(EngineState.STOPPED if self._closed else EngineState.READY, device="remote")

    async def aclose(self) -> None:
        """See `LoadedModel.aclose`."""
        if self._closed:
            return
        self._closed = True
        await self._disconnect()
        self._on_state(EngineState.STOPPED)

    async def _disconnect(self) -> None:
        """Cuts the connections; override it."""
        raise NotImplementedError
