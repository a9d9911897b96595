"""Log-probabilities on the trained side: the base's and an adapter's, equal to what transformers and PEFT compute."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from app.training.worker import score
from app.training.worker.job import TrainingFailed
from tests.training import tiny

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the extra `hf`"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_base(tmp_path_factory.mktemp("base") / "tiny")


def request_of(where: Path, folder: Path, **changes: Any) -> Path:
    job = json.loads((tiny.make_run(folder / "data", where, tiny.sft_rows(1)) / "job.json").read_text())
    items = [
        {"prompt": [tiny.user(f"Say {at}.")], "completion": [tiny.assistant(f"{word} and again {word}")]}
        for at, word in enumerate(tiny.WORDS)
    ]
    (folder / "request.json").write_text(json.dumps({"base": job["base"], "dtype": "float32", "items": items, **changes}))
    return folder / "request.json"


def test_scores_are_those_of_transformers(base: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    request = score.read_request(request_of(base, tmp_path))
    answer = score.score(request)
    assert answer == score.score(request) and answer["dtype"] == "float32"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    from app.training.worker.template import TrainingFormat
    from tests.providers.hf_tiny import make_tokenizer

    format = TrainingFormat(make_tokenizer(), frozenset({2}))
    assert answer["template_hash"] == format.template_hash
    for item, found in zip(request.items, answer["scores"][score.BASE], strict=True):
        row = format.render(item["prompt"], item["completion"][0])
        with torch.no_grad():
            logs = model(torch.tensor([row.tokens])).logits[0].log_softmax(-1)
        wanted = [float(logs[at - 1, row.tokens[at]]) for at in range(len(row.tokens)) if row.learn[at]]
        assert found["tokens"] == [token for token, learnt in zip(row.tokens, row.learn, strict=True) if learnt]
        assert found["logprobs"] == pytest.approx(wanted, abs=1e-4)
        assert found["logprob"] == pytest.approx(sum(wanted), abs=1e-3)


def test_an_adapter_is_scored_beside_its_base(base: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from app.training.config import TrainConfig
    from app.training.worker.opening import open_policy

    folder = tmp_path / "adapter"
    policy = open_policy(base, config=TrainConfig(method="sft", rank=4, alpha=8, dtype="float32"), device="cpu")
    policy.save(folder)
    policy.close()
    request = score.read_request(request_of(base, tmp_path, adapters={"new": str(folder)}))
    first = score.score(request)["scores"]
    assert [each["logprob"] for each in first["new"]] == pytest.approx(
        [each["logprob"] for each in first[score.BASE]], abs=1e-3
    )
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: tensor + 0.1 * torch.ones_like(tensor) for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )
    second = score.score(request)["scores"]
    assert second[score.BASE] == first[score.BASE] and second["new"] != first["new"]
    (folder / "adapter_model.safetensors").write_bytes(b"rot")
    with pytest.raises(TrainingFailed, match="damaged"):
        score.score(request)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": "many"}')
    with pytest.raises(TrainingFailed, match=r"adapter_config\.json"):
        score.score(request)


def test_what_cannot_be_scored_says_so(base: Path, tmp_path: Path) -> None:
    long = {"prompt": [tiny.user("x " * 600)], "completion": [tiny.assistant("y")]}
    request = score.read_request(request_of(base, tmp_path, items=[long, {**long, "prompt": [tiny.user("Hi")]}]))
    found = score.score(request)["scores"][score.BASE]
    assert found[0] == {"error": "too long"} and found[1]["logprob"] < 0


@pytest.mark.parametrize(
    "changes", [{"items": 3}, {"items": [{}]}, {"extra": 1}, {"threads": 0}, {"base": {}}, {"adapters": {"a": 1}}]
)
def test_a_bad_request_is_refused_in_words(base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(TrainingFailed, match="The request is not valid"):
        score.read_request(request_of(base, tmp_path, **changes))
