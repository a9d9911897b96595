"""``aprendiz db``: migrate, back up and restore the database. How each is done is ``app.db``'s business."""

from __future__ import annotations

from pathlib import Path

import typer

from app.cli.context import load_config, quiet_logs
from app.cli.output import confirm, data, say, visible, when

app = typer.Typer(help="The database: upgrade, back up, restore.", no_args_is_help=True)


@app.command()
def upgrade() -> None:
    """Bring the database to the schema of this version. The service does the same when it starts."""
    from app.db import migrate

    quiet_logs()
    settings = load_config().settings
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    migrate.upgrade(settings)
    say(f"The database has the schema {migrate.head()}.")


@app.command("backup")
def make_backup(
    target: Path | None = typer.Argument(None, help="File or folder to write to; unless told, data directory/backups."),
) -> None:
    """Write a backup, also while the service runs, and print its path. Its SHA-256 lies beside it."""
    from app.db.backup import backup

    quiet_logs()
    info = backup(load_config().settings, target)
    data(str(info.path))
    say(f"{info.size_bytes} bytes, SHA-256 {info.sha256}.")


@app.command("restore")
def restore_backup(
    source: Path = typer.Argument(help="The backup, as `db backup` wrote it."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
) -> None:
    """Put a backup in the place of the database. Stop the service first; the replaced database is kept aside."""
    from app.db.backup import restore, verify

    quiet_logs()
    settings = load_config().settings
    found = verify(source)
    confirm(f"Replace the database in {visible(settings.data_dir)} by the backup of {when(found.created_at)} UTC?", yes=yes)
    info = restore(settings, source)
    say(f"Restored {info.path}.")
    if info.replaced is not None:
        say(f"The database that was there lies in {info.replaced}.")
