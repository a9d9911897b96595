"""Where names point, and how they are moved: switch, reload, promote, roll back.

A move is: start the new engine, write the alias, point the name at it in one step, let the old engine finish. Whatever fails
before the write leaves everything as it was. Loading, queues and closing are `app.models.pool`'s; this file only says which
spec a name means.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from app.core.errors import AprendizError, Conflict, InvalidRequest, ModelLoadFailed, NotFound
from app.core.ids import uuid7
from app.core.logging import request_id_var
from app.core.records import AliasRecord, AuditRecord, VersionRecord
from app.core.settings import Model
from app.core.types import ModelSpec, Principal
from app.models.deployment import Deployment
from app.models.pool import Pool
from app.models.stores import ModelStores

logger = logging.getLogger(__name__)

DEFAULT = "default"
_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Target:
    """What an alias means. ``record`` is None until its engine has been loaded for the first time."""

    spec: ModelSpec
    record: AliasRecord | None = None


class Aliases:
    """The names, in memory and in the store.

    Args:
        settings: section ``model``; names what ``default`` is.
        pool: the deployments.
        stores: aliases, versions and the audit log.
    """

    def __init__(self, settings: Model, pool: Pool, stores: ModelStores) -> None:
        self._configured = ModelSpec(settings.provider, settings.model, settings.device)
        self._pool = pool
        self._stores = stores
        self._targets: dict[str, Target] = {DEFAULT: Target(self._configured)}
        self._moving: set[str] = set()

    async def load(self) -> None:
        """Takes the stored aliases over; ``default`` only while the configuration still says what it said when it was moved."""
        for record in await self._stores.aliases.list():
            if record.name == DEFAULT and record.configured != self._configured.name:
                data = {"configured": self._configured.name, "stored": f"{record.provider}/{record.model}"}
                logger.info("alias default follows the configuration, which has changed", extra={"data": data})
                continue
            self._targets[record.name] = Target(spec_of(record), record)
            data = {"alias": record.name, "model": f"{record.provider}/{record.model}", "version": record.version}
            logger.info("alias taken from the database", extra={"data": data})

    @property
    def targets(self) -> Mapping[str, Target]:
        """All aliases."""
        return self._targets

    def deployed(self, name: str) -> ModelSpec | None:
        """What an alias means whose model is called ``name``: ``provider/model``, or the bare model name."""
        for target in self._targets.values():
            public = target.spec.public_name
            if name in (public, public.partition("/")[2]):
                return target.spec
        return None

    def versions(self) -> frozenset[str]:
        """The versions that aliases mean, as far as they are known."""
        return frozenset(target.record.version for target in self._targets.values() if target.record is not None)

    def names_of(self, spec: ModelSpec) -> tuple[str, ...]:
        """The aliases that mean ``spec``."""
        return tuple(name for name, target in self._targets.items() if target.spec == spec)

    async def switch(self, alias: str, spec: ModelSpec, *, actor: Principal | None) -> AliasRecord:
        """Points ``alias`` at ``spec``, loaded; the old one finishes what it has.

        Raises:
            Conflict: another change of this alias runs.
            UnknownModel, ModelLoadFailed, Overloaded: not loaded; nothing has changed.
            StorageUnavailable: not written; nothing has changed.
        """
        if not _ALIAS.fullmatch(alias):
            raise InvalidRequest(f"An alias must match {_ALIAS.pattern}.", field="alias")
        async with self._exclusive(alias):
            return await self._move(alias, spec, "model.switch", actor)

    async def reload(self, alias: str, *, actor: Principal | None) -> AliasRecord:
        """A fresh engine of what ``alias`` means, in place of the one that runs. Raises as `switch`."""
        async with self._exclusive(alias):
            return await self._replace(alias, self._targets[alias].spec, "model.reload", actor)

    async def promote(self, alias: str, version: str, *, actor: Principal | None) -> AliasRecord:
        """Points ``alias`` at a version that has been loaded here before. Raises NotFound for any other, and as `switch`."""
        record = await self._stores.versions.get(version)
        if record is None:
            raise NotFound("There is no such version; GET /model/versions lists them.", field="version")
        async with self._exclusive(alias):
            return await self._to_version(alias, _spec_of_version(record), version, "model.promote", actor)

    async def promote_spec(self, alias: str, spec: ModelSpec, version: str, *, actor: Principal | None) -> AliasRecord:
        """Points ``alias`` at ``spec``, loaded, if it is ``version``: else ModelLoadFailed. Raises as `switch`."""
        async with self._exclusive(alias):
            return await self._to_version(alias, spec, version, "model.promote", actor)

    async def rollback(self, alias: str, *, actor: Principal | None) -> AliasRecord:
        """Points ``alias`` at what it meant before its last move. Raises Conflict where there is nothing before, and as
        `switch`."""
        async with self._exclusive(alias):
            record = self._targets[alias].record
            if record is None or not record.previous:
                raise Conflict("There is no earlier version to go back to.")
            previous = record.previous
            return await self._to_version(alias, _spec_of_previous(previous), str(previous["version"]), "model.rollback", actor)

    async def note_loaded(self, deployment: Deployment) -> None:
        """After a load on demand: writes which version its aliases now mean, where that is news."""
        version = deployment.version
        if version is None:
            return
        for name in self.names_of(deployment.spec):
            target = self._targets[name]
            if name in self._moving:
                continue
            if target.record is not None and target.record.version != version.id:
                data = {"alias": name, "was": target.record.version, "now": version.id}
                logger.warning("the files behind an alias have changed since it was set", extra={"data": data})
            try:
                record = await self._write(name, target, deployment.spec, version.id, None)
            except AprendizError as error:
                # It serves all the same; the next load writes it.
                logger.warning("alias not stored", extra={"data": {"alias": name, "error": error.slug}})
                continue
            # A switch may have moved the name while we wrote.
            if self._targets[name] is target:
                self._targets[name] = Target(deployment.spec, record)

    async def _to_version(self, alias: str, spec: ModelSpec, version: str, action: str, actor: Principal | None) -> AliasRecord:
        deployment = self._pool.find(spec)
        if deployment is not None and deployment.version is not None and deployment.version.id != version:
            return await self._replace(alias, spec, action, actor, version=version)
        return await self._move(alias, spec, action, actor, version=version)

    async def _move(
        self, alias: str, spec: ModelSpec, action: str, actor: Principal | None, *, version: str | None = None
    ) -> AliasRecord:
        old = self._targets.get(alias)
        deployment = self._pool.obtain(spec, replaces=None if old is None else old.spec)
        # Until the alias points there, nothing else keeps a new engine from being evicted.
        deployment.pin()
        try:
            return await self._point(alias, deployment, action, actor, version)
        finally:
            deployment.unpin()
            self._discard_unnamed(deployment)
            if old is not None and (stale := self._pool.find(old.spec)) is not None:
                self._discard_unnamed(stale)

    async def _replace(
        self, alias: str, spec: ModelSpec, action: str, actor: Principal | None, *, version: str | None = None
    ) -> AliasRecord:
        old = self._targets[alias]
        deployment = self._pool.fresh(spec)
        try:
            record = await self._point(alias, deployment, action, actor, version)
        except BaseException:
            self._pool.discard(deployment)
            raise
        self._pool.install(deployment)
        if (stale := self._pool.find(old.spec)) is not None:
            self._discard_unnamed(stale)
        return record

    async def _point(
        self, alias: str, deployment: Deployment, action: str, actor: Principal | None, version: str | None
    ) -> AliasRecord:
        await deployment.ready()
        loaded = deployment.loaded.version.id
        if version is not None and loaded != version:
            raise ModelLoadFailed("The files of this version have changed since: what would answer now is another version.")
        old = self._targets.get(alias)
        record = await self._write(alias, old, deployment.spec, loaded, actor)
        self._targets[alias] = Target(deployment.spec, record)
        await self._audit(alias, action, actor, {"from": _words(old), "to": deployment.name, "version": loaded})
        return record

    async def _write(
        self, alias: str, old: Target | None, spec: ModelSpec, version: str, actor: Principal | None
    ) -> AliasRecord:
        record = None if old is None else old.record
        if record is not None and (spec_of(record), record.version, record.configured) == (
            spec,
            version,
            self._configured.name,
        ):
            return record
        return await self._stores.aliases.move(
            AliasRecord(
                name=alias,
                provider=spec.provider,
                model=spec.model,
                device=spec.device,
                version=version,
                configured=self._configured.name,
                moved_at=datetime.now(UTC),
                moved_by=None if actor is None else actor.user_id,
                adapter=spec.adapter,
            )
        )

    async def _audit(self, alias: str, action: str, actor: Principal | None, details: Mapping[str, Any]) -> None:
        record = AuditRecord(
            id=uuid7(),
            at=datetime.now(UTC),
            actor=None if actor is None else actor.user_id,
            action=action,
            target=f"alias:{alias}",
            details=details,
            request_id=request_id_var.get(),
        )
        try:
            await self._stores.audit.add(record)
        except AprendizError:
            # The move is written and stands; the log keeps what the table could not.
            logger.exception("audit line not stored", extra={"data": {"action": action, "alias": alias, **details}})

    def _discard_unnamed(self, deployment: Deployment) -> None:
        if not self.names_of(deployment.spec) and deployment.pins == 0:
            self._pool.discard(deployment)

    @asynccontextmanager
    async def _exclusive(self, alias: str) -> AsyncIterator[None]:
        if alias in self._moving:
            raise Conflict(f"The alias {alias} is being changed already. Try again when that has ended.", retry_after=1)
        self._moving.add(alias)
        try:
            yield
        finally:
            self._moving.discard(alias)


def spec_of(record: AliasRecord) -> ModelSpec:
    """What an alias record means."""
    return ModelSpec(record.provider, record.model, record.device, record.adapter)


def _spec_of_version(record: VersionRecord) -> ModelSpec:
    details = record.details
    model = str(details.get("spec_model", record.model))
    return ModelSpec(record.provider, model, str(details.get("device", "auto")), details.get("adapter"))


def _spec_of_previous(previous: Mapping[str, Any]) -> ModelSpec:
    return ModelSpec(
        str(previous["provider"]), str(previous["model"]), str(previous.get("device", "auto")), previous.get("adapter")
    )


def _words(target: Target | None) -> str | None:
    return None if target is None else target.spec.public_name
