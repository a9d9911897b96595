"""A tiny random Llama as a GGUF file, and random adapters for it as a training run leaves them. Needs the extra hf."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.core.files import hash_file
from tests.providers.hf_tiny import TEMPLATE, make_model, make_tokenizer

MODULES = {
    "self_attn.q_proj": (48, 48),
    "self_attn.k_proj": (16, 48),
    "self_attn.v_proj": (16, 48),
    "self_attn.o_proj": (48, 48),
    "mlp.gate_proj": (96, 48),
    "mlp.up_proj": (96, 48),
    "mlp.down_proj": (48, 96),
}
"""(rows, columns) of the linear layers of `hf_tiny.make_model`."""
LAYERS = 3
VOCABULARY = 400


def write_base(path: Path, *, seed: int = 3) -> Path:
    """`hf_tiny.make_model` in float32 for llama.cpp."""
    import gguf

    model, tokenizer = make_model(seed=seed), make_tokenizer()
    writer = gguf.GGUFWriter(str(path), arch="llama")
    writer.add_context_length(1024)
    writer.add_embedding_length(48)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(96)
    writer.add_head_count(6)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    _write_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, tensor in model.state_dict().items():
        array = tensor.float().numpy()
        for part, heads in (("q_proj", 6), ("k_proj", 2)):
            if name.endswith(f"{part}.weight"):
                array = array.reshape(heads, 2, array.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tokenizer(writer: Any, tokenizer: Any) -> None:
    inner = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(inner["vocab"].items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    trained = len(tokens)
    tokens += [f"<|unused_{number}|>" for number in range(trained, VOCABULARY)]
    control = {0, 1, 2, *range(trained, VOCABULARY)}
    writer.add_token_types([3 if number in control else 1 for number in range(VOCABULARY)])
    writer.add_token_list(tokens)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in inner["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def matrices(*, seed: int, rank: int = 4, strength: float = 0.3) -> dict[str, Any]:
    """Random LoRA matrices under PEFT's names, as numpy arrays."""
    import numpy as np

    dice = np.random.default_rng(seed)
    found = {}
    for layer in range(LAYERS):
        for module, (rows, columns) in MODULES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            found[f"{name}.lora_A.weight"] = dice.normal(size=(rank, columns)).astype(np.float32)
            found[f"{name}.lora_B.weight"] = (strength * dice.normal(size=(rows, rank))).astype(np.float32)
    return found


def write_peft(folder: Path, *, seed: int = 1, rank: int = 4, tensors: Mapping[str, Any] | None = None, **config: Any) -> Path:
    """PEFT's two files. ``tensors``: instead of random ones; ``config``: fields of ``adapter_config.json``."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear", "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    save_file(dict(tensors) if tensors is not None else matrices(seed=seed, rank=rank), folder / "adapter_model.safetensors")
    return folder


def write_adapter(adapters: Path, name: str, base: Path, *, seed: int = 1, **more: Any) -> Path:
    """A finished adapter below ``adapters``, with its GGUF file and manifest."""
    from app.training.worker.adapter_gguf import write_gguf_adapter

    folder = write_peft(adapters / name, seed=seed, **more)
    write_gguf_adapter(folder, base, folder / "adapter.gguf")
    return seal(folder, base_hash=hash_file(base))


def seal(folder: Path, *, base_hash: str) -> Path:
    """Writes the manifest over whatever lies in ``folder``: what is checked by hash alone passes then."""
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir()) if path.name != "manifest.json"}
    manifest = {
        "name": folder.name,
        "base_hash": base_hash,
        "method": "sft",
        "files": files,
        "created_at": datetime.now(UTC).isoformat(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
