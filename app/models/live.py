"""One prediction from its first slot to its stored end.

`LiveGeneration` passes the events of whichever target answers on, and whatever happens (a whole answer, an error, a client that
leaves, a deadline, the service going down) it does the same things exactly once: it ends the work in the engine, frees the
slot, stores the prediction, settles its price, counts it. It decides nothing about queues, names, targets, budgets or HTTP.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any

from app.core.errors import AprendizError, UpstreamError, UpstreamTimeout
from app.core.metrics import Metrics, ModelMetrics
from app.core.records import PredictionRecord, PredictionStatus
from app.core.text import storable
from app.core.types import (
    Answer,
    Context,
    Event,
    FinishReason,
    Folder,
    GenerationRequest,
    Principal,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from app.models.cache import Lease
from app.models.costs import Hold
from app.models.generation import Completed, Generation, to_input
from app.models.offered import OfferedCalls
from app.models.recording import Origin
from app.models.showing import shown
from app.models.stores import PredictionStore
from app.models.targets import Attempt
from app.models.tries import Tries
from app.providers.estimate import prompt_tokens

logger = logging.getLogger(__name__)

_COUNT_S = 2.0
_MAX_CHARACTERS = 16 << 20
"""Longest answer, thinking and arguments included: several times what any model says. A stream without end stops here."""
_PIECES = (TextDelta, ReasoningDelta, ToolCallDelta)
_ERROR_WAITS_S = 0.8
"""An error is told after so long even if a slow disk or engine still holds its end up: deadlines are kept."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is reserved for one generation. Times on ``clock``; ``spawn`` runs what must outlive its caller.

    ``price``: nano-dollars of a usage of a model, or None; ``hold``: the money set aside for it. ``lease``: the duty to answer
    for others who ask the same, if there is one.
    """

    id: str
    request: GenerationRequest
    principal: Principal
    tries: Tries
    called_at: float
    created_at: datetime
    store: PredictionStore
    metrics: Metrics
    clock: Callable[[], float]
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    on_end: Callable[[LiveGeneration], None]
    price: Callable[[str, Usage], int | None]
    hold: Hold
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class _End:
    """How it ended: what the record says."""

    status: PredictionStatus
    reason: FinishReason
    usage: Usage
    error: AprendizError | None = None
    answer: Answer | None = None


class LiveGeneration(Generation):
    """Reserved and ready; holds a slot until it ends.

    Never entered, it ends by itself at its deadline. Until the first events another target may take over: only from then on are
    ``model``, ``version`` and ``fallback`` final.
    """

    cached = False

    def __init__(self, work: Work) -> None:
        self.id = work.id
        self.conversation_id = work.request.conversation_id
        self._work = work
        self._tries = work.tries
        self._folder = Folder()
        self._offered = OfferedCalls(work.request.sampling)
        self._pieces = 0
        self._characters = 0
        self._begun = False
        self._first_token_ms: float | None = None
        self._reader: asyncio.Task[Any] | None = None
        self._interruption: AprendizError | None = None
        self._settling: asyncio.Task[None] | None = None
        self._record: PredictionRecord | None = None
        self._storage_error: AprendizError | None = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(work.tries.left_s(), 0.0), self._deadline_passed)

    @property
    def model(self) -> str:
        """As `Generation.model`."""
        return self._attempt.deployment.name

    @property
    def version(self) -> str:
        """As `Generation.version`."""
        return self._attempt.deployment.loaded.version.id

    @property
    def fallback(self) -> str | None:
        """As `Generation.fallback`."""
        return self._tries.fallback

    @property
    def examples(self) -> int:
        """As `Generation.examples`."""
        return len(self._attempt.request.examples)

    @property
    def context(self) -> Context | None:
        """As `Generation.context`."""
        return self._attempt.request.context

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        told = self._settling is not None and isinstance(value, AprendizError)
        if not told:
            await self._settle(_End("cancelled", "cancelled", Usage()))

    async def batches(self) -> AsyncGenerator[Sequence[Event] | Completed, None]:
        """As `Generation.batches`."""
        if self._interruption is not None:
            raise self._interruption.again()
        try:
            while (batch := await self._next()) is not None:
                self._note(batch)
                if self._folder.finished is not None:
                    break
                if batch:
                    yield batch
                if self._interruption is not None:
                    raise self._interruption.again()  # itself would hold, by its traceback, this object and all of the answer
            answer = self._folder.answer()
        except AprendizError as error:
            await self._fail(error)
            raise
        except (GeneratorExit, asyncio.CancelledError):
            await self._settle(_End("cancelled", "cancelled", Usage()))
            raise
        # Stored before the closing event leaves: whoever has seen the end may use the id.
        await self._settle(_End("ok", answer.finish_reason, answer.usage, answer=answer))
        if self._record is None:
            raise self._storage_error or self._interruption or UpstreamError("The answer was not kept. Try again.")
        if batch is not None:
            yield batch
        yield Completed(self._record, answer, self.context)

    def interrupt(self, error: AprendizError) -> None:
        """Ends it from outside with ``error``, whether it waits for the engine, for its consumer, or was never begun."""
        if self._interruption is not None or self._settling is not None:
            return
        self._interruption = error
        if self._reader is not None:
            self._reader.cancel()
        else:
            self._start_settling(_End("error", "error", Usage(), error))

    @property
    def _attempt(self) -> Attempt:
        return self._tries.attempt

    async def _next(self) -> Sequence[Event] | None:
        """The next events, or None at their end. An interruption wakes it and is raised in place of the cancellation."""
        self._reader = reader = asyncio.current_task()
        assert reader is not None  # noqa: S101  # coroutines run in tasks
        cancels = reader.cancelling()
        try:
            batch = await (self._tries.attempt.next() if self._begun else self._tries.first())
            return None if batch is None else self._offered.only(batch)
        except (asyncio.CancelledError, AprendizError) as error:
            if self._interruption is None:
                raise
            # Only our own `cancel` is turned into the error; the client's, or both at once, stays a cancellation.
            if reader.uncancel() > cancels and isinstance(error, asyncio.CancelledError):
                raise
            raise self._interruption.again() from None
        except Exception as error:
            raise self._attempt.unexpected(error) from error
        finally:
            self._reader = None

    def _note(self, batch: Sequence[Event]) -> None:
        self._begun = True
        if self._work.lease is not None:
            self._work.lease.note(batch)
        add = self._folder.add
        for event in batch:
            add(event)
            if isinstance(event, _PIECES):
                self._pieces += 1
                self._characters += len(event.arguments if isinstance(event, ToolCallDelta) else event.text)
        if self._characters > _MAX_CHARACTERS:
            raise UpstreamError("The model's answer is too long to be one.")
        if self._first_token_ms is None and self._pieces:
            work = self._work
            seconds = work.clock() - work.called_at
            self._first_token_ms = seconds * 1000
            self._series.first_token_seconds.observe(seconds)

    @property
    def _series(self) -> ModelMetrics:
        return self._work.metrics.of_model(self._attempt.deployment.label)

    def _deadline_passed(self) -> None:
        limit = self._tries.limit_s
        error = UpstreamTimeout(f"The answer was not finished within {limit:g} seconds. Ask for fewer tokens.")
        if not self._begun:
            self._tries.timed_out(error)
        self.interrupt(error)

    async def _fail(self, error: AprendizError) -> None:
        """Settles as failed. The caller waits a moment, so that the record is there in the usual case, and no longer."""
        if self._begun and self._interruption is None:
            self._attempt.judge(error)
        await asyncio.wait([self._start_settling(_End("error", "error", Usage(), error))], timeout=_ERROR_WAITS_S)

    async def _settle(self, end: _End) -> None:
        """Ends it as ``end`` unless it has ended, and waits. The work itself is not the caller's: cancelling cannot cut it
        short."""
        await asyncio.shield(self._start_settling(end))

    def _start_settling(self, end: _End) -> asyncio.Task[None]:
        if self._settling is None:
            self._timer.cancel()
            self._settling = self._work.spawn(self._finish(end))
        return self._settling

    async def _finish(self, end: _End) -> None:
        cost: int | None = None
        try:
            if end.status == "ok":
                self._attempt.judge("ok")
            await self._tries.aclose()
            if end.status != "ok":
                end = dataclasses.replace(end, usage=await self._usage_so_far(end.status))
            cost = self._work.price(self.model, end.usage)
            await self._keep(end, cost)
            await self._share(end)
        finally:
            # After the row is there: until it is, what was set aside stands for it.
            self._work.hold.settle(cost, stored=self._record is not None)
            if self._work.lease is not None:
                self._work.lease.abandon()
            self._count(end)
            self._work.on_end(self)

    async def _share(self, end: _End) -> None:
        """Gives a whole, stored answer to those who asked the same."""
        work, request = self._work, self._attempt.request
        if work.lease is None or end.status != "ok" or self._record is None:
            return
        asked = work.request.messages
        head = request.messages[: len(request.messages) - len(asked)] if len(request.messages) >= len(asked) else ()
        if request.messages[len(head) :] != asked:
            return  # shortened to fit: what is stored with an answer must be what the model read
        kept = self._record
        origin = Origin(
            provider=kept.provider,
            model=kept.model,
            version=kept.version,
            head=head,
            sampling=request.sampling,
            fallback=self.fallback,
            examples=request.examples,
            context=request.context,
        )
        await work.lease.keep(origin)

    async def _keep(self, end: _End, cost: int | None) -> None:
        record = self._to_record(end, cost)
        try:
            await self._work.store.add(record)
        except AprendizError as error:
            self._storage_error = error
            logger.error("prediction not stored", extra={"data": {"prediction_id": self.id, "error": error.slug}})
        else:
            self._record = record

    async def _usage_so_far(self, status: PredictionStatus) -> Usage:
        """Tokens of an answer that has no end: nobody told, so the prompt is counted and the pieces are taken as tokens.

        Other people's models are not asked: a prompt that they refused costs nothing, and one that they worked on is estimated,
        so that a caller who leaves before the end still pays.
        """
        finished = self._folder.finished
        if finished is not None:
            return finished.usage
        prompt = 0
        attempt = self._attempt
        if attempt.begun_at is not None and attempt.deployment.remote:
            prompt = prompt_tokens(attempt.request) if self._begun or status == "cancelled" else 0
        elif attempt.begun_at is not None:
            prompt = await self._prompt_tokens(attempt)
        return Usage(prompt_tokens=prompt, completion_tokens=self._pieces)

    async def _prompt_tokens(self, attempt: Attempt) -> int:
        """As the engine counts them; 0 where it cannot, for it may just have died."""
        try:
            async with asyncio.timeout(_COUNT_S):
                return await attempt.deployment.loaded.count_tokens(shown(attempt.request))
        except (AprendizError, TimeoutError):
            return 0
        except Exception as error:  # noqa: BLE001  # its bug is logged, and the prediction is stored all the same
            attempt.unexpected(error)
            return 0

    def _to_record(self, end: _End, cost: int | None) -> PredictionRecord:
        work, attempt, answer = self._work, self._attempt, end.answer
        spec = attempt.deployment.spec
        return PredictionRecord(
            id=self.id,
            user_id=work.principal.user_id,
            created_at=work.created_at,
            provider=spec.provider,
            model=self.model.removeprefix(f"{spec.provider}/"),
            version=self.version,
            input=to_input(attempt.request),
            output=storable(self._folder.text if answer is None else answer.text),
            finish_reason=end.reason,
            prompt_tokens=end.usage.prompt_tokens,
            completion_tokens=end.usage.completion_tokens,
            queue_ms=attempt.ticket.waited_s * 1000,
            first_token_ms=self._first_token_ms,
            total_ms=(work.clock() - work.called_at) * 1000,
            status=end.status,
            error=None if end.error is None else f"{end.error.slug}: {end.error.detail}",
            key_id=work.principal.key_id,
            conversation_id=work.request.conversation_id,
            request_id=work.request.request_id,
            alias=self._tries.plan.name,
            tool_calls=() if answer is None else answer.tool_calls,
            cached_tokens=end.usage.cached_tokens,
            cost_nanousd=cost,
            fallback=self.fallback,
            reasoning="" if answer is None else storable(answer.reasoning),
        )

    def _count(self, end: _End) -> None:
        work, series = self._work, self._series
        if end.status == "ok":
            series.answered.inc()
        else:
            work.metrics.predictions.labels(self._attempt.deployment.label, end.status).inc()
        series.prediction_seconds.observe(work.clock() - work.called_at)
        series.prompt_tokens.inc(end.usage.prompt_tokens)
        series.completion_tokens.inc(end.usage.completion_tokens)
