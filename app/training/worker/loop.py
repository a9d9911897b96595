"""The training loop: optimizer steps from the first or from a checkpoint to the last, with events, a curve and checkpoints.

What a step does depends on its number, the examples and the weights alone: the order of the examples and the dropout come from
the seed and the step. So a run that was killed and resumed ends with the very same weights, as long as versions, machine and
number of threads stay the same. Not here: where the examples come from, and what is made of the trained weights.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from app.training.config import TrainConfig
from app.training.worker import losses
from app.training.worker.batch import Batch, Example
from app.training.worker.checkpoint import Checkpoint, Checkpoints
from app.training.worker.curve import Curve
from app.training.worker.data import Order
from app.training.worker.events import Events, read_events
from app.training.worker.group import Group, versions
from app.training.worker.job import Cancelled, TrainingFailed
from app.training.worker.losses import Loss
from app.training.worker.optimizer import Optimizer, learning_rate
from app.training.worker.policy import Policy, Result, reduce_gradients
from app.training.worker.rehearsal import Rehearsed, with_rehearsal
from app.training.worker.stop import Stop

_RATES: Final = 15
_CHECKPOINT_SHARE: Final = 20
"""Checkpoints take at most one part in so many of the time, whatever `checkpoint_s` says."""


@dataclass(slots=True)
class Progress:
    """How far a run is, over all its processes. ``tokens``: trained on; ``seconds``: of training."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss_first: float | None = None
    loss_last: float | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run is made of. ``fingerprint``: of all inputs; a checkpoint of other inputs is not gone on from."""

    folder: Path
    config: TrainConfig
    threads: int
    fingerprint: str
    desirable_balance: float


@dataclass(slots=True)
class Loop:
    """One run in this process. ``examples``: with their reference where the method wants one; ``rehearsed``: beside them."""

    setting: Setting
    policy: Policy
    examples: Sequence[Example]
    events: Events
    group: Group
    stop: Stop
    rehearsed: Rehearsed = field(default_factory=Rehearsed)
    progress: Progress = field(default_factory=Progress)
    _checkpoints: Checkpoints = field(init=False)
    _optimizer: Optimizer = field(init=False)
    _order: Order = field(init=False)
    _curve: Curve = field(init=False)
    _rates: deque[float] = field(init=False, default_factory=lambda: deque(maxlen=_RATES))
    _saved: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        config = self.setting.config
        self._checkpoints = Checkpoints(self.setting.folder / "checkpoints")
        self._optimizer = Optimizer(self.policy.parameters(), config)
        self._order = Order(len(self.examples), batch=config.batch, epochs=config.epochs or 1.0, seed=config.seed)
        self._curve = Curve(self.setting.folder / "loss.png", read_events(self.setting.folder / "events.jsonl"))

    @property
    def _rehearsal(self) -> float:
        return self.setting.config.rehearsal or 0.0

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self._order.steps

    def resume(self) -> bool:
        """Goes on from the newest whole checkpoint; False: there is none.

        Raises:
            TrainingFailed: it belongs to other inputs.
        """
        if self.group.first:
            self._checkpoints.clean()
        self.group.wait()
        found = self._checkpoints.newest(lambda step: self.events.write("note", detail="damaged checkpoint", step=step))
        self._curve.cut(0 if found is None else found.step)
        if found is not None:
            self._restore(found)
        self.group.wait()  # nobody removes a checkpoint that another still reads
        return found is not None

    def run(self) -> None:
        """All steps that are left; the last checkpoint holds the trained weights.

        Raises:
            Cancelled: SIGTERM came; a checkpoint is written.
            TrainingFailed: the loss is not a finite number, or the disk is full.
        """
        due = time.monotonic() + self.setting.config.checkpoint_s
        try:
            while self.progress.step < self.steps:
                self._step()
                self._check_stop()
                if time.monotonic() >= due:
                    taken = self.save()
                    due = time.monotonic() + max(self.setting.config.checkpoint_s, _CHECKPOINT_SHARE * taken)
        except Cancelled:
            self.save()
            raise
        self.save()
        if self.group.first:
            self._curve.draw()

    def save(self) -> float:
        """Writes a checkpoint, unless the newest one is of this step. Returns the seconds that it took."""
        began = time.monotonic()
        if not self.group.first or self._saved == self.progress.step:
            return 0.0
        facts = {
            **asdict(self.progress),
            "fingerprint": self.setting.fingerprint,
            "threads": self.setting.threads,
            "world": self.group.world,
            "versions": versions(),
        }
        self._checkpoints.save(self.progress.step, self._optimizer.tensors(), facts)
        self._saved = self.progress.step
        taken = time.monotonic() - began
        self.events.write("checkpoint", step=self.progress.step, seconds=round(taken, 3))
        return taken

    def _restore(self, found: Checkpoint) -> None:
        facts = dict(found.facts)
        if facts.get("fingerprint") != self.setting.fingerprint:
            raise TrainingFailed("The run's checkpoints belong to other rows, another base or another configuration.")
        try:
            self._optimizer.restore(found.tensors)
            self.progress = Progress(**{name: facts[name] for name in Progress.__slots__})
        except (ValueError, KeyError) as error:
            raise TrainingFailed("The run's newest checkpoint is not one of this trainer's; start a new run.") from error
        now = {"threads": self.setting.threads, "world": self.group.world, "versions": versions()}
        # With another sum order the result is as good, but not the same bit by bit.
        changed = {name: [facts.get(name), value] for name, value in now.items() if facts.get(name) != value}
        self._saved = found.step
        self.events.write("resumed", step=found.step, steps=self.steps, **({"changed": changed} if changed else {}))

    def _step(self) -> None:
        number, config, began = self.progress.step, self.setting.config, time.monotonic()
        examples = [self.examples[each] for each in self._order.step(number)]
        extra = self._extra(number, len(examples))
        results, rehearsed = self._accumulate(examples, extra, self._loss(examples, extra), number)
        total, statistics = self._together(results)
        beside = self.group.sum([math.fsum(each.loss for each in rehearsed)])[0]
        if not math.isfinite(total + beside):
            raise TrainingFailed(_DIVERGED)
        reduce_gradients(self.policy)
        rate = learning_rate(config, number, self.steps)
        norm = self._optimizer.step(rate)
        if not math.isfinite(norm):
            raise TrainingFailed(_DIVERGED)
        tokens = sum(each.tokens for each in (*examples, *extra))
        taken = time.monotonic() - began
        self._note(total, tokens, taken)
        event = self._event(rate, norm, taken, tokens)
        if rewards := _rewards(statistics, losses.weight_total(examples)):
            event["rewards"] = rewards
        if extra:
            event["rehearsal_loss"] = beside / self._rehearsal
        self.events.write("step", **event)
        if self.group.first:
            self._curve.add(event)

    def _extra(self, number: int, beside: int) -> list[Example]:
        """What is rehearsed in this step."""
        config = self.setting.config
        return self.rehearsed.step(number, batch=beside, seed=config.seed) if self._rehearsal else []

    def _accumulate(
        self, examples: Sequence[Example], extra: Sequence[Example], loss: Loss, number: int
    ) -> tuple[list[Result], list[Result]]:
        """The gradients of this process's share; results of the feedback and of what is rehearsed."""
        parts = [self.policy.split(mine) if (mine := self.group.share(each)) else [] for each in (examples, extra)]
        if not any(parts):  # a step with fewer examples than processes
            for parameter in self.policy.parameters():
                parameter.grad = None
            return [], []
        results = self.policy.accumulate([batch for part in parts for batch in part], loss, seed=number)
        return results[: len(parts[0])], results[len(parts[0]) :]

    def _together(self, results: Sequence[Result]) -> tuple[float, dict[str, float]]:
        """Loss and statistics of the whole step, from all micro-batches of all processes."""
        names = _STATISTICS[self.setting.config.method]
        mine = [math.fsum(each.loss for each in results)]
        mine += [math.fsum(each.statistics.get(name, 0.0) for each in results) for name in names]
        loss, *sums = self.group.sum(mine)
        return loss, dict(zip(names, sums, strict=True))

    def _loss(self, examples: Sequence[Example], extra: Sequence[Example]) -> Loss:
        """The loss of a step, divided by its whole weight. Breaks off between micro-batches where this process works alone."""
        config = self.setting.config
        loss = with_rehearsal(method_loss(config, examples, self.setting.desirable_balance), extra, self._rehearsal)
        if self.group.world > 1:
            return loss  # the others would wait for a sum that never comes

        def checked(batch: Batch, logprobs: Any) -> tuple[Any, dict[str, float]]:
            self.stop.check()
            return loss(batch, logprobs)

        return checked

    def _check_stop(self) -> None:
        if self.group.sum([float(self.stop.requested)])[0]:
            raise Cancelled

    def _note(self, loss: float, tokens: int, taken: float) -> None:
        progress = self.progress
        progress.step += 1
        progress.tokens += tokens
        progress.seconds += taken
        progress.loss_first = loss if progress.loss_first is None else progress.loss_first
        progress.loss_last = loss
        self._rates.append(tokens / max(taken, 1e-9))

    def _event(self, rate: float, norm: float, taken: float, tokens: int) -> dict[str, Any]:
        progress, speed = self.progress, median(self._rates)  # a pause (SIGSTOP) makes one rate wrong, not the median
        left = (self.steps - progress.step) * progress.tokens / progress.step
        return {
            "step": progress.step,
            "steps": self.steps,
            "loss": progress.loss_last,
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": tokens,
            "tokens_per_s": round(speed, 1),
            "eta_s": round(left / speed, 1),
        }


_DIVERGED = "The loss is no longer a finite number: the run has diverged. Try a smaller learning rate, or dtype float32."
_STATISTICS: Final[Mapping[str, tuple[str, ...]]] = {
    "sft": (),
    "dpo": ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
    "kto": ("rewards/chosen", "rewards/rejected", "count/chosen", "count/rejected"),
}
"""What is summed over all processes, in this order."""


def method_loss(config: TrainConfig, examples: Sequence[Example], desirable_balance: float) -> Loss:
    """The loss of one step over ``examples``."""
    if config.method == "sft":
        return losses.sft(losses.sft_total(examples))
    total = losses.weight_total(examples)
    if config.method == "kto":
        desirable = config.desirable_weight if config.desirable_weight is not None else desirable_balance
        return losses.kto(total, beta=config.beta, desirable_weight=desirable)
    chosen = sum(sum(map(bool, each.rows[0].learn[1:])) * each.weight for each in examples)
    return losses.dpo(
        total, beta=config.beta, label_smoothing=config.label_smoothing, sft_weight=config.sft_weight, chosen_total=chosen
    )


def _rewards(sums: Mapping[str, float], total: float) -> dict[str, float]:
    """Means per answer or pair, by short names."""
    if "rewards/accuracies" in sums:
        short = {"chosen": "chosen", "rejected": "rejected", "accuracy": "accuracies", "margin": "margins"}
        return {name: sums[f"rewards/{long}"] / total for name, long in short.items()}
    found = {name: (sums.get(f"rewards/{name}", 0.0), sums.get(f"count/{name}", 0.0)) for name in ("chosen", "rejected")}
    means = {name: value / count for name, (value, count) in found.items() if count}
    return means | ({"margin": means["chosen"] - means["rejected"]} if len(means) == 2 else {})
