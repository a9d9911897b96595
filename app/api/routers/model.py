"""``/model``: what serves, what has served, and the admin's ways to change it. `ModelManager` does the work."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.api.bodies import MAX_MODEL_NAME, StrictRoute, check_model_name
from app.api.deps import AdminPrincipal, ReadPrincipal, Services, ServicesDep
from app.core.errors import InvalidRequest
from app.core.records import AliasRecord, VersionRecord
from app.core.types import ModelSpec, Principal
from app.models.deployment import DeploymentStatus

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


class PromoteBody(BaseModel):
    """Which version shall serve."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    version: str = Field(pattern=r"^[0-9a-f]{16}$", description="An `id` of `GET /model/versions`.")


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
    await services.models.switch(ModelSpec(body.provider, name, body.device), actor=principal)
    return _model_out(services, principal)


@router.get("/versions", summary="What has served here")
async def list_versions(services: ServicesDep, principal: ReadPrincipal) -> VersionsOut:
    """Every version that has been loaded here; any of them can be promoted."""
    return VersionsOut(items=[VersionOut.of(version) for version in await services.models.versions()])


@router.post("/reload", summary="Restart the engine")
async def reload_model(services: ServicesDep, principal: AdminPrincipal) -> ModelOut:
    """A fresh engine for what `default` points at; answers when it serves."""
    await services.models.reload(actor=principal)
    return _model_out(services, principal)


@router.post("/promote", summary="Serve a known version")
async def promote_version(body: PromoteBody, services: ServicesDep, principal: AdminPrincipal) -> AliasOut:
    """Lets `default` point at a version that has been loaded here before."""
    return _alias_out(await services.models.promote(body.version, actor=principal))


@router.post("/rollback", summary="Go back one version")
async def rollback_version(services: ServicesDep, principal: AdminPrincipal) -> AliasOut:
    """Lets `default` point at what it pointed at before. 409 where there is nothing before."""
    return _alias_out(await services.models.rollback(actor=principal))


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
        previous=None if alias.previous is None else dict(alias.previous),
    )
