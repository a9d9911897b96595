"""A tiny Llama with random weights and a small byte-level tokenizer, made on the spot: it says nonsense, always the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXT = [
    "The quick brown fox jumps over the lazy dog. What is the capital of France? Say this again, and again.",
    "system user assistant Hello world, one two three four five six seven eight nine ten. ¿Qué tal, señor? word",
]


def make_tokenizer(*, template: str | None = TEMPLATE) -> Any:
    """A byte-level tokenizer of about 400 tokens; ``<|im_end|>`` ends an answer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(_TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = template
    return tokenizer


def make_model(*, kind: str = "llama", seed: int = 3, context: int = 1024) -> Any:
    """A model with random weights, in evaluation mode. ``kind``: llama (grouped heads), mistral (sliding window), gpt2."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": 400, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "max_position_embeddings": context, "initializer_range": 0.6,
    }  # fmt: skip
    if kind == "gpt2":
        sizes = {"vocab_size": 400, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": context, "initializer_range": 0.4}
    if kind == "mistral":
        sizes["sliding_window"] = 16
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **sizes, **ends)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def make_folder(folder: Path, *, kind: str = "llama", template: str | None = TEMPLATE, context: int = 1024) -> Path:
    """A model folder as people have it."""
    make_model(kind=kind, context=context).save_pretrained(folder)
    make_tokenizer(template=template).save_pretrained(folder)
    return folder
