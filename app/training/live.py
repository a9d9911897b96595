"""How a version does with the people whom it answers: the votes of one trial, read as they come, and what they say.

A trial is a row of ``canaries``: a share of the sessions below one (a canary, judged against the version that answers the
others meanwhile), or all of them (a promotion that is watched, judged against what people said of the version before it, in
the `WINDOW` before). Nothing here moves an alias: `app.training.promotion` does.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from app.core.ids import first_uuid7
from app.core.records import CanaryRecord
from app.db.votes import Vote
from app.training.sequential import Evidence, Side, Verdict, judge

WINDOW: Final = timedelta(days=30)
"""So far back a promotion that is watched looks for votes on the version before."""
MOST_BEFORE: Final = 500
"""The latest so many of them count."""
_LATE: Final = timedelta(seconds=30)
"""A vote may be stored so much later than its id says."""
_PAGES: Final = 20


class VoteStore(Protocol):
    """`app.db.votes.Votes`."""

    async def since(self, after: str, versions: list[str], *, limit: int = 1000) -> tuple[list[Vote], str | None]:
        """See `app.db.votes.Votes.since`."""


class LiveJudge:
    """The votes on both sides of a trial. What a person says first in a session counts, and nothing that comes after.

    Args:
        votes: where they are read.
        trial: the row of the trial.
    """

    def __init__(self, votes: VoteStore, trial: CanaryRecord) -> None:
        self.trial = trial
        self._votes = votes
        self._began = at(trial.started_at)
        self._first = at(trial.started_at - WINDOW) if self.watched else self._began
        self._after = self._first
        self._seen: set[tuple[Side, str, str]] = set()
        self._verdicts: list[Verdict] = []

    @property
    def watched(self) -> bool:
        """Whether it is a promotion that is watched, and no canary."""
        return self.trial.share >= 1

    async def read(self) -> bool:
        """Takes in what was said since the last time. Returns whether that was anything new. Raises StorageUnavailable."""
        before = len(self._verdicts)
        versions = [self.trial.control_version, self.trial.version]
        for _ in range(_PAGES):
            votes, last = await self._votes.since(self._after, versions)
            for vote in votes:
                self._take(vote)
            if last is None or last <= self._after:
                break
            self._after = last
        # Votes are stored a little after they are named, so the last moments are read again; those seen are known.
        self._after = max(self._first, min(self._after, at(_time_of(self._after) - _LATE)))
        return len(self._verdicts) > before

    async def evidence(self) -> Evidence:
        """What the votes say so far."""
        verdicts = self._verdicts
        if self.watched:
            control = [each for each in verdicts if each.side == "control"][-MOST_BEFORE:]
            verdicts = control + [each for each in verdicts if each.side == "new"]
        return await asyncio.to_thread(judge, verdicts, paired=self.watched)

    def _take(self, vote: Vote) -> None:
        side = self._side_of(vote)
        if side is None or vote.good is None or (side, vote.person, vote.session) in self._seen:
            return
        self._seen.add((side, vote.person, vote.session))
        self._verdicts.append(Verdict(side, vote.person, vote.good))

    def _side_of(self, vote: Vote) -> Side | None:
        """Which side a vote is about: only votes on answers of the time that is compared, given in that time."""
        if vote.version == self.trial.version:
            return "new" if vote.asked >= self._began else None
        if self.watched:
            return "control" if vote.asked >= self._first and vote.feedback_id < self._began else None
        return "control" if vote.asked >= self._began else None


def counts_of(evidence: Evidence) -> dict[str, Any]:
    """What the votes say, for `CanaryRecord.counts`: numbers only, nobody's name."""
    return {
        "control": {"good": evidence.control_good, "bad": evidence.control_bad},
        "new": {"good": evidence.new_good, "bad": evidence.new_bad},
        "harm": round(min(evidence.harm, 1e9), 3),
        "no_harm": round(min(evidence.no_harm, 1e9), 3),
        "alone": evidence.alone,
    }


def at(when: datetime) -> str:
    """The least id of a moment."""
    return first_uuid7(int(when.timestamp() * 1000))


def _time_of(prediction_id: str) -> datetime:
    return datetime.fromtimestamp(int(prediction_id.replace("-", "")[:12], 16) / 1000).astimezone()
