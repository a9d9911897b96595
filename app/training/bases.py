"""What can be trained: the files of the base model that serves now. It checks and names them; it loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.core.errors import Conflict
from app.core.files import FileHashes
from app.core.types import ModelSpec
from app.providers.workers.hf_source import LoadRefused, base_hash, local

TRAINABLE: Final = frozenset({"llamacpp", "hf"})
_WHAT_TO_DO: Final = (
    "Let `default` mean a model whose weights are on this machine, for example with"
    " `aprendiz models load llamacpp/smollm2-135m-instruct`."
)


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """The weights of a base: a folder of safetensors or a GGUF file. ``sha256``: the ``base_hash`` of its versions."""

    path: Path
    is_gguf: bool
    sha256: str

    def to_job(self, cache: Path) -> Mapping[str, Any]:
        """The object ``base`` of ``job.json``."""
        return {"path": str(self.path.resolve()), "is_gguf": self.is_gguf, "sha256": self.sha256, "cache": str(cache.resolve())}


class Bases:
    """Finds the files behind a spec.

    Args:
        resolve: as `app.providers.base.ProviderContext.resolve`.
        hashes: those of files that ``resolve`` gave are known there already.
        cache: where hashes of folders are remembered.
        trainable: providers whose models are weights on this machine.
    """

    def __init__(
        self,
        resolve: Callable[[str], Path | None],
        hashes: FileHashes,
        *,
        cache: Path,
        trainable: frozenset[str] = TRAINABLE,
    ) -> None:
        self._resolve = resolve
        self._hashes = hashes
        self._cache = cache
        self._trainable = trainable

    def check(self, spec: ModelSpec) -> None:
        """Raises Conflict for a model that cannot be trained here, whatever its files are."""
        if spec.provider not in self._trainable:
            raise Conflict(f"The model {spec.public_name[:100]} cannot be trained: its weights are not here. {_WHAT_TO_DO}")

    def files(self, spec: ModelSpec) -> BaseFiles:
        """The files of the base of ``spec``, without any adapter. Reads them, so call it in a thread.

        Raises:
            Conflict: it cannot be trained; says what to do.
            ModelLoadFailed: its files differ from what they were when they came.
        """
        self.check(spec)
        path = self._resolve(spec.model)
        if path is None:
            raise Conflict(
                f"The weights of {spec.public_name[:100]} are in no folder of ours. Fetch them with `aprendiz models pull`,"
                " load the model under the name that it gets, and train then."
            )
        try:
            source = local(path)
            digest = self._hashes.sha256(source.path) if source.is_gguf else base_hash(source, self._cache)
        except LoadRefused as refused:
            raise Conflict(f"The model {spec.public_name[:100]} cannot be trained: {refused.detail}") from refused
        return BaseFiles(source.path, source.is_gguf, digest)
