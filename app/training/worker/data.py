"""The rows of a snapshot as examples for one method: read within bounds, rendered to tokens, ordered by the seed.

Not a place for judgement about feedback: what a row weighs, and whether it is there at all, the snapshot decided. Rows of other
kinds than the method reads are passed over, rows that are too long or that the template does not take are left out and
counted by reason. What is no row at all ends the run: such a file was not written by us.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.core.files import hash_file
from app.training.config import TrainConfig
from app.training.worker.batch import Example
from app.training.worker.job import TrainingFailed
from app.training.worker.order import permutation
from app.training.worker.rehearsal import Rehearsed
from app.training.worker.rows import ANSWERS, problems, rows_of
from app.training.worker.template import RowRefused, TrainingFormat

TOO_LONG = "too long"


@dataclass(frozen=True, slots=True)
class Data:
    """What a run trains on. ``left_out``: rows by reason; ``other``: rows of kinds that the method does not read.

    ``sha256``: of the file; a run that is resumed must find the same.
    """

    examples: tuple[Example, ...]
    left_out: Mapping[str, int]
    other: int
    sha256: str
    rehearsed: Rehearsed = field(default_factory=Rehearsed)

    @property
    def desirable_balance(self) -> float:
        """Weight of the good answers with which good and bad ones count alike in sum."""
        good = math.fsum(each.weight for each in self.examples if each.desirable)
        bad = math.fsum(each.weight for each in self.examples if not each.desirable)
        return bad / good


def read_data(path: Path, config: TrainConfig, format: TrainingFormat, *, most_tokens: int) -> Data:
    """Reads ``train.jsonl``.

    Args:
        most_tokens: longest sequence; the smaller of the configuration's and the model's.

    Raises:
        TrainingFailed: the file is missing or no snapshot of ours, or nothing is left to train on.
    """
    reader = _Reader(config.method, format, most_tokens)
    for number, row in enumerate(rows_of(path), start=1):
        reader.add(row, number)
    reader.check()
    return Data(tuple(reader.examples), dict(reader.left_out), reader.other, hash_file(path))


@dataclass(slots=True)
class _Reader:
    method: str
    format: TrainingFormat
    most_tokens: int
    examples: list[Example] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    other: int = 0

    def add(self, row: dict[str, Any], number: int) -> None:
        fields = self._check(row, number)
        if fields is None:
            self.other += 1
            return
        weight = float(row.get("weight", 1.0))
        if weight == 0:
            self.left_out["without weight"] += 1
            return
        try:
            rendered = tuple(self.format.render(row["prompt"], row[name][0], row.get("tools") or ()) for name in fields)
        except RowRefused as refused:
            self.left_out[refused.reason] += 1
            return
        if any(len(each.tokens) > self.most_tokens for each in rendered):
            self.left_out[TOO_LONG] += 1
        elif len(rendered) == 2 and rendered[0].tokens == rendered[1].tokens:
            self.left_out["both answers are the same"] += 1
        else:
            good = bool(row.get("label", True))
            self.examples.append(Example(rendered, weight=weight, desirable=good, number=len(self.examples)))

    def _check(self, row: dict[str, Any], number: int) -> tuple[str, ...] | None:
        """The fields with the answers that this method learns from, or None for a row that it does not read."""
        kind = row.get("kind")
        if not isinstance(kind, str) or kind not in ANSWERS:
            raise TrainingFailed(f"Row {number} of the snapshot: kind must be sft, dpo or kto.")
        for problem in problems(row, kind):
            raise TrainingFailed(f"Row {number} of the snapshot: {problem}")
        if kind == self.method:
            return ANSWERS[kind]
        return ("completion", "original") if self.method == "dpo" and kind == "sft" and row.get("original") else None

    def check(self) -> None:
        if not self.examples:
            reason = f" {sum(self.left_out.values())} were left out ({', '.join(self.left_out)})." if self.left_out else ""
            raise TrainingFailed(f"The snapshot has no rows that the method {self.method} can train on.{reason}")
        if self.method == "kto" and len({each.desirable for each in self.examples}) == 1:
            raise TrainingFailed("The method kto needs good answers and bad ones; the snapshot has only one of the two.")


class Order:
    """Which examples each optimizer step takes: a fresh permutation in each epoch, from the seed alone.

    Args:
        count: examples. batch: of one step; an epoch's last step has what is left. epochs: may be a fraction.
    """

    def __init__(self, count: int, *, batch: int, epochs: float, seed: int) -> None:
        self._count = count
        self._batch = batch
        self._seed = seed
        self._per_epoch = math.ceil(count / batch)
        self.steps = max(1, math.ceil(self._per_epoch * epochs - 1e-9))
        self._epoch = (-1, [0])

    def step(self, number: int) -> list[int]:
        """The numbers of the examples of one step, counted from 0."""
        epoch, at = divmod(number, self._per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, permutation(self._count, f"{self._seed} {epoch}"))
        return self._epoch[1][at * self._batch : (at + 1) * self._batch]
