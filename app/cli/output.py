"""What a person sees: tables and JSON on stdout, notes and failures on stderr. Knows no command and no database.

Colour and borders only decorate: every word stands there without them. Text that came from users is printed with its control
characters escaped, so that a name cannot move the cursor or fake a line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from app.core.text import visible as escaped

if TYPE_CHECKING:
    from rich.console import Console

EXIT_FAILURE = 1
EXIT_USAGE = 2

_PIPE_WIDTH = 1000


def visible(value: object) -> str:
    """``value`` as text on one line, see `app.core.text.visible`."""
    return escaped("" if value is None else str(value))


def visible_lines(value: str) -> str:
    """As `visible`, but newlines and tabs stay: for answers of several lines."""
    return escaped(value, keep="\n\t")


def stdout_console() -> Console:
    """Rich on stdout. Piped output gets no colour and is not wrapped."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def stderr_console() -> Console:
    """Rich on stderr, for progress bars and notes."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """A note for the person, on stderr."""
    print(visible_lines(text), file=sys.stderr)  # noqa: T201


def data(text: str) -> None:
    """One line of data on stdout."""
    print(text)  # noqa: T201


def emit_json(value: object) -> None:
    """``value`` as JSON on stdout: dataclasses become objects, times RFC 3339."""
    data(json.dumps(value, ensure_ascii=False, indent=2, default=_plain))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout, without borders, so that it also reads well in a pipe or an e-mail."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    view = Table(*columns, box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, show_edge=False)
    for row in rows:
        view.add_row(*(cell if isinstance(cell, Text) else Text(visible(cell)) for cell in row))
    console = stdout_console()
    if console.is_terminal:
        console.print(view)
        return
    with console.capture() as text:
        console.print(view)
    data("\n".join(line.rstrip() for line in text.get().splitlines()))


def when(moment: datetime | None) -> str:
    """A time as people read it, in UTC to the minute; empty for None."""
    return "" if moment is None else moment.strftime("%Y-%m-%d %H:%M")


def public(record: object, *hidden: str) -> dict[str, Any]:
    """A record as a mapping for ``--json``, without the fields named (hashes of secrets)."""
    if not is_dataclass(record) or isinstance(record, type):
        raise TypeError("a record is a dataclass instance")
    return {name: value for name, value in asdict(record).items() if name not in hidden}


def confirm(question: str, *, yes: bool) -> None:
    """Asks before something that cannot be taken back. Without a terminal, ``--yes`` is needed.

    Raises:
        typer.Exit: the person said no (1), or there is nobody to ask (2).
    """
    import typer

    if yes:
        return
    if not sys.stdin.isatty():
        say(f"{question}: pass --yes to confirm.")
        raise typer.Exit(EXIT_USAGE)
    if not typer.confirm(question, err=True):
        say("Nothing was changed.")
        raise typer.Exit(EXIT_FAILURE)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)
