"""Who may serve under an alias: the one rule that all ways to ``default`` pass, and what a run remembers of its version's fate.

A version without an adapter of ours is free: base models, and other people's. One with an adapter needs the run that made it,
judged by the gate and passed, not retired, and not taken back for harm since. An admin's override stands for the gate's verdict
and for harm, never for a retirement: what was trained on erased data does not come back. Nothing here moves an alias.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from app.core.errors import NotPromotable
from app.core.records import RunRecord
from app.core.types import ModelSpec

_NOT_JUDGED: Mapping[str, Any] = {
    "name": "judged",
    "value": 0,
    "interval": None,
    "bound": 1,
    "passed": False,
    "detail": "The gate has not judged this version.",
}


class RunStore(Protocol):
    """`app.db.runs.Runs`."""

    async def get(self, run_id: str) -> RunRecord | None:
        """One run, or None."""

    async def update(self, run_id: str, **changes: Any) -> RunRecord | None:
        """Changes fields of a run by name."""


class Rules:
    """The rule. `check` is the guard of `app.models.model_manager.ModelManager`.

    Args:
        runs: where runs are kept; the name of an adapter is the id of its run.
    """

    def __init__(self, runs: RunStore) -> None:
        self._runs = runs

    async def check(self, spec: ModelSpec, version: str) -> None:
        """Raises NotPromotable where ``version``, which ``spec`` loads, may not serve; the text says why, and what to do."""
        if spec.adapter is None:
            return
        run = await self._made_by(spec, version)
        gate = run.gate or {}
        override, harm = gate.get("override"), gate.get("harm")
        if override is not None and override.get("version") != version:
            override = None
        if harm is not None and (override is None or str(override["at"]) < str(harm["at"])):
            raise NotPromotable(
                "People who were answered by this version liked it less, and it was taken back. An admin may insist, with an "
                "override and a reason."
            )
        if (gate.get("verdict") != "pass" or run.version is None) and override is None:
            raise NotPromotable(f"{_why(run)} An admin may insist, with an override and a reason.")

    async def override(self, spec: ModelSpec, version: str, *, by: str, reason: str) -> tuple[str, ...]:
        """Notes with the run that an admin insists on this version; returns the names of the checks that it failed.

        Raises NotPromotable where nobody can insist: no such run, another version, or a retired adapter.
        """
        if spec.adapter is None:
            return ()
        run = await self._made_by(spec, version)
        gate: dict[str, Any] = dict(run.gate or {"verdict": "fail", "checks": [_NOT_JUDGED]})
        gate["override"] = {"at": _now(), "by": by, "reason": reason, "version": version}
        await self._runs.update(run.id, gate=gate)
        return failed_checks(gate)

    async def note(self, run_id: str, what: str, **words: Any) -> bool:
        """Notes with the run what became of its version: ``harm`` (it may not serve again) or ``rolled_back``.

        Returns whether there is such a run."""
        run = await self._runs.get(run_id)
        if run is None:
            return False
        gate = dict(run.gate or {"verdict": "fail", "checks": [_NOT_JUDGED]})
        await self._runs.update(run_id, gate={**gate, what: {"at": _now(), **words}})
        return True

    async def _made_by(self, spec: ModelSpec, version: str) -> RunRecord:
        """The run that made the adapter, if it made this version of it and was not retired."""
        run = await self._runs.get(spec.adapter or "")
        if run is None:
            raise NotPromotable("No run of this service made the adapter of this version, so nothing is known of it.")
        if run.retired_at is not None:
            raise NotPromotable(
                "The adapter of this version is retired, because data that it was trained on was erased. Train a new one."
            )
        if run.version is not None and run.version != version:
            raise NotPromotable(
                "The run judged another version: the model below its adapter has changed since. Train a new one."
            )
        return run


def failed_checks(gate: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the checks that a gate report says have failed."""
    checks = gate.get("checks") or ()
    return tuple(str(each.get("name")) for each in checks if isinstance(each, Mapping) and not each.get("passed"))


def _why(run: RunRecord) -> str:
    if not run.gate or "verdict" not in run.gate:
        return "The gate has not judged this version."
    failed = ", ".join(failed_checks(run.gate)[:8])
    return f"This version failed its gate{f' ({failed})' if failed else ''}."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
