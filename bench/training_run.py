"""One contestant of `bench.training` in a process of its own: trains on the given rows and prints one line of JSON.

    python -m bench.training_run ours|trl|trl-fp32 sft|dpo|kto FOLDER ROWS.json THREADS

Every contestant starts from the same LoRA matrices and sees the same rows in the same order in the same batches, with the same
optimizer and a linear schedule. Seconds count from the first step's start to the last one's end, reference passes
included; loading the model does not count. Standard output holds the result only.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

RANK, ALPHA, RATE, BETA = 16, 32, 1e-3, 0.1
STARTED = time.monotonic()


def config(method: str) -> Any:
    from app.training.config import TrainConfig

    return TrainConfig.model_validate({"method": method, "rank": RANK, "alpha": ALPHA})


def ours(method: str, folder: Path, rows: dict[str, Any], threads: int) -> dict[str, Any]:
    import torch

    from app.training.worker import losses
    from app.training.worker.batch import Example, TokenRow
    from app.training.worker.opening import open_policy

    policy = open_policy(folder, config=config(method), device="cpu", threads=threads)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=0.0)
    examples = []
    for number, row in enumerate(rows["rows"]):
        tokens = tuple(
            TokenRow(row["prompt"] + answer, [False] * len(row["prompt"]) + [True] * len(answer)) for answer in row["answers"]
        )
        examples.append(Example(tokens, desirable=row["label"], number=number))
    begun, work, first, found = time.monotonic(), time.process_time(), 0.0, []
    if method != "sft":
        examples = policy.reference(examples)
    steps = len(examples) // rows["batch"]
    for step in range(steps):
        part = examples[step * rows["batch"] : (step + 1) * rows["batch"]]
        loss = {
            "sft": lambda part: losses.sft(losses.sft_total(part)),
            "dpo": lambda part: losses.dpo(losses.weight_total(part), beta=BETA),
            "kto": lambda part: losses.kto(losses.weight_total(part), beta=BETA),
        }[method](part)
        found.append(sum(result.loss for result in policy.accumulate(policy.split(part), loss, seed=step)))
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        optimizer.step()
        first = first or time.monotonic() - STARTED
    seconds, work = time.monotonic() - begun, time.process_time() - work
    return {"losses": found, "seconds": seconds, "cpu": work, "first": first}


def trl(method: str, folder: Path, rows: dict[str, Any], threads: int, *, exact: bool) -> dict[str, Any]:
    """TRL's trainer with its defaults; ``exact``: float32 without gradient checkpointing, for machines without bfloat16."""
    import torch
    import trl as library
    from datasets import Dataset
    from peft import LoraConfig, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from app.training.worker.weights import GROUPS

    torch.set_num_threads(threads)
    times: list[tuple[float, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append((time.monotonic(), time.process_time()))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append((time.monotonic(), time.process_time()))

    names = {"sft": "SFT", "dpo": "DPO", "kto": "KTO"}
    settings: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False} if exact else {}
    if method != "sft":
        settings["beta"] = BETA
    if method == "kto":
        settings["loss_type"] = "apo_zero_unpaired"
    arguments = getattr(library, f"{names[method]}Config")(
        output_dir="bench-training", use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1,
        per_device_train_batch_size=rows["batch"], num_train_epochs=1, learning_rate=RATE,
        train_sampling_strategy="sequential", max_length=4096, **settings,
    )  # fmt: skip
    targets = [name.rsplit(".", 1)[-1] for group in GROUPS.values() for name in group]
    trainer = getattr(library, f"{names[method]}Trainer")(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_list(_texts(method, rows)),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    set_peft_model_state_dict(trainer.model, _first_adapter(method, folder))
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    seconds, work = (last - first for first, last in zip(times[0], times[-1], strict=True))
    return {"losses": found, "seconds": seconds, "cpu": work, "first": times[1][0] - STARTED}


def _first_adapter(method: str, folder: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    from app.training.worker.shape import read_shape
    from app.training.worker.weights import LoraLayout, first_lora

    shape = read_shape(AutoConfig.from_pretrained(folder))
    assert shape is not None
    layout = LoraLayout(shape, RANK)
    return {name: each.clone() for name, each in layout.named(first_lora(layout, config(method).seed)).items()}


def _texts(method: str, rows: dict[str, Any]) -> list[dict[str, Any]]:
    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    made: list[dict[str, Any]] = []
    for row in rows["rows"]:
        answers = [turn("assistant", text) for text in row["texts"]]
        line: dict[str, Any] = {"prompt": turn("user", row["question"])}
        line |= {"chosen": answers[0], "rejected": answers[1]} if method == "dpo" else {"completion": answers[0]}
        made.append(line | ({"label": row["label"]} if method == "kto" else {}))
    return made


def main() -> None:
    who, method, folder, path, threads = sys.argv[1:]
    rows = json.loads(Path(path).read_text())
    place = Path(folder)
    if who == "ours":
        result = ours(method, place, rows, int(threads))
    else:
        result = trl(method, place, rows, int(threads), exact=who == "trl-fp32")
    result["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
