"""The entry point ``aprendiz``: the tree of commands, and the one place where an error becomes a line and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. An error of ours is one line that says what to do; anything else
is a defect and shows its traceback, so that it can be reported.
"""

from __future__ import annotations

import os
import sys

import typer

from app.cli import bench, chat, config, db, demo, docs, doctor, feedback, keys, lineage, memory, models, serve, train, users
from app.cli.output import EXIT_FAILURE, data, say

INTERRUPTED = 130

app = typer.Typer(
    name="aprendiz",
    help="Aprendiz: a self-hosted LLM service that learns from its users.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        data(f"aprendiz {version('aprendiz')}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version and leave."),
) -> None:
    pass


app.command("serve")(serve.serve)
app.command("chat")(chat.chat)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.command("bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
    bench.bench
)
app.add_typer(config.app, name="config")
app.add_typer(users.app, name="users")
app.add_typer(keys.app, name="keys")
app.add_typer(feedback.app, name="feedback")
app.add_typer(docs.app, name="docs")
app.add_typer(memory.app, name="memory")
app.add_typer(models.app, name="models")
train.app.command("lineage")(lineage.lineage)
app.add_typer(train.app, name="train")
app.add_typer(db.app, name="db")


def main() -> None:
    """Runs the command line of this process and leaves with its exit code."""
    from app.core.errors import AprendizError

    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where a reader that has left can still be met
    except AprendizError as error:
        say(f"aprendiz: {error.detail}")
        sys.exit(EXIT_FAILURE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our stdout has left (`| head`); say nothing, also not when the interpreter flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILURE)


if __name__ == "__main__":
    main()
