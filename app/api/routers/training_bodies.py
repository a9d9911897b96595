"""What ``/training`` takes and gives. Fields of a configuration stand in `TrainConfig` and `SnapshotConfig`, and only there."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from app.core.errors import InvalidRequest
from app.core.records import PromotePolicy, RunPhase, RunRecord, RunState, SnapshotRecord
from app.training.config import Method, TrainConfig
from app.training.snapshots import Floors, SnapshotConfig

Id = Annotated[str, Field(min_length=36, max_length=36, examples=["01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e77"])]
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class TrainConfigBody(TrainConfig):
    """Hyper-parameters; what is left out is chosen by method."""

    model_config = _STRICT


class FloorsBody(Floors):
    """The least that a method may learn from."""

    model_config = _STRICT


class SnapshotBody(SnapshotConfig):
    """How a dataset is made of the feedback that there is."""

    model_config = _STRICT

    source: Literal["feedback"] = Field("feedback", description="Where the rows come from.")
    floors: FloorsBody = FloorsBody()


class RunBody(BaseModel):
    """What to train with, and what to do with the result."""

    model_config = _STRICT

    method: Method = Field("auto", description="sft: corrections; dpo: pairs; kto: ratings; auto: whichever there is most for.")
    snapshot: Id | None = Field(None, description="An `id` of `GET /training/snapshots`; left out, a new one is made.")
    promote: PromotePolicy = Field("never", description="if_passed: the version serves as soon as its gate has passed it.")
    config: TrainConfigBody = TrainConfigBody()
    holdout: float | None = Field(None, gt=0, lt=1, description="Short for `rules.holdout`.")
    rules: SnapshotBody | None = Field(None, description="How the new snapshot is made; not together with `snapshot`.")

    def plan(self) -> SnapshotConfig | None:
        """The rules of the new snapshot. Raises InvalidRequest where two fields contradict each other."""
        for name, inner in (("config", self.config), ("rules", self.rules)):
            if inner is not None and "method" in inner.model_fields_set and inner.method != self.method:
                raise InvalidRequest("Name the method once, as `method`.", field=f"{name}.method")
        if self.snapshot is not None and (self.rules is not None or self.holdout is not None):
            raise InvalidRequest("A snapshot has its rules already: send either.", field="rules")
        if self.rules is None and self.holdout is None:
            return None
        plan = self.rules or SnapshotBody()
        return plan if self.holdout is None else plan.model_copy(update={"holdout": self.holdout})


class CheckOut(BaseModel):
    """One check of the gate."""

    name: str
    value: float | None
    interval: tuple[float, float] | None
    bound: float | None
    passed: bool
    detail: str | None = None


class GateOut(BaseModel):
    """The gate's verdict; `GET /training/runs/{id}/report` says more."""

    verdict: Literal["pass", "fail"]
    checks: list[CheckOut]


class RunOut(BaseModel):
    """One training run. ``adapter``: SHA-256 of what it learned; ``version``: its id once it was loaded on the engine that
    serves."""

    id: str
    state: RunState
    phase: RunPhase
    method: str
    promote: PromotePolicy
    progress: dict[str, Any]
    snapshot: str | None
    base: str | None = Field(description="The model that is trained.")
    version: str | None
    adapter: str | None
    gate: GateOut | None
    error: str | None
    config: dict[str, Any]
    created_at: datetime
    created_by: str | None
    started_at: datetime | None
    ended_at: datetime | None
    retired_at: datetime | None
    retired_reason: str | None

    @classmethod
    def of(cls, run: RunRecord, progress: Any) -> Self:
        """The run as callers see it: no path, and no text of any user."""
        return cls(
            id=run.id,
            state=run.state,
            phase=progress.get("phase", run.phase),
            method=run.method,
            promote=run.promote,
            progress=dict(progress),
            snapshot=run.snapshot_id,
            base=run.base.get("name"),
            version=run.version,
            adapter=run.adapter_hash,
            gate=None if run.gate is None else GateOut.model_validate(run.gate),
            error=run.error,
            config=dict(run.config),
            created_at=run.created_at,
            created_by=run.created_by,
            started_at=run.started_at,
            ended_at=run.ended_at,
            retired_at=run.retired_at,
            retired_reason=run.retired_reason,
        )


class RunPage(BaseModel):
    """Newest first. ``next``: send it as ``after`` for the page behind this one; null at the end."""

    items: list[RunOut]
    next: str | None


class SnapshotOut(BaseModel):
    """One frozen dataset. ``report``: counts, what is missing, what was set aside and why; never a text."""

    id: str
    created_at: datetime
    created_by: str | None
    digest: str
    source: str
    config: dict[str, Any]
    report: dict[str, Any]
    erased_at: datetime | None

    @classmethod
    def of(cls, record: SnapshotRecord) -> Self:
        return cls.model_validate(record, from_attributes=True)


class SnapshotPage(BaseModel):
    """Newest first. ``next``: send it as ``after`` for the page behind this one; null at the end."""

    items: list[SnapshotOut]
    next: str | None


class PreviewOut(BaseModel):
    """What a snapshot made now would hold. ``method``: what ``auto`` would take; null: there is too little for any."""

    method: Literal["sft", "dpo", "kto"] | None
    report: dict[str, Any]
