"""Rows to rehearse (`app.training.rehearsal`): each optimizer step takes some beside the feedback, and adds their loss.

They have a loss of their own, whatever the method: the mean negative log-likelihood of what the base said. Where an answer was
cut, its end is not learnt, for the base had not ended there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.core.files import hash_file
from app.training.worker.batch import Batch, Example, TokenRow
from app.training.worker.job import TrainingFailed
from app.training.worker.losses import Loss, sft, sft_total
from app.training.worker.order import permutation
from app.training.worker.rows import rows_of
from app.training.worker.template import RowRefused, TrainingFormat

_FIRST: Final = 1 << 40
"""Number of the first rehearsed example: `Batch.numbers` tells both kinds apart."""
_OF_FEEDBACK: Final = 2
"""One rehearsed row for so many rows of feedback."""


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """The rows. ``sha256``: of their file."""

    examples: tuple[Example, ...] = ()
    sha256: str = ""

    def step(self, number: int, *, batch: int, seed: int) -> list[Example]:
        """Those of one optimizer step: the same for the same number and seed; over many steps, each as often as the others."""
        size = len(self.examples)
        count = min(-(-batch // _OF_FEEDBACK), size)
        places = [divmod(at, size) for at in range(number * count, (number + 1) * count)]
        orders = {lap: permutation(size, f"{seed} {lap}") for lap, _ in places}
        return [self.examples[orders[lap][place]] for lap, place in places]


def read_rehearsal(path: Path, format: TrainingFormat, *, most_tokens: int) -> Rehearsed:
    """Reads the rows; what is too long or does not fit the template is left out.

    Raises:
        TrainingFailed: it is no file of ours.
    """
    found: list[Example] = []
    for number, row in enumerate(rows_of(path), start=1):
        try:
            rendered = format.render(row["prompt"], row["completion"][0])
        except RowRefused:
            continue
        except (KeyError, IndexError, TypeError) as error:
            raise TrainingFailed(f"Row {number} of what is rehearsed cannot be read.") from error
        if row.get("cut"):
            rendered = _without_end(rendered)
        if len(rendered.tokens) <= most_tokens and any(rendered.learn[1:]):
            found.append(Example((rendered,), number=_FIRST + len(found)))
    return Rehearsed(tuple(found), hash_file(path))


def with_rehearsal(loss: Loss, rehearsed: Sequence[Example], weight: float) -> Loss:
    """``loss`` for batches of feedback, ``weight`` times the likelihood for those of ``rehearsed``, all of one step."""
    if not rehearsed:
        return loss
    likelihood = sft(sft_total(rehearsed) / weight)

    def both(batch: Batch, logprobs: Any) -> tuple[Any, dict[str, float]]:
        return (likelihood if batch.numbers[0] >= _FIRST else loss)(batch, logprobs)

    return both


def _without_end(row: TokenRow) -> TokenRow:
    last = max(at for at, learnt in enumerate(row.learn) if learnt)
    return TokenRow(row.tokens[:last], row.learn[:last])
