"""Where names point, and how they are moved: switch, reload, promote, roll back.

A move is: start the new engine, ask the guard, write the alias, point the name at it in one step, let the old engine finish.
Whatever fails before the write leaves everything as it was. Loading, queues and closing are `app.models.pool`'s; who may
serve is the guard's, which all ways to an alias pass, a restart too; this file only says which spec a name means.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from app.core.errors import AprendizError, Conflict, InvalidRequest, ModelLoadFailed, NotFound, NotPromotable, UnknownModel
from app.core.ids import uuid7
from app.core.logging import request_id_var
from app.core.records import UNSET, AliasRecord, AuditRecord, Unset
from app.core.settings import Model
from app.core.types import ModelSpec, Principal, VersionInfo
from app.models.deployment import Deployment
from app.models.pool import Pool
from app.models.stores import ModelStores
from app.models.versions import earlier, spec_of, spec_of_previous, spec_of_version

logger = logging.getLogger(__name__)

DEFAULT = "default"
_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

Guard = Callable[[ModelSpec, str], Awaitable[None]]
"""``await guard(spec, version)`` raises NotPromotable for what no alias may mean."""


async def anything(_spec: ModelSpec, _version: str) -> None:
    """The guard of a manager without one."""


@dataclass(frozen=True, slots=True)
class Order:
    """What an alias is moved for. ``version``: what must have been loaded; ``note``: goes into the audit line.

    ``previous``: what the alias shall have meant before; unless told, what it means now.
    """

    action: str
    actor: Principal | None
    version: str | None = None
    note: Mapping[str, Any] = field(default_factory=dict)
    previous: Mapping[str, Any] | Unset | None = UNSET


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
        guard: who may serve.
    """

    def __init__(self, settings: Model, pool: Pool, stores: ModelStores, *, guard: Guard = anything) -> None:
        self._guard = guard
        self._configured = ModelSpec(settings.provider, settings.model, settings.device)
        self._pool = pool
        self._stores = stores
        self._targets: dict[str, Target] = {DEFAULT: Target(self._configured)}
        self._moving: set[str] = set()

    async def load(self) -> None:
        """Takes the stored aliases over; ``default`` only while the configuration still says what it said when it was moved.

        One that means what may not serve any more means what it meant before instead; ``default`` at last what is configured.
        """
        for record in await self._stores.aliases.list():
            if record.name == DEFAULT and record.configured != self._configured.name:
                data = {"configured": self._configured.name, "stored": f"{record.provider}/{record.model}"}
                logger.info("alias default follows the configuration, which has changed", extra={"data": data})
                continue
            try:
                await self._guard(spec_of(record), record.version)
            except NotPromotable as error:
                await self._fall_back(record, error)
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
            return await self._move(alias, spec, Order("model.switch", actor))

    async def reload(self, alias: str, *, actor: Principal | None) -> AliasRecord:
        """A fresh engine of what ``alias`` means, in place of the one that runs. Raises as `switch`."""
        async with self._exclusive(alias):
            return await self._replace(alias, self._targets[alias].spec, Order("model.reload", actor))

    async def to_load(self, version: str) -> ModelSpec:
        """What must be loaded for a version that has been loaded here before. Raises NotFound for any other."""
        record = await self._stores.versions.get(version)
        if record is None:
            raise NotFound("There is no such version; GET /model/versions lists them.", field="version")
        return spec_of_version(record)

    async def promote(self, alias: str, version: str, order: Order) -> AliasRecord:
        """Points ``alias`` at a version that has been loaded here before. Raises NotFound for any other, and as `switch`."""
        spec = await self.to_load(version)
        return await self.promote_spec(alias, spec, replace(order, version=version))

    async def promote_spec(self, alias: str, spec: ModelSpec, order: Order) -> AliasRecord:
        """Points ``alias`` at ``spec``, loaded, if it is ``order.version``: else ModelLoadFailed. Raises as `switch`."""
        async with self._exclusive(alias):
            return await self._to_version(alias, spec, order)

    async def rollback(self, alias: str, order: Order, *, anywhere: bool = False) -> AliasRecord:
        """Points ``alias`` at what it meant before its last move; again, at what it meant before that.

        What may not serve any more is passed over. ``anywhere``: so is what cannot be loaded, and at last comes what is
        configured: for a move that has to happen.

        Raises:
            Conflict: there is nothing before, or another change of this alias runs.
            NotPromotable: nothing before may serve. The rest as `switch`.
        """
        async with self._exclusive(alias):
            record = self._targets[alias].record
            before = [] if record is None else list(earlier(record.previous))
            refusal: AprendizError = Conflict("There is no earlier version to go back to.")
            for previous in before:
                back = replace(order, version=str(previous["version"]), previous=previous.get("previous"))
                try:
                    spec = spec_of_previous(previous)
                    await self._guard(spec, str(previous["version"]))
                    return await self._to_version(alias, spec, back)
                except NotPromotable as error:
                    refusal = error
                except (ModelLoadFailed, UnknownModel) as error:
                    if not anywhere:
                        raise
                    refusal = error
            if not anywhere or self._targets[alias].spec == self._configured:
                raise refusal.again()
            return await self._move(alias, self._configured, replace(order, previous=None))

    async def check_loaded(self, spec: ModelSpec, version: VersionInfo) -> None:
        """Before what an alias means answers anything: where its files have changed since and what is loaded may not serve, the
        alias falls back and ModelLoadFailed is raised."""
        for name in self.names_of(spec):
            record = self._targets[name].record
            if record is None or record.version == version.id or name in self._moving:
                continue
            try:
                await self._guard(spec, version.id)
            except NotPromotable as error:
                await self._fall_back(record, error)
                raise ModelLoadFailed(
                    "The files of this version have changed since, and what they are now may not serve."
                ) from error

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
                record = await self._write(name, target, deployment.spec, version.id, Order("model.load", None))
            except AprendizError as error:
                # It serves all the same; the next load writes it.
                logger.warning("alias not stored", extra={"data": {"alias": name, "error": error.slug}})
                continue
            # A switch may have moved the name while we wrote.
            if self._targets[name] is target:
                self._targets[name] = Target(deployment.spec, record)

    async def _fall_back(self, record: AliasRecord, why: AprendizError) -> None:
        """Lets an alias mean the last thing before ``record`` that may serve; for ``default`` at last what is configured."""
        target = Target(self._configured) if record.name == DEFAULT else None
        for previous in earlier(record.previous):
            spec, version = spec_of_previous(previous), str(previous["version"])
            try:
                await self._guard(spec, version)
            except NotPromotable:
                continue
            back = AliasRecord(
                name=record.name,
                provider=spec.provider,
                model=spec.model,
                device=spec.device,
                version=version,
                configured=record.configured,
                moved_at=datetime.now(UTC),
                adapter=spec.adapter,
            )
            target = Target(spec, await self._stores.aliases.move(back, previous=previous.get("previous")))
            break
        self._targets.pop(record.name, None)
        if target is not None:
            self._targets[record.name] = target
        words = {"from": f"{record.provider}/{record.model}", "was": record.version, "to": _words(target), "why": why.detail}
        logger.error("an alias means what may not serve, and falls back", extra={"data": {"alias": record.name, **words}})
        await self._audit(record.name, "model.refused", None, words)

    async def _to_version(self, alias: str, spec: ModelSpec, order: Order) -> AliasRecord:
        deployment = self._pool.find(spec)
        if deployment is not None and deployment.version is not None and deployment.version.id != order.version:
            return await self._replace(alias, spec, order)
        return await self._move(alias, spec, order)

    async def _move(self, alias: str, spec: ModelSpec, order: Order) -> AliasRecord:
        old = self._targets.get(alias)
        deployment = self._pool.obtain(spec, replaces=None if old is None else old.spec)
        # Until the alias points there, nothing else keeps a new engine from being evicted.
        deployment.pin()
        try:
            return await self._point(alias, deployment, order)
        finally:
            deployment.unpin()
            self._discard_unnamed(deployment)
            if old is not None and (stale := self._pool.find(old.spec)) is not None:
                self._discard_unnamed(stale)

    async def _replace(self, alias: str, spec: ModelSpec, order: Order) -> AliasRecord:
        old = self._targets[alias]
        deployment = self._pool.fresh(spec)
        try:
            record = await self._point(alias, deployment, order)
        except BaseException:
            self._pool.discard(deployment)
            raise
        self._pool.install(deployment)
        if (stale := self._pool.find(old.spec)) is not None:
            self._discard_unnamed(stale)
        return record

    async def _point(self, alias: str, deployment: Deployment, order: Order) -> AliasRecord:
        await deployment.ready()
        loaded = deployment.loaded.version.id
        if order.version is not None and loaded != order.version:
            raise ModelLoadFailed("The files of this version have changed since: what would answer now is another version.")
        await self._guard(deployment.spec, loaded)
        old = self._targets.get(alias)
        was = None if old is None or old.record is None else old.record.version
        record = await self._write(alias, old, deployment.spec, loaded, order)
        self._targets[alias] = Target(deployment.spec, record)
        words = {"from": _words(old), "was": was, "to": deployment.name, "version": loaded, **order.note}
        await self._audit(alias, order.action, order.actor, words)
        return record

    async def _write(self, alias: str, old: Target | None, spec: ModelSpec, version: str, order: Order) -> AliasRecord:
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
                moved_by=None if order.actor is None else order.actor.user_id,
                adapter=spec.adapter,
            ),
            previous=order.previous,
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


def _words(target: Target | None) -> str | None:
    return None if target is None else target.spec.public_name
