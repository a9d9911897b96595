"""The served adapter is the trained one: llama.cpp against transformers with PEFT, the bundled model in 32 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.core.files import hash_file
from app.core.types import ModelSpec, fold
from app.models.adapters import Adapters
from app.providers.base import ProviderContext
from app.providers.contract import ask
from app.providers.llamacpp import LlamaCppProvider

pytest.importorskip("torch")
pytest.importorskip("peft")

from tests.providers.adapter_tiny import seal

pytestmark = [
    *(pytest.mark.slow, pytest.mark.model, pytest.mark.torch, pytest.mark.timeout(900)),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]

TOKENS = 16
PROMPTS = tuple(
    f"{question} {subject}?"
    for question in ("What is", "Tell me about", "How do I use", "¿Qué es", "Give an example of")
    for subject in ("the sea", "a sorting algorithm", "the moon", "bread")
)
NEAR = 0.05
"""llama.cpp's attention works in 16 bits: probabilities agree to two digits, not to the last."""


def widened(model_file: Path, target: Path) -> Path:
    """The same model in float32: what llama.cpp quantises besides is out of the way."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(model_file)
    writer = gguf.GGUFWriter(str(target), arch=reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        of_list = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], of_list)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def trained(folder: Path, base: Path, cache: Path) -> Any:
    """A random adapter, written as a run writes it; returns the model that PEFT makes of it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from app.providers.workers.hf_load import converted
    from app.training.worker.adapter_gguf import write_gguf_adapter

    torch.manual_seed(1)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch_folder = converted(base, cache, hash_file(base), torch.float32)
    model = AutoModelForCausalLM.from_pretrained(torch_folder, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=names, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    tuned.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    write_gguf_adapter(folder, base, folder / "adapter.gguf")
    seal(folder, base_hash=hash_file(base))
    return tuned.eval(), torch_folder


async def test_twenty_answers_and_their_probabilities_agree(
    make_context: Callable[..., ProviderContext], model_file: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoTokenizer

    base = widened(model_file, tmp_path / "base.gguf")
    model, torch_folder = trained(tmp_path / "adapters" / "random", base, tmp_path / "converted")
    tokenizer = AutoTokenizer.from_pretrained(torch_folder)
    provider = LlamaCppProvider(replace(make_context(), adapter=Adapters(tmp_path / "adapters")))
    served = await provider.open(ModelSpec("llamacpp", str(base), adapter="random"), on_state=lambda _: None)
    plain = await provider.open(ModelSpec("llamacpp", str(base)), on_state=lambda _: None)
    changed = 0
    try:
        for prompt in PROMPTS:
            request = ask(prompt, max_tokens=TOKENS, logprobs=0)
            answer = await fold(served.stream(request))
            changed += answer.text != (await fold(plain.stream(request))).text
            before = tokenizer(await served.prompt(request), return_tensors="pt").input_ids
            with torch.inference_mode():
                after = model.generate(input_ids=before, max_new_tokens=TOKENS, do_sample=False)
                logprobs = torch.log_softmax(model(after).logits[0], dim=-1)
            said = after[0, before.shape[1] :].tolist()
            assert answer.text == tokenizer.decode(said, skip_special_tokens=True), prompt
            wanted = [logprobs[before.shape[1] - 1 + place, token].item() for place, token in enumerate(said)]
            told = [entry["logprob"] for entry in answer.logprobs]
            assert told == pytest.approx(wanted[: len(told)], abs=NEAR), prompt
            scores = await served.score(request, answer.text)
            assert scores.tokens == pytest.approx(wanted[: len(scores.tokens)], abs=NEAR), prompt
    finally:
        await served.aclose()
        await plain.aclose()
    assert changed >= len(PROMPTS) // 2, "the adapter says something of its own"
