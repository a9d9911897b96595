"""The report of a dataset: counts and reasons, never a text; what is missing, in words; and what ``auto`` trains with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, cast

from app.core.errors import TooLittleFeedback
from app.training.assembly import KINDS, Assembly, Candidate

METHODS: Final = ("sft", "dpo", "kto")
_SHOWN = 100
"""Rows that a report names one by one; all of them stand in the database with their reasons."""
_WORTH: Final = {"sft": 8, "dpo": 4, "kto": 1}
"""What a row teaches, in ratings: a correction gives the whole answer, a preference which of two is better."""
_NAMES: Final = {"sft": "corrections", "dpo": "pairs", "kto": "ratings"}


def report_of(assembly: Assembly, intake: Mapping[str, int], floors: Mapping[str, int]) -> dict[str, Any]:
    """The report of a settled assembly, as JSON can hold it."""
    rows = assembly.rows
    splits = {kind: Counter(row.split for row in rows if row.kind == kind) for kind in KINDS}
    return {
        "feedback": {name: intake.get(name, 0) for name in ("read", "rejected", "waiting", "context", "without_rows")},
        "rows": {kind: {name: splits[kind][name] for name in ("train", "heldout", "quarantined", "folded")} for kind in KINDS},
        "too_long": assembly.too_long,
        "groups": {side: len({row.group for row in rows if row.split == side}) for side in ("train", "heldout")},
        "methods": {method: _method(method, rows, floors) for method in METHODS},
        "people": dict(assembly.outcome.people),
        "raters": {"compared": assembly.outcome.judged, "not_comparable": assembly.outcome.unseen},
        "quarantine": _quarantine(rows),
        "scan": _scan(rows),
    }


def choose_method(report: Mapping[str, Any]) -> Literal["sft", "dpo", "kto"]:
    """What ``auto`` trains with: of the methods that have enough, the one whose own feedback says most.

    Corrections weigh 8 ratings each and preferences 4. Raises TooLittleFeedback where no method has enough.
    """
    ready = [method for method in METHODS if report["methods"][method]["ready"]]
    if not ready:
        raise TooLittleFeedback("There is too little feedback to learn from. " + " ".join(_words(report, m) for m in METHODS))
    return cast(
        'Literal["sft", "dpo", "kto"]',
        max(ready, key=lambda method: (_WORTH[method] * report["rows"][method]["train"], -METHODS.index(method))),
    )


def missing(report: Mapping[str, Any], method: str) -> str:
    """What a method lacks, in words; empty where it has enough."""
    return "" if report["methods"][method]["ready"] else _words(report, method)


def _words(report: Mapping[str, Any], method: str) -> str:
    lacks = report["methods"][method]["missing"]
    return f"{method}: {', '.join(lacks)}." if lacks else f"{method}: enough."


def _method(method: str, rows: Iterable[Candidate], floors: Mapping[str, int]) -> dict[str, Any]:
    own = [row for row in rows if row.kind == method or (method == "dpo" and row.kind == "sft" and row.pair)]
    train = [row for row in own if row.split == "train"]
    held = [row for row in own if row.split == "heldout"]
    groups = len({row.group for row in held})
    lacks = _lack(len(train), floors[method], f"{_NAMES[method]} to train on")
    found: dict[str, Any] = {"train": len(train), "heldout": len(held), "heldout_groups": groups}
    if method == "kto":
        for name, label in (("up", True), ("down", False)):
            found[name] = sum(row.label is label for row in train)
            lacks += _lack(found[name], floors["kto_each"], f"ratings {name}")
    lacks += _lack(groups, floors["groups"], "prompts held out")
    return {**found, "ready": not lacks, "missing": lacks}


def _lack(count: int, floor: int, what: str) -> list[str]:
    return [] if count >= floor else [f"{floor - count} more {what} ({count} of {floor})"]


def _quarantine(rows: Iterable[Candidate]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for position, row in enumerate(rows):
        if row.split == "quarantined" and row.reason is not None:
            slug, words = row.reason
            entry = found.setdefault(slug, {"rows": 0, "examples": []})
            entry["rows"] += 1
            if len(entry["examples"]) < _SHOWN:
                entry["examples"].append({"position": position, "feedback_id": row.origin.feedback_id, "reason": words})
    return found


def _scan(rows: Iterable[Candidate]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for position, row in enumerate(rows):
        for kind, count in row.findings.items():
            entry = found.setdefault(kind, {"rows": 0, "found": 0, "positions": []})
            entry["rows"] += 1
            entry["found"] += count
            if len(entry["positions"]) < _SHOWN:
                entry["positions"].append(position)
    return found
