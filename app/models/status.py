"""What the model manager says of itself: data for ``/model``, ``/health/ready`` and ``aprendiz doctor``."""

from __future__ import annotations

from dataclasses import dataclass

from app.core.types import EngineState
from app.models.deployment import DeploymentStatus


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
