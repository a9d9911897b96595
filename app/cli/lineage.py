"""``aprendiz train lineage``: what is behind an answer or a version, and where a person's data went. Reads the database."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer

from app.cli.context import load_config, opened, run, user_named
from app.cli.output import EXIT_USAGE, emit_json, say


def lineage(
    prediction: str | None = typer.Option(None, "--prediction", help="From this answer to the feedback behind it."),
    version: str | None = typer.Option(None, "--version", help="From this version to the feedback behind it."),
    user: str | None = typer.Option(None, "--user", help="From this person (name or id) to what was trained on their data."),
) -> None:
    """Show, as JSON, what is behind an answer or a version, or where a person's data went. Ids and counts, no texts."""
    if sum(each is not None for each in (prediction, version, user)) != 1:
        say("Give one of --prediction, --version and --user.")
        raise typer.Exit(EXIT_USAGE)

    async def work() -> Any:
        from app.db.erased import Erased
        from app.db.predictions import Predictions
        from app.db.runs import Canaries, Runs
        from app.db.snapshots import Snapshots
        from app.db.versions import Aliases, Versions
        from app.training.lineage import Lineage
        from app.training.serving import Stored

        async with opened(load_config().settings) as database:
            found = Lineage(
                predictions=Predictions(database),
                snapshots=Snapshots(database),
                runs=Runs(database),
                versions=Versions(database),
                people=Erased(database),
                serving=Stored(Aliases(database), Canaries(database)),
            )
            if prediction is not None:
                return await found.of_prediction(prediction)
            if version is not None:
                return await found.of_version(version)
            return await found.of_person((await user_named(database, str(user))).id)

    emit_json(asdict(run(work())))
