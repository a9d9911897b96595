"""Opens a policy: chooses device, number type and which of the two kinds computes the model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from transformers import AutoConfig

from app.providers.workers.hf_load import choose_device, choose_dtype
from app.providers.workers.hf_source import LoadRefused
from app.training.config import TrainConfig
from app.training.worker.generic import GenericPolicy
from app.training.worker.llama_policy import LlamaPolicy
from app.training.worker.policy import Policy
from app.training.worker.shape import read_shape

Device = Literal["auto", "cpu", "cuda", "mps"]


def open_policy(folder: Path, *, config: TrainConfig, device: Device = "auto", threads: int = 1) -> Policy:
    """Loads a transformers folder of safetensors for training.

    Args:
        folder: as `app.providers.workers.hf_load.converted` makes them, or any decoder's.
        config: tuning, rank, alpha, dropout, dtype and seed are read here.
        threads: how many CPU threads may compute.

    Raises:
        LoadRefused: no such device here, or not a decoder. Other exceptions: damaged files, or a kind unknown to transformers.
    """
    place = choose_device(device)
    number = choose_dtype(config.dtype, place)
    if number == torch.float16:
        number = torch.float32  # its gradients would need a scaled loss
    settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if settings.is_encoder_decoder:
        raise LoadRefused(f"Models of the type {settings.model_type} cannot be trained here.")
    shape = read_shape(settings)
    if shape is None:
        return GenericPolicy(folder, config=config, device=place, dtype=number, threads=threads)
    return LlamaPolicy(folder, settings, shape, config=config, device=place, dtype=number, threads=threads)
