"""``/model``: what serves, what has served, and the admin's ways to change it. `Promotion` and `ModelManager` do the work."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.api.bodies import MAX_MODEL_NAME, StrictRoute, check_model_name
from app.api.deps import AdminPrincipal, ReadPrincipal, Services, ServicesDep
from app.core.errors import InvalidRequest, NotFound
from app.core.records import AliasRecord, CanaryRecord, VersionRecord
from app.core.types import ModelSpec, Principal
from app.models.deployment import DeploymentStatus
from app.training.promotion import LEAST_SHARE, MOST_REASON, MOST_SHARE

router = APIRouter(prefix="/model", route_class=StrictRoute, tags=["model"])

DEFAULT = "default"


class EngineOut(BaseModel):
    """One engine process; for admins."""

    model: str
    device: str
    state: str
    pid: int | None
    rss_bytes: int | None
    restarts: int
    slots: int
    running: int
    waiting: int
    draining: bool
    error: str | None
    log: list[str]


class CanaryOut(BaseModel):
    """A version on trial with a share of the sessions: the one that runs, or the one that ran last."""

    id: str
    alias: str
    version: str
    control_version: str
    share: float
    state: str
    started_at: datetime
    ended_at: datetime | None
    reason: str | None
    run_id: str | None
    counts: dict[str, Any] = Field(description="Votes on both sides as last judged; `harm` and `no_harm`: 20 is shown.")

    @classmethod
    def of(cls, record: CanaryRecord) -> Self:
        return cls.model_validate(record, from_attributes=True)


class ModelOut(BaseModel):
    """The model behind the alias `default`, as it stands now."""

    alias: str
    provider: str
    model: str
    version: str | None
    state: str
    device: str
    loaded_at: datetime | None = None
    context_tokens: int | None = None
    error: str | None = None
    ready: bool
    aliases: list[str]
    previous: dict[str, Any] | None = Field(None, description="What `default` meant before: where a rollback leads.")
    canary: CanaryOut | None = Field(None, description="The canary that runs.")
    engines: list[EngineOut] | None = Field(None, description="Engine processes; only admins get them.")


class AliasOut(BaseModel):
    """Where an alias points after a change."""

    alias: str
    provider: str
    model: str
    version: str
    device: str
    moved_at: datetime
    previous: dict[str, Any] | None


class VersionOut(BaseModel):
    """A version that has been loaded here: base weights, adapter and chat template, each by SHA-256."""

    id: str
    provider: str
    model: str
    base_hash: str | None
    adapter_hash: str | None
    template_hash: str | None
    created_at: datetime

    @classmethod
    def of(cls, record: VersionRecord) -> Self:
        return cls.model_validate(record, from_attributes=True)


class VersionsOut(BaseModel):
    """All versions that have been loaded here."""

    items: list[VersionOut]


class ModelBody(BaseModel):
    """Which model shall serve."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        hide_input_in_errors=True,
        json_schema_extra={"examples": [{"provider": "hf", "model": "gpt2"}]},
    )

    provider: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")
    model: str = Field(
        min_length=1, max_length=MAX_MODEL_NAME, description="A catalogue or Hub name, or a file in the models folder."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


class OverrideBody(BaseModel):
    """Why a version shall serve although its gate failed; kept with the run and in the audit log."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    reason: str = Field(min_length=1, max_length=MOST_REASON)


class PromoteBody(BaseModel):
    """Which version shall serve."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    version: str = Field(pattern=r"^[0-9a-f]{16}$", description="An `id` of `GET /model/versions`.")
    share: float | None = Field(
        None, ge=LEAST_SHARE, le=MOST_SHARE, description="Start a canary: it answers this share of the sessions."
    )
    override: OverrideBody | None = Field(None, description="An admin insists on a version that its gate failed.")


@router.get("", summary="What serves now")
async def show_model(services: ServicesDep, principal: ReadPrincipal) -> ModelOut:
    """The model behind `default`: its state, version and context. Admins also see the engine processes."""
    return _model_out(services, principal)


@router.post("", summary="Serve another model")
async def switch_model(body: ModelBody, services: ServicesDep, principal: AdminPrincipal) -> ModelOut:
    """Loads the model and lets `default` point at it; answers when it serves.

    Running answers end on the old one. If it cannot be loaded, nothing changes. 409 while another change is under way.
    """
    name = _safe_model(body.model, services.settings.data_dir / "models")
    await services.promotion.switch(ModelSpec(body.provider, name, body.device), actor=principal)
    return _model_out(services, principal)


@router.get("/versions", summary="What has served here")
async def list_versions(services: ServicesDep, principal: ReadPrincipal) -> VersionsOut:
    """Every version that has been loaded here; any of them can be promoted, one of a training run if it passed its gate."""
    return VersionsOut(items=[VersionOut.of(version) for version in await services.models.versions()])


@router.post("/reload", summary="Restart the engine")
async def reload_model(services: ServicesDep, principal: AdminPrincipal) -> ModelOut:
    """A fresh engine for what `default` points at; answers when it serves."""
    await services.promotion.reload(actor=principal)
    return _model_out(services, principal)


@router.post("/promote", summary="Serve a known version")
async def promote_version(body: PromoteBody, services: ServicesDep, principal: AdminPrincipal) -> AliasOut | CanaryOut:
    """Lets `default` point at a version that has been loaded here before, without a dropped request.

    With `share`, the version becomes a canary: it answers that share of the sessions, is judged by their votes, and is promoted
    or rolled back by itself. A version of a training run must have passed its gate: else 409 `not-promotable`, unless an
    `override` says why; one whose adapter is retired never serves. 409 while another change or canary is under way.
    """
    reason = None if body.override is None else body.override.reason
    done = await services.promotion.promote(body.version, actor=principal, share=body.share, override=reason)
    return CanaryOut.of(done) if isinstance(done, CanaryRecord) else _alias_out(done)


@router.post("/rollback", summary="Go back one version")
async def rollback_version(services: ServicesDep, principal: AdminPrincipal) -> AliasOut:
    """Lets `default` point at what it pointed at before; again, at what it pointed at before that.

    A canary that runs ends first. What may not serve any more is passed over. 409 where there is nothing before.
    """
    return _alias_out(await services.promotion.rollback(actor=principal))


@router.get("/canary", summary="The version on trial")
async def show_canary(services: ServicesDep, principal: ReadPrincipal) -> CanaryOut:
    """The canary that runs, or the one that ran last, with the votes on both sides. 404 where there never was one."""
    found = await services.promotion.last_canary()
    if found is None:
        raise NotFound("There has been no canary here.")
    return CanaryOut.of(found)


@router.post("/canary/stop", summary="End the canary")
async def stop_canary(services: ServicesDep, principal: AdminPrincipal) -> CanaryOut:
    """All sessions get what `default` points at, from now on. 409 where no canary runs."""
    return CanaryOut.of(await services.promotion.stop_canary(actor=principal))


def _safe_model(name: str, models_dir: Path) -> str:
    """The name itself, or for a path its absolute form, which must lie in the models folder, links followed.

    Raises:
        InvalidRequest: no name, or a path to elsewhere.
    """
    check_model_name(name, field="model")
    if not (name.startswith(("/", ".")) or name.endswith(".gguf") or name.count("/") > 1):
        return name
    folder = models_dir.resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise InvalidRequest(
            "A path must lie in the folder `models` of the data directory; else send a catalogue or Hub name.", field="model"
        )
    return str(path)


def _model_out(services: Services, principal: Principal) -> ModelOut:
    status = services.models.status()
    default = next(alias for alias in status.aliases if alias.name == DEFAULT)
    canary = services.promotion.canary()
    serving = next(
        (
            each
            for each in status.engines
            if each.version is not None and each.version.id == default.version and not each.draining
        ),
        None,
    )
    return ModelOut(
        alias=default.name,
        provider=default.provider,
        model=default.model,
        version=default.version,
        state=default.state.value,
        device=default.device if serving is None else serving.engine.device or serving.device,
        loaded_at=None if serving is None else serving.loaded_at,
        context_tokens=None if serving is None or serving.version is None else serving.version.context_tokens,
        error=default.error,
        ready=status.ready,
        aliases=[alias.name for alias in status.aliases],
        previous=_previous_out(default.previous),
        canary=None if canary is None else CanaryOut.of(canary),
        engines=[_engine_out(engine) for engine in status.engines] if principal.is_admin else None,
    )


def _engine_out(status: DeploymentStatus) -> EngineOut:
    engine = status.engine
    return EngineOut(
        model=status.model,
        device=engine.device or status.device,
        state=engine.state.value,
        pid=engine.pid,
        rss_bytes=engine.rss_bytes,
        restarts=engine.restarts,
        slots=status.slots,
        running=status.running,
        waiting=status.waiting,
        draining=status.draining,
        error=engine.error,
        log=list(engine.log),
    )


def _alias_out(alias: AliasRecord) -> AliasOut:
    return AliasOut(
        alias=alias.name,
        provider=alias.provider,
        model=alias.model,
        version=alias.version,
        device=alias.device,
        moved_at=alias.moved_at,
        previous=_previous_out(alias.previous),
    )


def _previous_out(previous: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What an alias meant before, without what it meant before that. Of a path only the last part: paths are private."""
    if previous is None:
        return None
    public = ModelSpec(str(previous["provider"]), str(previous["model"])).public_name.partition("/")[2]
    return {name: value for name, value in previous.items() if name != "previous"} | {"model": public}
