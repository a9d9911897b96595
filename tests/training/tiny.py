"""A run in miniature: a random Llama with a small tokenizer, a snapshot, ``job.json``. Made on the spot, learns in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from app.core.files import hash_file
from app.training.config import TrainConfig
from tests.providers.hf_tiny import TEMPLATE, make_tokenizer

Row = dict[str, Any]
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


def make_base(folder: Path, *, template: str | None = TEMPLATE, layers: int = 2, width: int = 64, context: int = 512) -> Path:
    """A model folder: random weights, a byte-level tokenizer of 400 tokens, a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer(template=template).save_pretrained(folder)
    return folder


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


def sft_rows(count: int = 12, **more: Any) -> list[Row]:
    """Corrections: how numbers are said."""
    return [
        {"kind": "sft", "prompt": [user(f"Say {at} again.")], "completion": [assistant(WORDS[at % 8])]} | _common(at) | more
        for at in range(count)
    ]


def dpo_rows(count: int = 12) -> list[Row]:
    """Preferences: short over long."""
    return [
        {"kind": "dpo", "prompt": [user(f"Say {at} again.")], "chosen": [assistant(WORDS[at % 8])]}
        | {"rejected": [assistant(f"The number is {WORDS[at % 8]}, señor.")], "rejected_source": "preference"}
        | _common(at)
        for at in range(count)
    ]


def kto_rows(count: int = 12) -> list[Row]:
    """Ratings: two thirds are good."""
    return [
        {"kind": "kto", "prompt": [user(f"Say {at} again.")], "completion": [assistant(WORDS[at % 8])], "label": at % 3 != 0}
        | _common(at)
        for at in range(count)
    ]


def _common(at: int) -> Row:
    return {"weight": 1.0, "group": f"{at:032x}", "position": at}


def make_run(data: Path, base: Path, rows: Iterable[Mapping[str, Any]], *, run_id: str = "run-1", **changes: Any) -> Path:
    """The folder of a run with its ``job.json``; ``changes`` go to the job, those named ``config`` to the configuration."""
    snapshot = data / "snapshots" / f"of-{run_id}"
    snapshot.mkdir(parents=True)
    (snapshot / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"method": "sft", "rank": 4, "alpha": 8, "batch": 4, "epochs": 4, "learning_rate": 1e-2, "seed": 1}
    config = TrainConfig.model_validate({**settings, "checkpoint_s": 0, **changes.pop("config", {})})
    assert config.method != "auto"
    weights = base if base.is_file() else base / "model.safetensors"
    job = {
        "run_id": run_id,
        "base": {"path": str(base), "is_gguf": base.is_file(), "sha256": hash_file(weights), "cache": str(data / "cache")},
        "snapshot": str(snapshot),
        "config": config.resolved(config.method).model_dump(),
        "adapters": str(data / "adapters"),
        "threads": 1,
        "chat_template": None,
        "device": "cpu",
        "nice": 0,
    }
    folder = data / "runs" / run_id
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({**job, **changes}))
    return folder


def start(folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    """The trainer as a child process, its words in ``log.txt``."""
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "app.training.trainer", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
        )


def finish(folder: Path, **environment: str) -> int:
    """Runs the trainer to its end; its exit status."""
    process = start(folder, **environment)
    try:
        return process.wait(100)
    finally:
        process.kill()
        process.wait()


def events(folder: Path, kind: str | None = None) -> list[Row]:
    """The events of a run, of one kind."""
    found = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [each for each in found if kind is None or each["event"] == kind]
