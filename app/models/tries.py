"""One call's way to its first piece of an answer: who is asked, again, instead, or as well.

`Course` decides, as a plain state machine; `Tries` does what it says. After the first piece nothing is tried any more: what the
caller has seen cannot be taken back.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.core.errors import AprendizError, ContextOverflow, Overloaded, UpstreamBusy, UpstreamCoolingDown, UpstreamTimeout
from app.core.settings import FallbackClass
from app.core.types import Event, GenerationRequest, ModelSpec
from app.models.hedging import race
from app.models.resilience import LONGEST_WAIT_S, backoff_s, class_of, worth_another_try
from app.models.routing import Plan
from app.models.targets import Attempt, Targets

logger = logging.getLogger(__name__)

HEDGED = "hedged"
"""In place of an error's slug: the first target was silent, and the second was faster."""


@dataclass(frozen=True, slots=True)
class Step:
    """What comes next: ``spec`` after ``wait_s`` seconds. ``again``: it is the same target once more."""

    spec: ModelSpec
    wait_s: float = 0.0
    again: bool = False


class Course:
    """Whom one call asks next. Holds no time and asks nobody.

    Args:
        plan: what the name means.
        order: its targets, as `Plan.order` gave them.
    """

    def __init__(self, plan: Plan, order: Sequence[ModelSpec]) -> None:
        self._plan = plan
        self._left = list(dict.fromkeys(order)) if len(order) > 1 else list(order)
        self.spec = self._left.pop(0)
        self._tries = 1

    @property
    def others(self) -> bool:
        """Whether there are targets that have not been asked."""
        return bool(self._left)

    def other(self) -> ModelSpec:
        """Takes the next target out, to be asked beside the first."""
        return self._left.pop(0)

    def after(
        self,
        error: AprendizError,
        *,
        remote: bool,
        left_s: float,
        may_retry: Callable[[], bool],
        rng: random.Random,
        opened_by: FallbackClass | None = None,
    ) -> Step | None:
        """What to do after ``error``; None: nothing, it is the answer.

        Args:
            remote: whether the target is other people's machine; an engine of ours is not asked twice, it has its supervisor.
            left_s: seconds until the deadline.
            may_retry: takes a place in the retry budget.
            rng: for jitter.
            opened_by: for UpstreamCoolingDown, the failure for which the target is left alone.
        """
        if isinstance(error, ContextOverflow):
            return self._to_long_context()
        kind = class_of(error)
        if kind is None:
            return None
        onward = self.others and bool({kind, opened_by} & self._plan.fallback_on)
        # Silence has cost its time already, and a pause that was asked for is a pause: then another target is the better try.
        hopeless = onward and (isinstance(error, UpstreamTimeout) or (isinstance(error, UpstreamBusy) and error.retry_after))
        if remote and not hopeless and worth_another_try(error) and self._tries <= self._plan.retries:
            wait_s = backoff_s(self._tries, error.retry_after if isinstance(error, UpstreamBusy) else None, rng)
            if wait_s <= LONGEST_WAIT_S and wait_s < left_s and may_retry():
                self._tries += 1
                return Step(self.spec, wait_s, again=True)
        if not onward:
            return None
        return self._go_to(self._left.pop(0))

    def _to_long_context(self) -> Step | None:
        target = self._plan.long_context
        if target is None or target == self.spec:
            return None
        # The others do not hold the prompt either.
        self._left.clear()
        return self._go_to(target)

    def _go_to(self, spec: ModelSpec) -> Step:
        self.spec = spec
        self._tries = 1
        return Step(spec)


class Tries:
    """One call, from its plan to the first events of its answer.

    Args:
        plan: what the name means.
        request: what is asked.
        user_id: whose it is.
        targets: what all calls share.
        called_at: when the call came, on the clock of ``targets``.
        timeout_s: longest time from the first slot, where the plan has no deadline.
    """

    def __init__(
        self, plan: Plan, request: GenerationRequest, user_id: str, targets: Targets, *, called_at: float, timeout_s: float
    ) -> None:
        self.plan = plan
        self._request = request
        self._user_id = user_id
        self._targets = targets
        self._timeout_s = timeout_s
        self._course = Course(plan, plan.order(targets.rng, targets.open_requests))
        self._ends_at = None if plan.deadline_s is None else called_at + plan.deadline_s
        self._attempt: Attempt | None = None
        self._error: AprendizError | None = None
        """What to raise if nobody answers."""
        self._retrying = False
        self.fallback: str | None = None
        """Slug of the error for which the first target does not answer, or `HEDGED`; final from the first events on."""

    @property
    def attempt(self) -> Attempt:
        """The target that is asked now, or was last."""
        assert self._attempt is not None  # noqa: S101  # `reserve` came first
        return self._attempt

    @property
    def limit_s(self) -> float:
        """The whole time that the call may take, for words."""
        return self._timeout_s if self.plan.deadline_s is None else self.plan.deadline_s

    def left_s(self) -> float:
        """Seconds until the deadline; counted from the first slot where the plan has none."""
        now = self._targets.clock()
        if self._ends_at is None:
            self._ends_at = now + self._timeout_s
        return self._ends_at - now

    async def reserve(self) -> None:
        """A slot at the first target that takes the call. Raises what `Targets.reserve` raised at the last of them."""
        while True:
            spec = self._course.spec
            try:
                self._attempt = await self._targets.reserve(spec, self._request, self._user_id)
            except AprendizError as error:
                self._end_retry()
                if not await self._goes_on(spec, error):
                    raise self._shown() from error
            else:
                return

    async def first(self) -> Sequence[Event]:
        """The first events, of whichever target gives some. Raises the last target's error."""
        while True:
            attempt = self.attempt
            try:
                events = await (self._race(attempt) if self.plan.hedge_s and self._course.others else attempt.first())
            except AprendizError as error:
                attempt.judge(error)
                await attempt.aclose()
                self._end_retry()
                if not await self._goes_on(attempt.deployment.spec, error, remote=attempt.deployment.remote):
                    raise self._shown() from error
            else:
                self._end_retry()
                return events
            await self.reserve()

    def timed_out(self, error: UpstreamTimeout) -> None:
        """The deadline has passed before anything came: held against the target where most of the time was its."""
        attempt = self.attempt
        if attempt.begun_at is not None and self._targets.clock() - attempt.begun_at >= self.limit_s / 2:
            attempt.judge(error)

    async def aclose(self) -> None:
        """Ends whatever is asked, and frees its slot. Never raises; may be called twice."""
        self._end_retry()
        await self.attempt.aclose()

    async def _goes_on(self, spec: ModelSpec, error: AprendizError, *, remote: bool = False) -> bool:
        """Moves on to the next step after ``error``, and waits where it says so; False where there is none."""
        self._remember(error)
        step = self._course.after(
            error,
            remote=remote,
            left_s=self.left_s(),
            may_retry=self._targets.may_retry,
            rng=self._targets.rng,
            opened_by=self._targets.opened_by(spec) if isinstance(error, UpstreamCoolingDown) else None,
        )
        if step is None:
            return False
        data = {"route": self.plan.name, "from": spec.public_name, "to": step.spec.public_name, "error": error.slug}
        if step.again:
            self._retrying = True
            logger.info("a target is asked again", extra={"data": data})
            await asyncio.sleep(step.wait_s)
            return True
        self.fallback = self.fallback or error.slug
        self._targets.metrics.fallbacks.labels(self._targets.metrics.model_label(spec.public_name), error.slug).inc()
        logger.warning("another target is asked", extra={"data": data})
        return True

    def _remember(self, error: AprendizError) -> None:
        """Keeps the error to raise in the end: the last real one, or the shortest pause where all targets have one."""
        if not isinstance(error, UpstreamCoolingDown) or self._error is None or _sooner(error, self._error):
            self._error = error.again()

    def _shown(self) -> AprendizError:
        """What to raise if nobody answers. A copy: an error that is kept would hold, by its traceback, whatever was read."""
        assert self._error is not None  # noqa: S101  # somebody has failed
        return self._error.again()

    def _end_retry(self) -> None:
        if self._retrying:
            self._retrying = False
            self._targets.retried()

    async def _race(self, attempt: Attempt) -> Sequence[Event]:
        """The first events of ``attempt``, or of the next target, which is asked too when it is silent for ``hedge_s``."""
        hedged = False

        async def second() -> Attempt:
            nonlocal hedged
            if not self._targets.may_retry():
                raise Overloaded("The retry budget is spent.")
            hedged = True
            return await self._targets.reserve(self._course.other(), self._request, self._user_id)

        try:
            (winner, events), error = await race(attempt, after_s=self.plan.hedge_s, second=second, spawn=self._targets.spawn)
        finally:
            if hedged:
                self._targets.retried()
        if winner is not attempt:
            self._attempt = winner
            self.fallback = self.fallback or (HEDGED if error is None else error.slug)
        return events


def _sooner(error: UpstreamCoolingDown, than: AprendizError) -> bool:
    return isinstance(than, UpstreamCoolingDown) and (error.retry_after or 0) < (than.retry_after or 0)
