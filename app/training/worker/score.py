"""Log-probabilities of given answers, under the base and under adapters, on the side that trains: what the gate compares.

    python -m app.training.worker.score <request.json> <answer.json>

The request: ``{"base": as in job.json, "chat_template": str | null, "threads": int, "device": "auto", "dtype": "auto",
"max_tokens": int, "adapters": {name: PEFT folder}, "items": [{"prompt": [messages], "completion": [one message of the
assistant], "tools"?: [...]}]}``; all but base and items may be left out.

The answer: ``{"template_hash": str, "dtype": str, "scores": {"": [item, ...], name: [item, ...]}}``, where ``""`` is the base
itself and an item is ``{"logprob": sum, "tokens": [ids], "logprobs": [of each]}``, or ``{"error": why}``.
The tokens are those of the answer and of what ends its turn. The same request gives the same answer, bit by bit, with the same
number of threads. Exit 0, or 2 with the reason as the last line of stderr. It changes no file but the answer.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from app.core.files import sync
from app.training.config import TrainConfig
from app.training.worker.job import EXIT_DONE, EXIT_FAILED, BaseModelFiles, TrainingFailed, read_json
from app.training.worker.process import renew, words
from app.training.worker.rows import is_message

if TYPE_CHECKING:
    from app.training.worker.base import Base
    from app.training.worker.batch import Example
    from app.training.worker.policy import Policy

_MOST_BYTES: Final = 256 << 20
_MOST_ADAPTER_CONFIG: Final = 1 << 20
BASE: Final = ""
"""The name of the base among the scores."""

Text = Annotated[str, StringConstraints(max_length=4096)]


class Request(BaseModel):
    """What is asked; see the module."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    base: BaseModelFiles
    chat_template: Annotated[str, StringConstraints(max_length=256 << 10)] | None = None
    threads: int = Field(1, ge=1, le=1024)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_tokens: int = Field(4096, ge=16, le=131_072)
    adapters: dict[Text, Text] = Field(default_factory=dict, max_length=32)
    items: list[dict[str, Any]] = Field(max_length=10_000)


def main(argv: list[str] | None = None) -> int:
    """Answers one request; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 2:
        print("usage: python -m app.training.worker.score <request.json> <answer.json>", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    renew()
    try:
        found = score(read_request(Path(arguments[0])))
        target = Path(arguments[1])
        fresh = target.with_name(f".{target.name}.new")
        fresh.write_text(json.dumps(found, allow_nan=False))
        sync(fresh)
        fresh.replace(target)
    except Exception as error:  # noqa: BLE001 (the border of the process: the log has the trace, its last line the words)
        traceback.print_exc()
        print(words(error), file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    return EXIT_DONE


def read_request(path: Path) -> Request:
    """The request in a file. Raises TrainingFailed."""
    try:
        request = Request.model_validate(read_json(path, "The request", most_bytes=_MOST_BYTES))
    except ValidationError as error:
        names = sorted({str(each["loc"][0]) for each in error.errors() if each["loc"] and each["type"] != "extra_forbidden"})
        raise TrainingFailed(f"The request is not valid: {', '.join(names) or 'unknown fields, or no object'}.") from None
    for number, item in enumerate(request.items):
        prompt, completion = item.get("prompt"), item.get("completion")
        sound = isinstance(prompt, list) and prompt != [] and all(map(is_message, prompt))
        sound = sound and isinstance(completion, list) and len(completion) == 1 and is_message(completion[0])
        if not sound or not isinstance(item.get("tools") or [], list):
            raise TrainingFailed(f"The request is not valid: item {number} is no prompt and completion.")
    return request


def score(request: Request) -> dict[str, Any]:
    """The answer to a request; see the module.

    Raises:
        TrainingFailed, LoadRefused: with words for people.
    """
    import torch

    from app.training.worker.base import open_base
    from app.training.worker.group import Group

    torch.set_num_threads(request.threads)
    base = open_base(request.base, template=request.chat_template, device=request.device, dtype=request.dtype, group=Group())
    most = min(request.max_tokens, base.context or request.max_tokens)
    examples, errors = _examples(request.items, base, most)
    scores, dtype = {}, ""
    for name, config, folder in _adapters(request):
        policy = _open(request, base, config)
        try:
            dtype = str(policy.dtype).removeprefix("torch.")
            if folder is not None:
                _load(policy, folder)
            found = _scored(policy, examples, reference=folder is None)
        finally:
            policy.close()
        scores[name] = [{"error": errors[at]} if at in errors else found[at] for at in range(len(request.items))]
    return {"template_hash": base.format.template_hash, "dtype": dtype, "scores": scores}


def _adapters(request: Request) -> Iterator[tuple[str, TrainConfig, Path | None]]:
    """The base, then each adapter: its name, a configuration of its rank, its folder."""
    plain = TrainConfig(dtype=request.dtype)
    yield BASE, plain, None
    for name, text in request.adapters.items():
        folder = Path(text)
        found = read_json(folder / "adapter_config.json", "adapter_config.json", most_bytes=_MOST_ADAPTER_CONFIG)
        try:
            if found["peft_type"] != "LORA" or found.get("use_rslora") or found.get("use_dora"):
                raise TrainingFailed("This adapter is of a kind that the trainer does not make.")
            changes = {"rank": found["r"], "alpha": float(found["lora_alpha"])}
            config = TrainConfig.model_validate({**plain.model_dump(), **changes})
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingFailed("An adapter's adapter_config.json is not one of LoRA.") from error
        yield name, config, folder


def _open(request: Request, base: Base, config: TrainConfig) -> Policy:
    from app.training.worker.opening import open_policy

    return open_policy(base.folder, config=config, device=request.device, threads=request.threads)


def _load(policy: Policy, folder: Path) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    trainable = policy.trainable()
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise TrainingFailed("An adapter's weights are missing or damaged.") from error
    if {name: each.shape for name, each in tensors.items()} != {name: each.shape for name, each in trainable.items()}:
        raise TrainingFailed("An adapter does not fit the base model, or adapts other layers than the trainer does.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            trainable[name].copy_(tensor)


def _examples(items: Sequence[Mapping[str, Any]], base: Base, most: int) -> tuple[list[Example], dict[int, str]]:
    """What can be scored, by the number of its item, and why the rest cannot."""
    from app.training.worker.batch import Example
    from app.training.worker.template import RowRefused

    examples: list[Example] = []
    errors: dict[int, str] = {}
    for number, item in enumerate(items):
        try:
            row = base.format.render(item["prompt"], item["completion"][0], item.get("tools") or ())
        except RowRefused as refused:
            errors[number] = refused.reason
            continue
        if len(row.tokens) > most:
            errors[number] = "too long"
        else:
            examples.append(Example((row,), number=number))
    return examples, errors


def _scored(policy: Policy, examples: Sequence[Example], *, reference: bool) -> dict[int, dict[str, Any]]:
    import torch

    found: dict[int, dict[str, Any]] = {}
    for batch in policy.split(examples) if examples else []:
        with torch.no_grad():
            values = policy.logprobs(batch, reference=reference).float().cpu()
        counts = torch.bincount(batch.label_sequence, minlength=batch.sequences).tolist()
        pieces = zip(batch.numbers, values.split(counts), batch.labels.split(counts), strict=True)
        for number, logprobs, tokens in pieces:
            if not bool(torch.isfinite(logprobs).all()):
                raise TrainingFailed("The model gives log-probabilities that are no numbers. Try dtype float32.")
            total = float(logprobs.double().sum())
            found[number] = {"logprob": total, "tokens": tokens.tolist(), "logprobs": logprobs.tolist()}
    return found


if __name__ == "__main__":
    sys.exit(main())
