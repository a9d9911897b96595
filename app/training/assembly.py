"""From candidate rows to a dataset: fold, group, set aside, split, weigh, report, write. Blocking; runs in a thread.

The texts lie in a spool file while only a few hundred bytes a row are kept in memory, so a hundred thousand rows fit. No
database and no settings here; the same rows, rules and history give the same files to the byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from app.core.files import hash_file, sync
from app.core.records import RowKind, SnapshotRowRecord, SplitName
from app.training import grouping, quarantine
from app.training.datasets import person_of
from app.training.scan import CONTROL, INJECTION, SECRETS, scan
from app.training.splitting import History, held_out, scales

MAX_ROW_BYTES: Final = 1 << 20
KINDS: Final[tuple[RowKind, ...]] = ("sft", "dpo", "kto")
FILES: Final = ("train.jsonl", "heldout.jsonl")
_ANSWERS: Final = ("completion", "chosen", "rejected", "original")
_COMMON_WORDS = 20
"""A correction shorter than this (normalised characters) may well be right for many prompts: "yes", a label, a number."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row comes from. ``at``: seconds since the epoch; ``approved``: a reviewer saw it, nothing sets it aside."""

    feedback_id: str | None = None
    prediction_id: str | None = None
    user_id: str | None = None
    rater: str | None = None
    at: float = 0.0
    approved: bool = False

    @property
    def person(self) -> str | None:
        """Whose word it is, where one counts people; see `app.training.datasets.person_of`."""
        return person_of(self.rater, self.user_id)


@dataclass(slots=True)
class Candidate:
    """A row without its texts. ``answer``: hash of what was rated or written; ``pair``: a correction of another answer."""

    kind: RowKind
    origin: Origin
    offset: int
    size: int
    prompt: grouping.Fingerprint
    answer: bytes
    label: bool | None
    long: bool
    copies_prompt: bool
    pair: bool
    findings: Mapping[str, int]
    split: SplitName = "train"
    group: str = ""
    weight: float = 1.0
    reason: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The rules that an assembly follows; see `app.training.snapshots.SnapshotConfig`."""

    holdout: float
    seed: int
    most_per_person: float
    near_duplicate: float
    floors: Mapping[str, int]
    quarantine: quarantine.Rules | None
    set_aside_secrets: bool = True


@dataclass(slots=True)
class Outcome:
    """What became of the rows. ``unseen`` and ``judged``: raters, see `app.training.quarantine`."""

    people: dict[str, dict[str, Any]] = field(default_factory=dict)
    judged: int = 0
    unseen: int = 0


class Assembly:
    """Takes rows one at a time into a spool file in ``folder``, then settles all of them, then writes the dataset there."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self.rows: list[Candidate] = []
        self.too_long = 0
        self.outcome = Outcome()
        self._spool = open_private(folder / "spool")
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Removes the spool file. Rows cannot be read again then."""
        self._spool.close()
        (self.folder / "spool").unlink(missing_ok=True)

    def add(self, row: Mapping[str, Any], origin: Origin) -> None:
        """Takes a row (see the row format in doc/architecture.md, without weight, group and position). Raises OSError."""
        line = json.dumps(row, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
        if len(line) > MAX_ROW_BYTES:
            self.too_long += 1
            return
        self._spool.seek(self._end)
        self._spool.write(line)
        self.rows.append(_candidate(row, origin, self._end, len(line)))
        self._end += len(line)

    def settle(self, history: History, held_feedback: Collection[str]) -> None:
        """Decides over every row: folded, set aside, held out or trained, and how much it weighs.

        ``held_feedback``: ids of feedback that stood on the held-out side before, whatever its group was called then.
        """
        prompts = [row.prompt for row in self.rows]
        for row, group in zip(self.rows, grouping.groups(prompts, self._messages, self.plan.near_duplicate), strict=True):
            row.group = group
        self._fold()
        self._set_aside()
        live = [row for row in self.rows if row.split == "train"]
        known = {row.group for row in self.rows if row.origin.feedback_id in held_feedback}
        history = History(heldout=known | set(history.heldout), trained=history.trained)
        kinds: dict[str, set[str]] = {kind: {row.group for row in live if row.kind == kind} for kind in KINDS}
        held = held_out(kinds, share=self.plan.holdout, seed=self.plan.seed, history=history)
        for row in live:
            row.split = "heldout" if row.group in held else "train"
        self._weigh(live)

    def _messages(self, number: int) -> Sequence[Mapping[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._line(self.rows[number]))["prompt"]
        return found

    def _line(self, row: Candidate) -> bytes:
        self._spool.seek(row.offset)
        line: bytes = self._spool.read(row.size)
        return line

    def _fold(self) -> None:
        first: set[tuple[Any, ...]] = set()
        for row in self.rows:
            key = (row.origin.person, row.kind, row.prompt.text, row.answer, row.label)
            if key in first:
                row.split, row.reason = "folded", ("duplicate", "the same person said exactly this before")
            first.add(key)

    def _set_aside(self) -> None:
        live = [(number, row) for number, row in enumerate(self.rows) if row.split == "train"]
        reasons: dict[int, tuple[str, str]] = {}
        if self.plan.quarantine is not None:
            votes = [
                quarantine.Vote(number, row.origin.person, row.origin.at, row.group, row.answer, row.label)
                for number, row in live
                if row.label is not None and row.origin.person is not None
            ]
            corrections = [
                quarantine.Correction(number, _hand(row), row.group, row.answer, row.long, row.copies_prompt)
                for number, row in live
                if row.kind == "sft"
            ]
            found = quarantine.judge(votes, corrections, self.plan.quarantine)
            reasons = found.reasons
            self.outcome.judged, self.outcome.unseen = found.judged, found.unseen
        for number, row in live:
            reason = _unsafe(row.findings) if self.plan.set_aside_secrets else None
            reason = reason or reasons.get(number)
            if reason is not None and not row.origin.approved:
                row.split, row.reason = "quarantined", reason

    def _weigh(self, live: Sequence[Candidate]) -> None:
        for kind in KINDS:
            people: dict[str, Any] = {}
            for split in ("train", "heldout"):
                own = [row for row in live if row.kind == kind and row.split == split]
                counts = Counter(row.origin.person or "" for row in own)
                scale = scales(counts, most=self.plan.most_per_person, floor=self.plan.floors.get(kind, 0))
                for row in own:
                    row.weight = round(scale[row.origin.person or ""], 6)
                if split == "train" and own:
                    people = _people(counts, scale, self.plan.most_per_person)
            if people:
                self.outcome.people[kind] = people

    def write(self) -> dict[str, str]:
        """Writes `FILES`; returns their SHA-256. Raises OSError."""
        files = {name: open_private(self.folder / name) for name in FILES}
        try:
            for position, row in enumerate(self.rows):
                if row.split in ("train", "heldout"):
                    more = {"weight": row.weight, "group": row.group, "position": position}
                    tail = json.dumps(more, separators=(",", ":")).encode("ascii")
                    files[f"{row.split}.jsonl"].write(self._line(row)[:-1] + b"," + tail[1:] + b"\n")
        finally:
            for file in files.values():
                file.close()
        for name in FILES:
            sync(self.folder / name)
        return {name: hash_file(self.folder / name) for name in FILES}

    def records(self, snapshot_id: str) -> list[SnapshotRowRecord]:
        """Where every row came from and what became of it, those that were folded or set aside too."""
        return [
            SnapshotRowRecord(
                snapshot_id=snapshot_id,
                position=position,
                split=row.split,
                kind=row.kind,
                group=row.group,
                weight=row.weight,
                feedback_id=row.origin.feedback_id,
                prediction_id=row.origin.prediction_id,
                user_id=row.origin.user_id,
                rater=row.origin.rater,
                reason=None if row.reason is None else f"{row.reason[0]}: {row.reason[1]}",
            )
            for position, row in enumerate(self.rows)
        ]

    def digest(self, rules: Mapping[str, Any]) -> str:
        """SHA-256 over rules and rows: what they say is in the hashes of ``rules["files"]``, what became of them is here."""
        total = hashlib.sha256(json.dumps(rules, sort_keys=True, separators=(",", ":")).encode())
        for row in self.rows:
            parts = (row.origin.feedback_id, row.kind, row.split, row.group, row.weight, row.reason)
            total.update(json.dumps(parts, separators=(",", ":")).encode())
        return total.hexdigest()


def open_private(path: Path) -> Any:
    """A new binary file that only its owner may read. Raises OSError."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w+b", buffering=1 << 16)


_NOTHING: Final[Mapping[str, int]] = {}
"""Shared by all rows in which nothing was found: a hundred thousand empty ones are work for the garbage collector."""


def _candidate(row: Mapping[str, Any], origin: Origin, offset: int, size: int) -> Candidate:
    answers = [str(message.get("content") or "") for name in _ANSWERS for message in row.get(name, ())]
    normal = grouping.normalise(answers[0])
    findings: Counter[str] = Counter()
    for text in (*answers, *(str(message["content"]) for message in row["prompt"])):
        found = scan(text)
        if text is not answers[0]:
            # What a user asks may hold such words and harm nobody; what is to be said after training may not.
            found = Counter({kind: count for kind, count in found.items() if kind not in INJECTION})
        findings += found
    return Candidate(
        kind=row["kind"],
        origin=origin,
        offset=offset,
        size=size,
        prompt=grouping.fingerprint(row["prompt"]),
        answer=_hash("\0".join([normal, *answers[1:]]) if row["kind"] != "sft" else normal),
        label=row.get("label"),
        long=len(normal) >= _COMMON_WORDS,
        copies_prompt=row["kind"] == "sft" and normal == grouping.normalise(grouping.question(row["prompt"])[1]),
        pair="original" in row,
        findings=dict(findings) if findings else _NOTHING,
    )


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def _unsafe(findings: Mapping[str, int]) -> tuple[str, str] | None:
    for slug, kinds, words in (
        ("secret", SECRETS, "looks like a secret"),
        ("control_token", CONTROL, "holds control tokens of a chat template"),
        ("instruction", INJECTION, "holds instructions to a model"),
    ):
        named = sorted(kinds & set(findings))
        if named:
            return slug, f"{words} ({', '.join(named)})"
    return None


def _hand(row: Candidate) -> str:
    """Who corrects, where all without a name count as one: who repeats a text does so under several accounts."""
    rater = row.origin.rater or ""
    return "token:" if rater.startswith("token:") else rater


def _people(counts: Mapping[str, int], scale: Mapping[str, float], most: float) -> dict[str, Any]:
    weights = {person: count * scale[person] for person, count in counts.items()}
    total = sum(weights.values())
    share = max(weights.values()) / total
    return {
        "people": len(counts),
        "largest_share": round(max(counts.values()) / sum(counts.values()), 4),
        "largest_share_after_cap": round(share, 4),
        "capped": sum(value < 1 for value in scale.values()),
        "cap": most,
        "cap_held": share <= most + 1e-3,
    }
