"""The provider ``onnx``: sentence embeddings by ONNX Runtime in a supervised child process. It makes vectors and nothing else.

A model is a folder with ``model.onnx``, ``tokenizer.json`` and, if it needs one, ``embedder.json`` (see
`app.providers.workers.onnx_model`). Nothing of it is read here but its hashes; the extra ``memory`` must be installed.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from app.core.errors import InvalidRequest, ModelLoadFailed, UnknownModel
from app.core.types import EmbeddingRequest, Embeddings, EngineState, Event, GenerationRequest, ModelSpec, VersionInfo
from app.providers.base import BaseLLMProvider, Capabilities, EngineStatus, LoadedModel, ProviderContext
from app.providers.embeddings import read_embeddings
from app.providers.engine import Engine, Timings
from app.providers.versions import text_hash, version_info

_WORKER = "app.providers.workers.onnx_worker"
_PACKAGES = ("onnx", "onnxruntime", "tokenizers", "numpy")
_NEEDED = ("model.onnx", "tokenizer.json")
_OPTIONAL = ("embedder.json", "model.onnx_data", "model.onnx.data")
_MIB = 1 << 20
_OWN_MB = 4096
"""Address space beside three images of the files: threads, the tokenizer, and what a batch needs."""


class OnnxProvider(BaseLLMProvider):
    """``onnx/NAME``: a pulled model, or a folder.

    Args:
        timings: when supervision acts; tests use shorter ones.
    """

    name = "onnx"

    def __init__(self, context: ProviderContext, *, timings: Timings | None = None) -> None:
        super().__init__(context)
        self._timings = timings

    async def open(self, spec: ModelSpec, *, on_state: Callable[[EngineState], None]) -> LoadedModel:
        """See `BaseLLMProvider.open`. ``spec.model``: a pulled model or a folder."""
        missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
        if missing:
            raise UnknownModel(
                f"The provider onnx is not installed ({', '.join(missing)} missing): pip install 'aprendiz[memory]'.",
                field="provider",
            )
        if spec.adapter is not None:
            raise ModelLoadFailed("A model of the provider onnx takes no adapter.")
        folder, files = await asyncio.to_thread(self._files, spec.model)
        settings = self.context.model
        engine = Engine(
            _WORKER,
            {"folder": str(folder), "files": files, "threads": settings.threads},
            label=spec.public_name,
            runtime_dir=self.context.runtime_dir,
            load_timeout_s=settings.load_timeout_s,
            read_timeout_s=settings.answer_timeout_s,
            memory_mb=self.context.providers.engine_memory_mb or _memory_mb(folder, files),
            on_state=on_state,
            timings=self._timings,
        )
        await engine.start()
        try:
            return OnnxModel(engine, _version(spec, files, engine.facts), slots=settings.slots, facts=engine.facts)
        except BaseException:  # a worker that reports something else: it must not stay behind
            await engine.aclose()
            raise

    def _files(self, name: str) -> tuple[Path, dict[str, str]]:
        """The model's folder, and the SHA-256 of its files; the worker reads no others. Blocks."""
        folder = self.context.resolve(name)
        if folder is None or not folder.is_dir() or not all((folder / each).is_file() for each in _NEEDED):
            raise UnknownModel(
                f"The embedding model {name[:100]!r} is not here: aprendiz models pull {name[:100]}. "
                "A folder of your own needs model.onnx and tokenizer.json.",
                field="model",
            )
        present = [*_NEEDED, *(each for each in _OPTIONAL if (folder / each).is_file())]
        try:
            return folder, {each: self.context.hashes.sha256(folder / each) for each in present}
        except OSError as error:
            raise ModelLoadFailed("The files of the embedding model cannot be read.") from error


class OnnxModel(LoadedModel):
    """An embedding model in its own process."""

    def __init__(self, engine: Engine, version: VersionInfo, *, slots: int, facts: Mapping[str, Any]) -> None:
        self._engine = engine
        self._dimensions = int(facts["dimensions"])
        self.version = version
        self.capabilities = Capabilities(
            slots=max(slots, 2),
            context_tokens=int(facts["max_tokens"]),
            streaming=False,
            embeddings=True,
            seed=False,
            chat=False,
        )

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """See `LoadedModel.embed`. A text longer than the model reads is cut there."""
        if request.dimensions not in (None, self._dimensions):
            raise InvalidRequest(f"This model's vectors have {self._dimensions} dimensions.", field="dimensions")
        body = {"input": list(request.inputs), "input_type": request.kind, "encoding_format": "base64"}
        answer = await self._engine.client().json("POST", "/v1/embeddings", body)
        return read_embeddings(answer, count=len(request.inputs), dimensions=self._dimensions)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Refuses: see `Capabilities.chat`."""
        _refuse()
        yield  # type: ignore[unreachable]  # makes it a generator, as the contract has it

    async def count_tokens(self, request: GenerationRequest) -> int:
        """Refuses: there is no prompt."""
        _refuse()

    def status(self) -> EngineStatus:
        """See `LoadedModel.status`."""
        return self._engine.status()

    async def aclose(self) -> None:
        """See `LoadedModel.aclose`."""
        await self._engine.aclose()


def _refuse() -> NoReturn:
    raise InvalidRequest("This model only makes embeddings; ask another one for answers.", field="model")


def _memory_mb(folder: Path, files: Mapping[str, str]) -> int:
    return 3 * sum((folder / name).stat().st_size for name in files) // _MIB + _OWN_MB


def _version(spec: ModelSpec, files: Mapping[str, str], facts: Mapping[str, Any]) -> VersionInfo:
    weights = {name: digest for name, digest in files.items() if name.startswith("model.")}
    others = {name: digest for name, digest in files.items() if name not in weights}
    return version_info(
        spec.provider,
        spec.model,
        base_hash=_hash_of(weights),
        template_hash=_hash_of(others),
        context_tokens=int(facts["max_tokens"]),
        details={"dimensions": facts["dimensions"]},
    )


def _hash_of(files: Mapping[str, str]) -> str:
    return text_hash("".join(f"{digest}  {name}\n" for name, digest in sorted(files.items())))
