"""Tiny random models of each family, rows for them, and the same log-probabilities by transformers and PEFT."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import transformers

from app.training.config import TrainConfig
from app.training.worker.batch import Example, TokenRow

VOCABULARY = 300
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "llama-3-rotary": ("LlamaConfig", {"rope_parameters": _ROPE}),
    "mistral-window": ("MistralConfig", {"sliding_window": 7}),
    "qwen2-window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 4, "pad_token_id": 0}),
    "gemma2": ("Gemma2Config", {"head_dim": 16}),
    "gpt-neox": ("GPTNeoXConfig", {}),
}
OWN = [name for name in FAMILIES if name not in ("gemma2", "gpt-neox")]
"""Families that are computed without transformers."""


def make(folder: Path, family: str = "llama") -> Path:
    """A random model, its norms and biases away from one and zero; every call makes the same."""
    kind, changes = FAMILIES[family]
    config = getattr(transformers, kind)(**{**_SIZES, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = transformers.AutoModelForCausalLM.from_config(config).float()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or "bias" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return folder


def row(rng: random.Random, fresh: int, learnt: int, prefix: list[int]) -> TokenRow:
    tokens = prefix + [rng.randrange(VOCABULARY) for _ in range(fresh)]
    return TokenRow(tokens, [False] * (len(tokens) - learnt) + [True] * learnt)


def examples(seed: int = 1) -> list[Example]:
    """Rows that share a beginning, a row that is a beginning of others and learnt whole, one learnt in its middle."""
    rng = random.Random(seed)
    prefix = [rng.randrange(VOCABULARY) for _ in range(12)]
    middle = row(rng, 14, 0, [])
    return [
        Example((row(rng, 20, 9, prefix),), number=0),
        Example((TokenRow(prefix, [True] * 12),), number=1, weight=0.5, desirable=False),
        Example((row(rng, 3, 3, prefix),), number=2),
        Example((TokenRow(middle.tokens, [False] * 5 + [True] * 4 + [False] * 5),), number=3, desirable=False),
        Example((row(rng, 5, 4, prefix + prefix),), number=4),
        Example((row(rng, 9, 4, prefix + prefix),), number=5, weight=2.0),
    ]


def pairs(seed: int = 2, count: int = 3) -> list[Example]:
    rng = random.Random(seed)
    found = []
    for number in range(count):
        prompt = [rng.randrange(VOCABULARY) for _ in range(10 + number)]
        chosen, rejected = (row(rng, fresh, fresh, prompt) for fresh in (4 + number, 7))
        found.append(Example((chosen, rejected), number=number))
    return found


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({"rank": 4, "alpha": 8, "dtype": "float32", **changes})


def stir(policy: Any, seed: int = 3) -> None:
    """Moves the B matrices away from zero, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in policy.trainable().items():
            if "lora_B" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)


def oracle(folder: Path, tuning: str, trainable: dict[str, Any]) -> Any:
    """The same model by transformers, with the same adapter by PEFT."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    if tuning == "full":
        return model
    targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trainable})
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    loaded = set_peft_model_state_dict(model, {name: tensor.clone() for name, tensor in trainable.items()})
    assert not loaded.unexpected_keys
    return model


def plain_logprobs(model: Any, rows: list[Example]) -> Any:
    """Each label's log-probability, one sequence at a time."""
    found = []
    for example in rows:
        for each in example.rows:
            logprobs = model(input_ids=torch.tensor([list(each.tokens)])).logits[0].float().log_softmax(-1)
            found += [logprobs[at - 1, each.tokens[at]] for at in range(1, len(each.tokens)) if each.learn[at]]
    return torch.stack(found)


def named_gradients(policy: Any) -> dict[str, Any]:
    """Gradients by the names of `trainable`."""
    (flat,) = policy.parameters() if len(policy.parameters()) == 1 else (None,)
    if flat is None:
        return dict(zip(policy.trainable(), [each.grad for each in policy.parameters()], strict=True))
    start = flat.data_ptr()
    found = {}
    for name, view in policy.trainable().items():
        at = (view.data_ptr() - start) // 4
        found[name] = flat.grad[at : at + view.numel()].view(view.shape)
    return found
