"""``aprendiz feedback``: what users said about answers: list, export, import; for reviewing it see `app.cli.review`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

import typer

from app.cli.context import audit, load_config, opened, run, user_named
from app.cli.output import emit_json, public, say, stderr_console, table, when
from app.cli.review import review
from app.training.datasets import Format, Review, rows

if TYPE_CHECKING:
    from app.core.records import FeedbackRecord, UserRecord
    from app.db.database import Database
    from app.db.feedback import Feedback
    from app.training.importers import ImportReport

app = typer.Typer(help="Feedback: list it, review it, export it as training data, import it.", no_args_is_help=True)
app.command()(review)

ImportName = Literal["openwebui", "langfuse", "tensorzero", "trl"]
ImportReview = Literal["pending", "approved"]

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

        settings = load_config().settings
        async with opened(settings) as database:
            return await _export(Feedback(database), format, settings.training.review, file)

    if output is None:
        count = run(work(sys.stdout))
    else:
        with output.open("w", encoding="utf-8") as file:
            count = run(work(file))
    say(f"{count} {format} row(s).")


@app.command("import")
def import_files(
    files: list[Path] = typer.Argument(..., help="Files that belong together, such as scores and their traces."),
    format: ImportName = typer.Option(..., "--format", help="Which program's."),
    review: ImportReview = typer.Option(
        "pending", "--review", help="pending: it waits for a reviewer; approved: it may train at once."
    ),
    owner: str | None = typer.Option(None, "--owner", help="The admin whom it will belong to; needed where there are several."),
    as_json: bool = typer.Option(False, "--json", help="The report as JSON."),
) -> None:
    """Import feedback of another program; the same files again add nothing."""

    async def work() -> ImportReport:
        from app.db.feedback import Feedback
        from app.training.importers import import_feedback

        async with opened(load_config().settings) as database:
            admin = await _owner(database, owner)
            with stderr_console().status("reading") as status:
                report = await import_feedback(
                    files,
                    format,
                    store=Feedback(database),
                    owner=admin.id,
                    review=review,
                    on_progress=lambda count: status.update(f"{count} rows read"),
                )
            await audit(database, "feedback.import", format, review=review, stored=report.stored, owner=admin.id)
            return report

    report = run(work())
    if as_json:
        emit_json(report.as_json())
        return
    say(f"{report.stored} stored, {report.already} imported before, {sum(report.skipped.values())} passed over.")
    if report.skipped:
        table(("ROWS", "PASSED OVER BECAUSE"), [(count, reason) for reason, count in report.skipped.most_common()])
    if report.stored and review == "pending":
        say("They wait for a review: aprendiz feedback review")


async def _owner(database: Database, name: str | None) -> UserRecord:
    """The admin named, or the only one. Raises NotFound, InvalidRequest."""
    from app.core.errors import InvalidRequest
    from app.db.users import Users

    if name is not None:
        user = await user_named(database, name)
        if user.role != "admin":
            raise InvalidRequest("Imported feedback must belong to an admin.", field="owner")
        return user
    admins = [user for user in await Users(database).list(limit=1000) if user.role == "admin"]
    if len(admins) != 1:
        raise InvalidRequest("Name the admin whom it will belong to: --owner NAME.", field="owner")
    return admins[0]


async def _export(feedback: Feedback, format: Format, review: Review, file: TextIO) -> int:
    count = 0
    async for triple in feedback.export():
        for row in rows([triple], format, review):
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
