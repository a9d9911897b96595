"""What the model manager says of itself: data for ``/model``, ``/health/ready`` and ``aprendiz doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.core.types import EngineState
from app.models.aliases import Target
from app.models.canary import CanaryStatus
from app.models.deployment import Deployment, DeploymentStatus
from app.models.pool import Failure


@dataclass(frozen=True, slots=True)
class AliasStatus:
    """An alias: what it means and whether that could answer now. ``error``: why not; safe to show. ``retry_in_s``: then it
    tries again."""

    name: str
    provider: str
    model: str
    device: str
    version: str | None
    state: EngineState
    error: str | None = None
    retry_in_s: float | None = None
    previous: Mapping[str, Any] | None = None
    """What it meant before, as `app.core.records.AliasRecord.previous`."""


@dataclass(frozen=True, slots=True)
class ManagerStatus:
    """The whole. ``ready``: a call to ``default`` now would be served, if need be after a load; ``reason``: why not, safe to
    show."""

    ready: bool
    reason: str | None
    draining: bool
    aliases: tuple[AliasStatus, ...]
    engines: tuple[DeploymentStatus, ...]
    running: int
    waiting: int
    canary: CanaryStatus | None = None


def alias_status(name: str, target: Target, deployment: Deployment | None, failure: Failure | None, now: float) -> AliasStatus:
    """An alias as it stands. ``deployment``: what serves it; ``failure``: why nothing does; ``now``: on the pool's clock."""
    spec, record = target.spec, target.record
    provider, _, model = spec.public_name.partition("/")
    state = EngineState.STOPPED if deployment is None else deployment.state
    if deployment is None and failure is not None:
        state = EngineState.FAILED
    version = deployment.version if deployment is not None else None
    return AliasStatus(
        name=name,
        provider=provider,
        model=model,
        device=spec.device,
        version=version.id if version is not None else record.version if record is not None else None,
        state=state,
        error=None if failure is None or state is EngineState.READY else failure.error.detail,
        retry_in_s=None if failure is None or state is not EngineState.FAILED else max(failure.until - now, 0.0),
        previous=None if record is None else record.previous,
    )


def why_not_ready(default: AliasStatus) -> str | None:
    """Why a call to ``default`` would not be served now; None where it would."""
    match default.state:
        case EngineState.READY | EngineState.STOPPED:
            # Stopped is not loaded, and nothing stands against loading it with the first request.
            return None
        case EngineState.STARTING:
            return "The model is being loaded."
        case EngineState.RESTARTING:
            return "The model engine is being restarted."
        case _:
            return default.error or "The model engine is not available."
