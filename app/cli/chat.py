"""``aprendiz chat``: talks to the running service, in a terminal or in a pipe. Keeps no transcript but the line history.

In a pipe, or with the message as an argument, only the answer goes to stdout; everything else goes to stderr.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from app.cli.context import quiet_logs
from app.cli.output import EXIT_FAILURE, say

if TYPE_CHECKING:
    from app.cli.conversation import Conversation


def chat(
    message: str | None = typer.Argument(None, help="Ask only this, print the answer and leave. Without it: a conversation."),
    model: str | None = typer.Option(None, "--model", help="Ask this model (an alias, or provider/name)."),
    url: str | None = typer.Option(None, "--url", help="Address of the service; unless told, the one in the settings."),
    key: str | None = typer.Option(None, "--key", help="API key; better given as APRENDIZ_API_KEY: process lists show this."),
    user: str = typer.Option("", "--user", help="On this machine, without a key: chat as this user."),
    memory: bool = typer.Option(False, "--memory", help="Recall the facts that you agreed to have kept, and propose new ones."),
    documents: str = typer.Option(
        "", "--documents", help="Answer from your documents: `all`, or names of collections with commas."
    ),
) -> None:
    """Talk to a model: streaming, with history, ratings (/good, /bad) and corrections (/fix)."""
    quiet_logs()
    if message is None and not sys.stdin.isatty():
        message = sys.stdin.read()
    if message is not None and not message.strip():
        say("There is no question on stdin.")
        raise typer.Exit(EXIT_FAILURE)
    recall: dict[str, Any] = {"memory": True} if memory else {}
    if documents:
        recall["documents"] = True if documents == "all" else [name.strip() for name in documents.split(",")]
    asyncio.run(_chat(message, model=model, url=url, key=key, user=user, recall=recall))


async def _chat(
    message: str | None, *, model: str | None, url: str | None, key: str | None, user: str, recall: Mapping[str, Any]
) -> None:
    from app.cli.conversation import Conversation
    from app.cli.credential import connected

    async with connected(
        url=url, key=key, user=user, purpose="aprendiz chat", scopes=("predict", "feedback", "read")
    ) as client:
        conversation = Conversation(client, model=model, recall=recall)
        if message is not None:
            await _answer_once(conversation, message)
        else:
            from app.cli.terminal import Terminal

            await Terminal(conversation, client.url).run()


async def _answer_once(conversation: Conversation, message: str) -> None:
    from app.cli.output import visible_lines

    # To a terminal only text may go; a file or a program gets the answer as it is.
    clean = visible_lines if sys.stdout.isatty() else str
    async for text in conversation.ask(message):
        sys.stdout.write(clean(text))
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if conversation.last is not None:
        for line in conversation.last.sources:
            say(line)
