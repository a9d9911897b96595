"""Feedback of other programs, as records of ours: then lineage, review and erasure hold for it as for any other.

| format | file |
|---|---|
| ``openwebui`` | Open WebUI: the JSON of *Evaluations, Feedbacks, Export*, with the chat of each feedback |
| ``langfuse`` | Langfuse: scores with the traces or observations they are about; JSON, JSON lines or CSV, in any order |
| ``tensorzero`` | TensorZero: rows of ChatInference and of its feedback tables as JSON lines, in any order |
| ``trl`` | TRL's JSONL, see `app.training.rowfiles` |

What cannot be imported soundly is passed over and counted with its reason. It calls no other program, and it takes over no
names: a rater is ``import:<format>:<hash>``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from app.core.errors import InvalidRequest
from app.core.ids import uuid7
from app.core.records import FeedbackRecord, PredictionRecord
from app.core.text import check_not_binary, check_text
from app.training.datasets import IMPORTED
from app.training.foreign import MAX_IMPORT_BYTES, Item, Skipped, langfuse, openwebui, tensorzero, trl
from app.training.foreign_values import records
from app.training.rowfiles import MAX_ROWS

ImportFormat = Literal["openwebui", "langfuse", "tensorzero", "trl"]
Bundle = tuple[tuple[PredictionRecord, ...], FeedbackRecord]
"""A feedback with the predictions it needs."""

MAX_TEXT: Final = 5000
"""Characters of a correction or comment, as of any other feedback."""
MAX_ANSWER: Final = 1 << 20
_BATCH: Final = 200
_SHOWN: Final = 20
_READERS: Final = {"openwebui": openwebui, "langfuse": langfuse, "tensorzero": tensorzero, "trl": trl}


class ImportStore(Protocol):
    """What is used of `app.db.feedback.Feedback`."""

    async def add_imported(self, bundles: Sequence[Bundle]) -> int: ...


@dataclass(slots=True)
class ImportReport:
    """What became of an import. ``already``: was imported before; ``examples``: the first rows passed over, with reasons."""

    read: int = 0
    stored: int = 0
    already: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def skip(self, row: int, reason: str) -> None:
        """Counts a row that was passed over."""
        self.skipped[reason] += 1
        if len(self.examples) < _SHOWN:
            self.examples.append({"row": row, "reason": reason})

    def as_json(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {
            "read": self.read,
            "stored": self.stored,
            "already": self.already,
            "skipped": dict(self.skipped),
            "examples": self.examples,
        }


async def import_feedback(
    paths: Sequence[Path],
    format: ImportFormat,
    *,
    store: ImportStore,
    owner: str,
    review: Literal["approved", "pending"],
    on_progress: Callable[[int], None] | None = None,
) -> ImportReport:
    """Imports files that belong together. Importing the same again adds nothing.

    Args:
        owner: id of the admin to whom the predictions belong.
        review: whether it may train at once, or waits in the queue.
        on_progress: hears the number of rows read so far.

    Raises:
        InvalidRequest: no such file, or not of that format; nothing is stored then. What the store raises; what was stored by
            then stays.
    """
    report = ImportReport()
    now = datetime.now(UTC)
    found = await asyncio.to_thread(lambda: _items(paths, format, report))
    while batch := await asyncio.to_thread(lambda: list(islice(found, _BATCH))):
        bundles = await asyncio.to_thread(
            lambda batch=batch: [_bundle(item, format, owner, review, now) for item in batch]  # type: ignore[misc]
        )
        stored = await store.add_imported(bundles)
        report.stored += stored
        report.already += len(bundles) - stored
        if on_progress is not None:
            on_progress(report.read)
    return report


def _items(paths: Sequence[Path], format: ImportFormat, report: ImportReport) -> Iterator[Item]:
    """The items of all files, checked; fills in the report's counts as it goes."""
    size = sum(path.stat().st_size for path in paths if path.is_file())
    if size > MAX_IMPORT_BYTES:
        raise InvalidRequest(f"An import may have at most {MAX_IMPORT_BYTES >> 20} MB.", field="file")
    # Read to the end before anything is stored: a file that is broken further down is refused whole.
    for count, _ in enumerate((value for path in paths for value in records(path)), 1):
        if count > MAX_ROWS:
            raise InvalidRequest(f"An import may have at most {MAX_ROWS} rows.", field="file")

    def counted() -> Iterator[tuple[int, Any]]:
        for path in paths:
            for value in records(path):
                report.read += 1
                yield report.read, value

    for number, found in _READERS[format](counted()):
        try:
            if isinstance(found, Skipped):
                report.skip(number, found.reason)
            else:
                yield _checked(found)
        except InvalidRequest as error:
            report.skip(number, f"{error.field or 'text'} cannot be taken")


def _checked(item: Item) -> Item:
    """The item itself. Raises InvalidRequest for texts that feedback given here may not hold either."""
    for name in ("correction", "comment"):
        value = getattr(item, name)
        if value is not None:
            check_not_binary(check_text(value, field=name, limit=MAX_TEXT), field=name)
    for name in ("answer", "worse"):
        check_text(getattr(item, name) or "", field=name, limit=MAX_ANSWER, allow_blank=True, prompt=True)
    for message in item.messages:
        check_text(message["content"], field="prompt", limit=MAX_ANSWER, allow_blank=True, prompt=True)
    if sum(len(message["content"]) for message in item.messages) > MAX_ANSWER:
        raise InvalidRequest("The prompt is too long.", field="prompt")
    return item


def _bundle(item: Item, format: str, owner: str, review: Literal["approved", "pending"], now: datetime) -> Bundle:
    said = (item.messages, item.answer, item.worse, item.rating, item.correction, item.comment, item.author, item.key)
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    prediction = _prediction(item, item.answer, owner, now)
    worse = None if item.worse is None else _prediction(item, item.worse, owner, now)
    approved = review == "approved"
    feedback = FeedbackRecord(
        id=uuid7(),
        prediction_id=prediction.id,
        rater=f"{IMPORTED}{format}:{hashlib.sha256(item.author.encode('utf-8', 'replace')).hexdigest()[:32]}",
        created_at=item.at or now,
        user_id=None,
        rating=item.rating,
        correction=item.correction,
        preferred_over=None if worse is None else worse.id,
        comment=item.comment,
        tags=item.tags,
        review=review,
        idempotency_key=key,
        reviewed_at=now if approved else None,
        reviewed_by=owner if approved else None,
    )
    return (prediction,) if worse is None else (prediction, worse), feedback


def _prediction(item: Item, answer: str, owner: str, now: datetime) -> PredictionRecord:
    return PredictionRecord(
        id=uuid7(),
        user_id=owner,
        created_at=item.at or now,
        provider="import",
        model=item.model[:200] or "unknown",
        version="import",
        input={"messages": list(item.messages), "sampling": {}},
        output=answer,
        finish_reason="stop",
        prompt_tokens=0,
        completion_tokens=0,
        queue_ms=0.0,
        first_token_ms=None,
        total_ms=0.0,
    )
