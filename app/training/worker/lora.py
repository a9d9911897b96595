"""The files of a LoRA adapter as PEFT reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from app.training.config import TrainConfig


def save_adapter(folder: Path, tensors: Mapping[str, Any], config: TrainConfig, targets: Sequence[str]) -> None:
    """Writes ``adapter_model.safetensors`` (float32) and ``adapter_config.json``; the folder is made where it is missing.

    Args:
        tensors: by PEFT's names (``base_model.model.….lora_A.weight``).
        targets: last parts of the names of the adapted layers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    save_file(ready, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    alpha = int(config.alpha) if float(config.alpha).is_integer() else config.alpha
    settings = {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": sorted(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
