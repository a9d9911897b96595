"""``aprendiz feedback``: what users said about answers, as a list for people and as training rows for TRL."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import typer

from app.cli.context import load_config, opened, run
from app.cli.output import emit_json, public, say, table, when
from app.training.datasets import Format, rows

if TYPE_CHECKING:
    from app.core.records import FeedbackRecord
    from app.db.feedback import Feedback

app = typer.Typer(help="Feedback: list it, export it as training data.", no_args_is_help=True)

_CUT = 60
_PAGE = 500


@app.command("list")
def list_feedback(
    limit: int = typer.Option(50, "--limit", min=1, max=100_000, help="At most so many, newest first."),
    as_json: bool = typer.Option(False, "--json", help="JSON instead of a table; texts are not shortened."),
) -> None:
    """List the current feedback, newest first."""

    async def work() -> list[FeedbackRecord]:
        from app.db.feedback import Feedback

        async with opened(load_config().settings) as database:
            return await _pages(Feedback(database), limit)

    records = run(work())
    if as_json:
        emit_json([public(record, "checksum") for record in records])
        return
    rows = (
        (when(item.created_at), item.prediction_id, item.rating, _cut(item.correction), _cut(item.comment), ",".join(item.tags))
        for item in records
    )
    table(("TIME (UTC)", "PREDICTION", "RATING", "CORRECTION", "COMMENT", "TAGS"), rows)


@app.command()
def export(
    format: Format = typer.Option(..., "--format", help="sft: corrected answers; dpo: pairs; kto: ratings."),
    output: Path | None = typer.Option(None, "--output", "-o", help="File to write; stdout unless told."),
) -> None:
    """Write training rows as JSON lines that TRL reads."""

    async def work(file: TextIO) -> int:
        from app.db.feedback import Feedback

        async with opened(load_config().settings) as database:
            return await _export(Feedback(database), format, file)

    if output is None:
        count = run(work(sys.stdout))
    else:
        with output.open("w", encoding="utf-8") as file:
            count = run(work(file))
    say(f"{count} {format} row(s).")


async def _export(feedback: Feedback, format: Format, file: TextIO) -> int:
    count = 0
    async for triple in feedback.export():
        for row in rows([triple], format):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


async def _pages(feedback: Feedback, limit: int) -> list[FeedbackRecord]:
    found: list[FeedbackRecord] = []
    while len(found) < limit:
        wanted = min(_PAGE, limit - len(found))
        page = await feedback.list(limit=wanted, after=found[-1].id if found else None)
        found += page
        if len(page) < wanted:
            break
    return found


def _cut(text: str | None) -> str:
    if text is None or len(text) <= _CUT:
        return text or ""
    return text[:_CUT] + "…"
