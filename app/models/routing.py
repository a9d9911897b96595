"""Which targets a model name stands for, and in which order one call asks them.

A name is a route of ``routing.models``, else an alias, else a model that an alias means, else a model that an upstream exposes
(``providers.upstreams.NAME.models``). Nothing else can be asked for, and asking loads nothing. This file decides; who asks,
waits and gives up is `app.models.tries`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from app.core.errors import UnknownModel
from app.core.settings import FallbackClass, Route, Routing, Upstream
from app.core.types import ModelSpec
from app.models.aliases import DEFAULT, Aliases

logger = logging.getLogger(__name__)

Strategy = Literal["order", "weights", "least_busy"]
_NONE: Final[frozenset[FallbackClass]] = frozenset()
_ANY: Final[frozenset[FallbackClass]] = frozenset(get_args(FallbackClass))
_SINGLE_RETRIES: Final = 1
_FOREIGN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
"""What a model of an upstream may be called. Each name that is asked for becomes a version, so it is kept plain and short."""
_LISTED: Final = 20


@dataclass(frozen=True, slots=True)
class Candidate:
    """One target. ``weight``: its share under the strategy ``weights``."""

    spec: ModelSpec
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What a name means for one call.

    ``name``: the route or alias that was asked for; None: a model by its own name. ``deadline_s``: longest time from the call
    over all tries; None: there is one target, and the time counts from its slot. The rest as in `app.core.settings.Route`.
    """

    name: str | None
    candidates: tuple[Candidate, ...]
    strategy: Strategy = "order"
    fallback_on: frozenset[FallbackClass] = _NONE
    long_context: ModelSpec | None = None
    retries: int = _SINGLE_RETRIES
    deadline_s: float | None = None
    hedge_s: float = 0.0

    def order(self, rng: random.Random, open_requests: Callable[[ModelSpec], int]) -> list[ModelSpec]:
        """All targets, who is asked first first. ``open_requests``: how many this process has at a target."""
        if len(self.candidates) == 1:
            return [self.candidates[0].spec]
        match self.strategy:
            case "order":
                found = list(self.candidates)
            case "least_busy":
                found = sorted(self.candidates, key=lambda each: open_requests(each.spec))
            case "weights":
                # Efraimidis and Spirakis: the order of draws without replacement. Those without weight come last.
                found = sorted(self.candidates, key=lambda each: _draw(each.weight, rng), reverse=True)
        return [each.spec for each in found]


@dataclass(frozen=True, slots=True)
class Canary:
    """A version on trial with a part of the sessions of an alias. ``share``: of all sessions; ``salt``: makes another draw of
    them than the canary before."""

    alias: str
    spec: ModelSpec
    version: str
    share: float
    salt: str

    def takes(self, session: str) -> bool:
        """Whether ``session`` is one of its sessions: the same answer in every process, before and after a restart."""
        digest = hashlib.sha256(f"{self.salt}:{session}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8]) < self.share * 2.0**64


@dataclass(frozen=True, slots=True)
class ModelName:
    """A name that callers may use, for ``/v1/models``. ``created``: seconds since the epoch."""

    id: str
    created: int
    owned_by: str


class Names:
    """All names that callers may use.

    Args:
        routing: section ``routing``.
        upstreams: ``providers.upstreams``.
        aliases: what is deployed.
        answer_timeout_s: deadline of routes that name none, seconds.
        embedder: ``memory.embedder``, ``provider/name``; empty: none.
    """

    def __init__(
        self,
        routing: Routing,
        upstreams: Mapping[str, Upstream],
        aliases: Aliases,
        *,
        answer_timeout_s: float,
        embedder: str = "",
    ) -> None:
        self._routes = routing.models
        self._aliases = aliases
        self._answer_timeout_s = answer_timeout_s
        self._exposed = {name: tuple(wildcard(each) for each in upstream.models) for name, upstream in upstreams.items()}
        self._listed = [f"{name}/{each}" for name, upstream in upstreams.items() for each in upstream.models if "*" not in each]
        self._patterns = [f"{name}/{each}" for name, upstream in upstreams.items() for each in upstream.models if "*" in each]
        self._started = int(time.time())
        provider, _, model = embedder.partition("/")
        self.embedder = ModelSpec(provider, model) if provider and model else None
        """What makes vectors for memory; callers may ask for it by its name."""
        self.canary: Canary | None = None
        """Who answers a part of the sessions in place of what its alias means."""

    def plan(self, model: str | None, session: str | None = None) -> Plan:
        """What ``model`` means now; None asks for ``default``.

        ``session``: whose call it is, for a canary; None: of nobody, and no canary answers. A session of the canary's gets what
        the alias means where the canary fails before its first piece.

        Raises:
            UnknownModel: nothing of that name; the text lists what there is.
        """
        name = DEFAULT if model is None else model
        other = self._other(session)
        route = self._routes.get(name)
        if route is not None:
            plan = self._plan_of(name, route)
            return plan if other is None else _beside(plan, *other)
        target = self._aliases.targets.get(name)
        if target is not None:
            plan = _single(name, target.spec)
        else:
            spec = self._aliases.deployed(name) or self._upstream_model(name) or self._embedder_called(name)
            if spec is None:
                raise self._unknown(name)
            plan = _single(None, spec)
        return plan if other is None else _beside(plan, *other)

    def check(self) -> None:
        """Logs the targets of routes that mean nothing now. An alias may still come to be, so this is no error."""
        for name, route in self._routes.items():
            for target in _targets(route):
                if self._target(target) is None:
                    logger.warning("a route has an unknown target", extra={"data": {"route": name, "target": target}})

    def written(self) -> list[str]:
        """The models that the operator named, in routes and upstreams, as ``provider/name``; patterns excepted."""
        targets = (self._target(target) for route in self._routes.values() for target in _targets(route))
        specs = [*targets, self.embedder]
        return list(dict.fromkeys([*(spec.public_name for spec in specs if spec is not None), *self._listed]))

    def all(self) -> list[ModelName]:
        """Routes, aliases, the models that aliases mean, and what upstreams expose by full name."""
        found: dict[str, ModelName] = {}
        for route in self._routes:
            found[route] = ModelName(route, self._started, "aprendiz")
        for alias, target in self._aliases.targets.items():
            created = self._started if target.record is None else int(target.record.moved_at.timestamp())
            for name, owner in ((alias, "aprendiz"), (target.spec.public_name, target.spec.provider)):
                found.setdefault(name, ModelName(name, created, owner))
        for name in self._listed:
            found.setdefault(name, ModelName(name, self._started, name.partition("/")[0]))
        if self.embedder is not None:
            name = self.embedder.public_name
            found.setdefault(name, ModelName(name, self._started, self.embedder.provider))
        return list(found.values())

    def _other(self, session: str | None) -> tuple[ModelSpec, ModelSpec] | None:
        """For a session of the canary's: what its alias means, and who answers instead."""
        canary = self.canary
        if canary is None or session is None or not canary.takes(session):
            return None
        control = self._aliases.targets[canary.alias].spec
        return None if control == canary.spec else (control, canary.spec)

    def _plan_of(self, name: str, route: Route) -> Plan:
        known = ((self._target(target.model), target.weight) for target in route.targets)
        candidates = tuple(Candidate(spec, weight) for spec, weight in known if spec is not None)
        if not candidates:
            raise UnknownModel(f"No target of the route {name!r} is known; an administrator must check it.", field="model")
        return Plan(
            name=name,
            candidates=candidates,
            strategy=route.strategy,
            fallback_on=frozenset(route.fallback_on),
            long_context=None if route.long_context is None else self._target(route.long_context),
            retries=route.retries,
            deadline_s=self._answer_timeout_s if route.deadline_s is None else route.deadline_s,
            hedge_s=route.hedge_s,
        )

    def _target(self, name: str) -> ModelSpec | None:
        """What a route means by ``name``. The operator wrote it, so it need not be exposed to callers by itself."""
        alias = self._aliases.targets.get(name)
        if alias is not None:
            return alias.spec
        found = self._aliases.deployed(name)
        provider, _, model = name.partition("/")
        return found or (ModelSpec(provider, model) if provider and model else None)

    def _upstream_model(self, name: str) -> ModelSpec | None:
        upstream, _, model = name.partition("/")
        if not _FOREIGN_NAME.fullmatch(model) or not any(each.fullmatch(model) for each in self._exposed.get(upstream, ())):
            return None
        return ModelSpec(upstream, model)

    def _embedder_called(self, name: str) -> ModelSpec | None:
        found = self.embedder
        if found is None or name not in (found.public_name, found.model, f"{found.provider}/{found.model}"):
            return None
        return found

    def _unknown(self, name: str) -> UnknownModel:
        known = [each.id for each in self.all()] + self._patterns
        more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
        return UnknownModel(
            f"There is no model {name[:100]!r} here. Available: {', '.join(known[:_LISTED])}{more}.", field="model"
        )


@functools.lru_cache(maxsize=1024)
def _single(name: str | None, spec: ModelSpec) -> Plan:
    """The plan of a name that means one model: the same for every call."""
    return Plan(name, (Candidate(spec),))


@functools.lru_cache(maxsize=1024)
def _beside(plan: Plan, control: ModelSpec, canary: ModelSpec) -> Plan:
    """``plan`` with ``canary`` before ``control``: in its place where the strategy is not to ask in order."""
    found: list[Candidate] = []
    for each in plan.candidates:
        if each.spec == control:
            found.append(Candidate(canary, each.weight))
        if each.spec != control or plan.strategy == "order":
            found.append(each)
    single = plan.candidates == (Candidate(control),)
    return dataclasses.replace(plan, candidates=tuple(found), fallback_on=_ANY if single else plan.fallback_on)


def wildcard(pattern: str) -> re.Pattern[str]:
    """``pattern`` to be matched in full: ``*`` stands for any text, everything else for itself."""
    return re.compile(".*".join(re.escape(part) for part in re.split(r"\*+", pattern)), re.DOTALL)


def _targets(route: Route) -> Iterator[str]:
    yield from (target.model for target in route.targets)
    if route.long_context is not None:
        yield route.long_context


def _draw(weight: int, rng: random.Random) -> float:
    return -1.0 if weight == 0 else rng.random() ** (1.0 / weight)
