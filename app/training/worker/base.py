"""The base model of a run: its files checked, a GGUF converted once for all, tokenizer, template and limits read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from app.providers.workers.hf_load import choose_device, choose_dtype, converted, end_tokens
from app.providers.workers.hf_source import Source, base_hash, local
from app.training.worker.group import Group
from app.training.worker.job import BaseModelFiles, TrainingFailed
from app.training.worker.template import TrainingFormat

_CHANGED = "The base model's files are not those that this was ordered for."
_DAMAGED = "The base model cannot be loaded: its files are damaged, or of a kind that transformers does not know."


@dataclass(frozen=True, slots=True)
class Base:
    """A folder of safetensors, the format of rows, and the longest sequence that the model takes (None: it does not say)."""

    folder: Path
    format: TrainingFormat
    context: int | None


def open_base(files: BaseModelFiles, *, template: str | None, device: str, dtype: str, group: Group) -> Base:
    """Opens the base.

    Args:
        template: a chat template in place of the model's own.
        device, dtype: decide in which number type a GGUF is converted; see `app.providers.workers.hf_load`.
        group: of several processes the first converts, the others wait.

    Raises:
        LoadRefused, TrainingFailed: with words for people.
        OSError: disk full.
    """
    cache = Path(files.cache)
    source = local(Path(files.path))
    if source.is_gguf != files.is_gguf or base_hash(source, cache) != files.sha256:
        raise TrainingFailed(_CHANGED)
    try:
        if not group.first:
            group.wait()
        folder = _folder(source, files, device, dtype)
        if group.first:
            group.wait()
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        generation = None
        if (folder / "generation_config.json").is_file():
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
        ends = end_tokens(generation, config, tokenizer)
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise TrainingFailed(_DAMAGED) from error
    format = TrainingFormat(tokenizer, ends, template=template, wire=files.is_gguf)
    return Base(folder, format, int(context) if context else None)


def _folder(source: Source, files: BaseModelFiles, device: str, dtype: str) -> Path:
    if not source.is_gguf:
        return source.path
    number = choose_dtype(dtype, choose_device(device))
    return converted(source.path, Path(files.cache) / "converted", files.sha256, number)
