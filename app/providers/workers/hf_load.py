"""Loads a checked model with transformers: the device, the number type, the weights, and what ends an answer.

A GGUF file is dequantised once into a folder of safetensors under ``cache`` (20-40 s for a small model) and read from there
ever after. Never runs a model's own code: ``trust_remote_code`` is off, and only safetensors are read.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from app.providers.workers.hf_cache import batchable
from app.providers.workers.hf_source import LoadRefused, Source
from app.providers.workers.hf_text import Decode

_log = logging.getLogger(__name__)

_TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|return|>",
    "<|eom_id|>",
)
"""Tokens that end an answer wherever a vocabulary has them as special tokens: many models name only one of theirs."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model on its device. ``context_tokens``: what the model itself can take, or None where it does not say."""

    model: Any
    tokenizer: Any
    device: Any
    dtype: str
    context_tokens: int | None
    end_tokens: frozenset[int]

    @property
    def decode(self) -> Decode:
        """The tokenizer's decoding without special tokens."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        if fast is not None and not getattr(self.tokenizer, "clean_up_tokenization_spaces", False):
            return lambda ids: str(fast.decode(list(ids), skip_special_tokens=True))
        tokenizer = self.tokenizer
        return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def choose_device(wanted: str) -> Any:
    """The torch device for ``auto``, ``cuda``, ``mps`` or ``cpu``.

    Raises:
        LoadRefused: this machine, or this build of torch, has no such device.
    """
    has = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}
    if wanted == "auto":
        wanted = next(name for name, there in has.items() if there())
    if wanted not in has:
        raise LoadRefused("The device must be auto, cpu, cuda or mps.")
    if not has[wanted]():
        raise LoadRefused(f"There is no device {wanted} here, or torch was installed without it. Use device auto or cpu.")
    return torch.device(wanted)


def choose_dtype(wanted: str, device: Any) -> Any:
    """The torch number type by name; ``auto``: bfloat16 where the hardware computes with it, float32 elsewhere."""
    if wanted in ("float32", "bfloat16", "float16"):
        return getattr(torch, wanted)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and _cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


def _cpu_has_bf16() -> bool:
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def load(source: Source, *, device: str, dtype: str, cache: Path, digest: str) -> Loaded:
    """Loads the model and its tokenizer.

    Args:
        source: checked files.
        device, dtype: see `choose_device` and `choose_dtype`.
        cache: where converted GGUF files are kept.
        digest: SHA-256 of the weights; names the converted copy.

    Raises:
        LoadRefused: with words for the caller. Other exceptions mean damaged files, or a kind that transformers does not know.
    """
    place = choose_device(device)
    number = choose_dtype(dtype, place)
    folder = converted(source.path, cache, digest, number) if source.is_gguf else source.path
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if config.is_encoder_decoder or not batchable(config):
        raise LoadRefused(f"Models of the type {config.model_type} cannot be served by this engine.")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=number, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    model = model.to(place).eval()
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        device=place,
        dtype=str(number).removeprefix("torch."),
        context_tokens=int(limit) if limit else None,
        end_tokens=end_tokens(model.generation_config, config, tokenizer),
    )


def converted(gguf: Path, cache: Path, digest: str, dtype: Any) -> Path:
    """The folder with this GGUF file's weights as safetensors; made at the first call, whole or not at all."""
    target = cache / f"{digest[:32]}-{str(dtype).removeprefix('torch.')}"
    if (target / "config.json").is_file():
        return target
    _log.info("dequantising a GGUF file, once")
    cache.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
    try:
        _convert(gguf, fresh, dtype)
        fresh.rename(target)
    except OSError:
        if not (target / "config.json").is_file():  # another worker was faster
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def _convert(gguf: Path, folder: Path, dtype: Any) -> None:
    # Not `from_pretrained(gguf_file=...)`: it wants accelerate, and its model calls itself quantised and refuses to be saved.
    try:
        config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        _log.warning("no config from the GGUF file: %r", error)
        raise LoadRefused("transformers cannot read this GGUF file; the provider llamacpp may.") from None
    tensors = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=model, torch_dtype=dtype)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    if unexpected or any(part.is_meta for part in model.parameters()):
        _log.warning("tensors missing: %s; unexpected: %s", missing[:10], unexpected[:10])
        raise LoadRefused("The GGUF file does not hold the weights that its kind of model has.")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True).save_pretrained(folder)


def end_tokens(generation_config: Any, config: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: what the files name (``generation_config`` may be None) and what others end with."""
    ends: set[int] = set()
    generation = generation_config.eos_token_id if generation_config is not None else None
    for source in (generation, config.get_text_config().eos_token_id, tokenizer.eos_token_id):
        ends.update(source if isinstance(source, Sequence) else [] if source is None else [int(source)])
    special = set(tokenizer.all_special_ids)
    for token in _TURN_ENDS:
        number = tokenizer.get_added_vocab().get(token)
        if number is not None and (number in special or tokenizer.added_tokens_decoder[number].special):
            ends.add(number)
    return frozenset(ends)
