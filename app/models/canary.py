"""The engines of a canary: loaded and kept while it is on trial with users, and watched for failures.

Which sessions go to it is `app.models.routing`'s, and whether it does well is judged from feedback in ``app.training``. Nothing
here ends a canary by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from app.core.errors import AprendizError, Conflict, ModelLoadFailed, Overloaded
from app.core.types import ModelSpec, VersionInfo
from app.models.aliases import Aliases
from app.models.deployment import Deployment
from app.models.pool import Pool
from app.models.resilience import class_of
from app.models.routing import Canary, Names

FAILS_AFTER: Final = 5
"""So many of its attempts in a row that failed for the engine's sake mean that it cannot serve."""


@dataclass(frozen=True, slots=True)
class CanaryStatus:
    """A canary as it stands. ``answered`` and ``failures``: attempts since it was set in this process; ``failing``: failures
    since the last answer."""

    canary: Canary
    loaded: bool
    answered: int
    failures: int
    failing: int

    @property
    def broken(self) -> bool:
        """Whether it failed too often to go on."""
        return self.failing >= FAILS_AFTER


class CanaryKeeper:
    """Pins the engines of both sides and counts what the canary's attempts come to.

    Args:
        pool: the deployments.
        aliases: what the other side is.
        names: where sessions are sent to it.
    """

    def __init__(self, pool: Pool, aliases: Aliases, names: Names) -> None:
        self._pool = pool
        self._aliases = aliases
        self._names = names
        self._pinned: dict[ModelSpec, Deployment | None] = {}
        self._answered = self._failures = self._failing = 0

    async def start(self, canary: Canary) -> str:
        """As `ModelManager.start_canary`."""
        control = self._aliases.targets[canary.alias].spec
        deployments = [self._pool.obtain(spec, beside=self.serves) for spec in (canary.spec, control)]
        for deployment in deployments:
            deployment.pin()
        try:
            for deployment in deployments:
                await deployment.ready()
            loaded, other = (deployment.loaded.version.id for deployment in deployments)
            if loaded != canary.version:
                raise ModelLoadFailed("The files of this version have changed since: what would answer is another version.")
            if self._names.canary is not None:
                raise Conflict("A canary runs already. Stop it first: POST /model/canary/stop.")
            if self._aliases.targets[canary.alias].spec != control:
                raise Conflict(f"The alias {canary.alias} was moved meanwhile. Try again.", retry_after=1)
            self.set(canary)
        finally:
            for deployment in deployments:
                deployment.unpin()
            self._discard(deployments[0])
        return other

    def set(self, canary: Canary | None) -> str | None:
        """Sends sessions to ``canary`` and keeps the engines of both sides from now on, no longer those of the canary before.

        What is not loaded yet is pinned when it is. Returns a version that nothing means any more, if there is one now.
        """
        old, self._names.canary = self._names.canary, canary
        before = [each for each in self._pinned.values() if each is not None]
        self._answered = self._failures = self._failing = 0
        self._pinned = {} if canary is None else {canary.spec: None, self._aliases.targets[canary.alias].spec: None}
        for spec in self._pinned:
            if (deployment := self._pool.find(spec)) is not None:
                self.note(deployment)
        for deployment in before:
            deployment.unpin()
            self._discard(deployment)
        return old.version if old is not None and old.version not in self.meant() else None

    def serves(self, spec: ModelSpec) -> bool:
        """Whether an alias means ``spec``, or sessions are sent to it."""
        canary = self._names.canary
        return bool(self._aliases.names_of(spec)) or (canary is not None and canary.spec == spec)

    def meant(self) -> frozenset[str]:
        """The versions that answer now, as far as they are known."""
        canary = self._names.canary
        return self._aliases.versions() | (frozenset() if canary is None else {canary.version})

    def _discard(self, deployment: Deployment) -> None:
        if deployment.pins == 0 and not self.serves(deployment.spec):
            self._pool.discard(deployment)

    def note(self, deployment: Deployment) -> None:
        """Pins a deployment that serves one of the two sides from now on."""
        if deployment.spec not in self._pinned:
            return
        old = self._pinned[deployment.spec]
        if old is not deployment:
            deployment.pin()
            self._pinned[deployment.spec] = deployment
            if old is not None:
                old.unpin()

    def check(self, spec: ModelSpec, version: VersionInfo) -> None:
        """Raises ModelLoadFailed where the files of the canary are not those that it was started with."""
        canary = self._names.canary
        if canary is not None and spec == canary.spec and version.id != canary.version:
            raise ModelLoadFailed("The files of the version on trial have changed since: what would answer is another version.")

    def heard(self, spec: ModelSpec, error: AprendizError | None) -> None:
        """Takes the outcome of an attempt. A full queue, and what is wrong with a request, do not count."""
        canary = self._names.canary
        if canary is None or spec != canary.spec:
            return
        if error is None:
            self._answered += 1
            self._failing = 0
        elif class_of(error) is not None and not isinstance(error, Overloaded):
            self._failures += 1
            self._failing += 1

    def status(self) -> CanaryStatus | None:
        """Everything to show, without waiting."""
        canary = self._names.canary
        if canary is None:
            return None
        deployment = self._pool.find(canary.spec)
        loaded = deployment is not None and deployment.version is not None
        return CanaryStatus(canary, loaded, self._answered, self._failures, self._failing)
