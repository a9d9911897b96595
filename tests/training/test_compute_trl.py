"""Losses and gradients of one batch against TRL's own trainers, which are the oracle: SFT, DPO in three forms, KTO."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from app.training.worker import losses  # noqa: E402
from app.training.worker.batch import Example, TokenRow, pack  # noqa: E402
from app.training.worker.opening import open_policy  # noqa: E402
from tests.training import compute_models as tiny  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

_COMMON = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def policy(base: Path) -> Iterator[Any]:
    before = torch.get_num_threads()
    ours = open_policy(base, config=tiny.config(), device="cpu")
    tiny.stir(ours)
    yield ours
    ours.close()
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(number): number for number in range(tiny.VOCABULARY)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0", eos_token="1", pad_token="2")


def text(seed: int, count: int) -> str:
    rng = random.Random(seed)
    return " ".join(str(rng.randrange(3, tiny.VOCABULARY)) for _ in range(count))


def trainer(kind: str, base: Path, rows: list[dict[str, Any]], where: Path, policy: Any, **settings: Any) -> Any:
    """TRL's trainer over the same model, with the policy's adapter in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import trl
        from datasets import Dataset
        from peft import LoraConfig, set_peft_model_state_dict
        from transformers import AutoModelForCausalLM

        targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in policy.trainable()})
        made = getattr(trl, f"{kind}Trainer")(
            model=AutoModelForCausalLM.from_pretrained(base),
            args=getattr(trl, f"{kind}Config")(output_dir=str(where), **_COMMON, **settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
            peft_config=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"),
        )
        adapter = {name: tensor.clone() for name, tensor in policy.trainable().items()}
        assert not set_peft_model_state_dict(made.model, adapter).unexpected_keys
    return made


def agree(made: Any, inputs: dict[str, Any], policy: Any, examples: list[Example], loss: losses.Loss) -> None:
    """The same loss and the same gradients, ours in two micro-batches."""
    made.model.train()
    expected = made.compute_loss(made.model, inputs)
    expected.backward()
    half = len(examples) // 2
    results = policy.accumulate([pack(examples[:half]), pack(examples[half:])], loss)
    assert sum(result.loss for result in results) == pytest.approx(float(expected.detach()), abs=1e-5)
    mine = tiny.named_gradients(policy)
    theirs = {name.replace(".default", ""): each.grad for name, each in made.model.named_parameters() if each.requires_grad}
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert torch.allclose(mine[name], gradient, atol=1e-5), name
        assert float((mine[name] - gradient).norm()) < 1e-4 * float(gradient.norm()), name


def learnt(prompt: list[int], answer: list[int]) -> TokenRow:
    return TokenRow(prompt + answer, [False] * len(prompt) + [True] * len(answer))


def test_sft_is_trls(base: Path, policy: Any, tmp_path: Path) -> None:
    rows = [{"prompt": text(seed, 5 + seed), "completion": " " + text(10 + seed, 4 + 3 * seed)} for seed in range(4)]
    made = trainer("SFT", base, rows, tmp_path, policy)
    inputs = made.data_collator(list(made.train_dataset))
    examples = []
    for row in made.train_dataset:
        marks = [label != -100 for label in row["labels"]]
        assert not all(marks)  # the answer only
        examples.append(Example((TokenRow(row["input_ids"], marks),)))
    agree(made, inputs, policy, examples, losses.sft(losses.sft_total(examples)))


@pytest.mark.parametrize("form", ["plain", "robust", "rpo"])
def test_dpo_is_trls(form: str, base: Path, policy: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": text(seed, 6), "chosen": " " + text(10 + seed, 5), "rejected": " " + text(20 + seed, 4 + 2 * seed)}
        for seed in range(4)
    ]
    settings: dict[str, Any] = {
        "plain": {},
        "robust": {"loss_type": "robust", "label_smoothing": 0.2},
        "rpo": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    }[form]
    made = trainer("DPO", base, rows, tmp_path, policy, beta=0.3, **settings)
    inputs = made.data_collator(list(made.train_dataset))
    examples = policy.reference(
        [
            Example((learnt(row["prompt_ids"], row["chosen_ids"]), learnt(row["prompt_ids"], row["rejected_ids"])))
            for row in made.train_dataset
        ]
    )
    loss = losses.dpo(
        losses.weight_total(examples),
        beta=0.3,
        label_smoothing=settings.get("label_smoothing", 0.0),
        sft_weight=0.5 if form == "rpo" else 0.0,
        chosen_total=sum(sum(example.rows[0].learn) for example in examples),
    )
    agree(made, inputs, policy, examples, loss)
    statistics = policy.accumulate([pack(examples)], loss)[0].statistics
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert statistics[name] / 4 == pytest.approx(made._metrics["train"][name][-1], abs=1e-4)


def test_kto_is_trls_unpaired_apo(base: Path, policy: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": text(seed, 6), "completion": " " + text(10 + seed, 3 + 2 * seed), "label": seed != 2} for seed in range(4)
    ]
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.75}
    made = trainer("KTO", base, rows, tmp_path, policy, beta=0.3, loss_type="apo_zero_unpaired", **weights)
    inputs = made.data_collator(list(made.train_dataset))
    examples = policy.reference(
        [Example((learnt(row["prompt_ids"], row["completion_ids"]),), desirable=row["label"]) for row in made.train_dataset]
    )
    loss = losses.kto(losses.weight_total(examples), beta=0.3, **weights)
    agree(made, inputs, policy, examples, loss)
    statistics = policy.accumulate([pack(examples)], loss)[0].statistics
    for side, count in (("chosen", 3), ("rejected", 1)):
        assert statistics[f"count/{side}"] == count
        theirs = made._metrics["train"][f"rewards/{side}"][-1]
        assert statistics[f"rewards/{side}"] / count == pytest.approx(theirs, abs=1e-4)
