"""``aprendiz feedback review``: what waits for an admin, shown one after another, or decided by id from a script.

Texts are printed with their control characters escaped: a correction must not move the cursor of who judges it.
"""

from __future__ import annotations

import difflib
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from app.cli.context import audit, load_config, opened, run
from app.cli.output import EXIT_USAGE, emit_json, public, say, stdout_console, visible, visible_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.text import Text

    from app.core.records import ReviewStatus
    from app.db.database import Database
    from app.db.feedback import Queued

_KEYS = "a approve, e edit, r reject, s skip, q quit"
_PAGE = 20
_MOST_PAIRS = 100_000
"""Lines of the one times lines of the other: comparing takes the square and more of them, and who corrects chooses how many."""


def review(
    as_json: bool = typer.Option(False, "--json", help="List what waits as JSON, and ask nothing."),
    approve: list[str] = typer.Option([], "--approve", metavar="ID", help="Approve this feedback; may be repeated."),
    reject: list[str] = typer.Option([], "--reject", metavar="ID", help="Reject this feedback; may be repeated."),
    limit: int = typer.Option(100, "--limit", min=1, max=10_000, help="At most so many."),
) -> None:
    """Approve, edit or reject what waits for a reviewer before it trains."""

    async def work() -> None:
        async with opened(load_config().settings) as database:
            if approve or reject:
                for feedback_id in approve:
                    await _decide(database, feedback_id, "approved")
                for feedback_id in reject:
                    await _decide(database, feedback_id, "rejected")
                return
            waiting = await _queue(database, limit)
            if as_json:
                emit_json([_as_json(item) for item in waiting])
                return
            if not sys.stdin.isatty():
                say("There is nobody to ask: use --json, --approve ID or --reject ID.")
                raise typer.Exit(EXIT_USAGE)
            await _ask(database, waiting)

    run(work())


async def _queue(database: Database, limit: int) -> list[Queued]:
    from app.db.feedback import Feedback

    found: list[Queued] = []
    while len(found) < limit:
        page = await Feedback(database).queue(limit=min(_PAGE, limit - len(found)), after=found[-1][0].id if found else None)
        found += page
        if not page:
            break
    return found


async def _decide(database: Database, feedback_id: str, decision: ReviewStatus, edited: str | None = None) -> None:
    """Stores a decision, with a line in the audit log. Raises NotFound, Conflict."""
    from app.db.feedback import Feedback

    record, changed = await Feedback(database).review(
        feedback_id, decision, edited=edited, reviewer=None, now=datetime.now(UTC)
    )
    if changed:
        await audit(database, "feedback.review", record.id, decision=decision if edited is None else "edit")
    say(f"{record.id}: {record.review}" + ("" if changed else " (as before)"))


async def _ask(database: Database, waiting: list[Queued]) -> None:
    from app.core.errors import AprendizError

    if not waiting:
        say("Nothing waits for a review.")
    for number, item in enumerate(waiting, 1):
        stdout_console().print(_shown(item, f"{number} of {len(waiting)}"))
        key = typer.prompt(_KEYS, default="s", err=True).strip().lower()[:1]
        try:
            if key == "q":
                return
            if key == "a":
                await _decide(database, item[0].id, "approved")
            elif key == "r":
                await _decide(database, item[0].id, "rejected")
            elif key == "e":
                await _edit(database, item)
        except AprendizError as error:
            say(error.detail)


async def _edit(database: Database, item: Queued) -> None:
    from prompt_toolkit import PromptSession

    from app.core.text import check_not_binary, check_text
    from app.training.importers import MAX_TEXT

    if item[0].correction is None:
        say("There is no correction to edit.")
        return
    say("Change it; Esc and then Enter ends, Ctrl-C gives up.")
    session: PromptSession[str] = PromptSession(multiline=True)
    try:
        text = await session.prompt_async("", default=item[0].edited or item[0].correction)
    except (KeyboardInterrupt, EOFError):
        text = ""
    if not text.strip():
        say("Nothing was changed.")
        return
    edited = check_not_binary(check_text(text.rstrip("\n"), field="correction", limit=MAX_TEXT), field="correction")
    await _decide(database, item[0].id, "approved", edited)


def _shown(item: Queued, place: str) -> Text:
    from rich.text import Text

    from app.training.datasets import prompt_of
    from app.training.scan import scan

    record, prediction, other, reason = item
    text = Text(f"\n{place}  {record.id}  by {visible(record.rater)}\n", style="bold")
    if reason:
        text.append(f"set aside: {visible(reason)}\n", style="yellow")
    if found := scan("\n".join([record.correction or "", prediction.output])):
        text.append(f"found: {', '.join(sorted(found))}\n", style="yellow")
    for turn in (prompt_of(prediction) or [{"role": "prompt", "content": "(holds more than text)"}])[-4:]:
        text.append(f"{turn['role']}: ", style="dim")
        text.append(f"{visible_lines(turn['content'])}\n")
    if record.rating:
        text.append(f"rated {record.rating}\n", style="bold")
    if record.correction is None:
        text.append(f"{visible_lines(prediction.output)}\n")
    else:
        for line in _changes(prediction.output.splitlines(), record.correction.splitlines()):
            text.append(f"{visible(line)}\n", style={"+": "green", "-": "red"}.get(line[:1], ""))
    if other is not None:
        text.append("preferred over: ", style="dim")
        text.append(f"{visible_lines(other.output)}\n")
    return text


def _changes(before: list[str], after: list[str]) -> Iterator[str]:
    """What changed, line by line: ``- `` gone, ``+ `` new, two spaces for the same."""
    if len(before) * len(after) > _MOST_PAIRS:
        yield from (f"- {line}" for line in before)
        yield from (f"+ {line}" for line in after)
        return
    for kind, low, high, start, end in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        yield from (f"  {line}" if kind == "equal" else f"- {line}" for line in before[low:high])
        yield from (f"+ {line}" for line in after[start:end] if kind != "equal")


def _as_json(item: Queued) -> dict[str, Any]:
    record, prediction, other, reason = item
    return {
        **public(record, "checksum", "review_checksum"),
        "messages": prediction.input.get("messages"),
        "answer": prediction.output,
        "other_answer": None if other is None else other.output,
        "reason": reason,
    }
