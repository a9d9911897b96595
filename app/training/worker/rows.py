"""The rows of a snapshot as they stand in its file: read within bounds and checked, one by one. No torch, no tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from app.training.worker.job import TrainingFailed, parse_json

_MOST_ROWS = 1_000_000
_MOST_ROW_BYTES = 8 << 20
_MOST_MESSAGES = 1000
_MOST_WEIGHT = 1000.0
_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
ANSWERS: Final = {"sft": ("completion",), "dpo": ("chosen", "rejected"), "kto": ("completion",)}
"""The fields with the answers of a row, by its kind."""


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSONL file as objects. Raises TrainingFailed."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_MOST_ROW_BYTES + 1):
                number += 1
                if len(line) > _MOST_ROW_BYTES:
                    raise TrainingFailed(f"Row {number} of the snapshot is larger than {_MOST_ROW_BYTES >> 20} MiB.")
                if number > _MOST_ROWS:
                    raise TrainingFailed(f"The snapshot has more than {_MOST_ROWS} rows.")
                row = parse_json(line, f"Row {number} of the snapshot")
                if not isinstance(row, dict):
                    raise TrainingFailed(f"Row {number} of the snapshot is not an object.")
                yield row
    except OSError:
        raise TrainingFailed("The snapshot's rows are missing or cannot be read.") from None


def problems(row: Mapping[str, Any], kind: str) -> Iterator[str]:
    """What is wrong with a row, in words."""
    weight = row.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= _MOST_WEIGHT:
        yield f"weight must be a number from 0 to {_MOST_WEIGHT:g}."
    if kind == "kto" and not isinstance(row.get("label"), bool):
        yield "label must be true or false."
    prompt = row.get("prompt")
    if not isinstance(prompt, list) or not 1 <= len(prompt) <= _MOST_MESSAGES or not all(map(is_message, prompt)):
        yield "prompt must be a list of messages with a role and a text."
    for name in ANSWERS[kind] if row.get("original") is None else (*ANSWERS[kind], "original"):
        answer = row.get(name)
        if not isinstance(answer, list) or len(answer) != 1 or not is_message(answer[0]) or answer[0]["role"] != "assistant":
            yield f"{name} must be a list with one message of the assistant."
    tools = row.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(each, dict) for each in tools):
        yield "tools must be a list of objects."


def is_message(message: object) -> bool:
    """Whether this is a message of a row: a role, a text, maybe calls of functions."""
    if not isinstance(message, dict) or message.get("role") not in _ROLES or not isinstance(message.get("content"), str):
        return False
    calls = message.get("tool_calls") or []
    sound = isinstance(calls, list) and all(isinstance(each, dict) and isinstance(each.get("function"), dict) for each in calls)
    return sound and all(isinstance(message.get(name) or "", str) for name in ("name", "tool_call_id"))
