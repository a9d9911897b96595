"""``aprendiz memory``: what a running service remembers of a person: list, add, keep, edit, delete, clear.

It asks the service over HTTP as that person and sees only what is theirs: an operator reads nobody's facts with it unless they
have that person's credential, or the data directory, where everything lies.
"""

from __future__ import annotations

import asyncio
from typing import Any

import typer

from app.cli.output import confirm, emit_json, say, table

app = typer.Typer(name="memory", help="What a running service remembers of you.", no_args_is_help=True)

URL = typer.Option(None, "--url", help="Address of the service; unless told, this machine's, from the settings.")
KEY = typer.Option(None, "--key", help="API key; better given as APRENDIZ_API_KEY: process lists show this.")
USER = typer.Option("", "--user", help="On this machine, without a key: as this user.")
_PAGE = 500


@app.command("list")
def list_facts(
    proposed: bool = typer.Option(False, "--proposed", help="Only what waits for your yes."),
    as_json: bool = typer.Option(False, "--json", help="As JSON."),
    url: str | None = URL,
    key: str | None = KEY,
    user: str = USER,
) -> None:
    """List what is remembered of you, newest first, and what was proposed."""
    found = asyncio.run(_all("&state=proposed" if proposed else "", url=url, key=key, user=user))
    if as_json:
        emit_json(found)
        return
    table(
        ("id", "state", "since", "fact"), ((each["id"], each["state"], each["created_at"][:10], each["text"]) for each in found)
    )


@app.command()
def add(
    text: str = typer.Argument(..., help="One statement, at most 500 characters."),
    url: str | None = URL,
    key: str | None = KEY,
    user: str = USER,
) -> None:
    """Have something remembered."""
    made = asyncio.run(_call("POST", "", {"text": text}, url=url, key=key, user=user))
    say(f"{made['id']}: kept")


@app.command()
def keep(
    fact_id: str = typer.Argument(..., help="Of a proposal."), url: str | None = URL, key: str | None = KEY, user: str = USER
) -> None:
    """Agree to have a proposal remembered."""
    asyncio.run(_call("PATCH", f"/{_id(fact_id)}", {"state": "kept"}, url=url, key=key, user=user))
    say(f"{fact_id}: kept")


@app.command()
def edit(
    fact_id: str = typer.Argument(..., help="Of a fact or a proposal."),
    text: str = typer.Argument(..., help="What it shall say."),
    url: str | None = URL,
    key: str | None = KEY,
    user: str = USER,
) -> None:
    """Change the words of a fact."""
    asyncio.run(_call("PATCH", f"/{_id(fact_id)}", {"text": text}, url=url, key=key, user=user))
    say(f"{fact_id}: changed")


@app.command()
def delete(
    fact_id: str = typer.Argument(..., help="Of a fact, or of a proposal that you refuse."),
    url: str | None = URL,
    key: str | None = KEY,
    user: str = USER,
) -> None:
    """Have one forgotten; it is not proposed again for 30 days."""
    asyncio.run(_call("DELETE", f"/{_id(fact_id)}", url=url, key=key, user=user))
    say(f"{fact_id}: deleted")


@app.command()
def clear(
    yes: bool = typer.Option(False, "--yes", help="Do not ask."), url: str | None = URL, key: str | None = KEY, user: str = USER
) -> None:
    """Have everything forgotten, proposals too."""
    confirm("Delete all that is remembered of you?", yes=yes)
    asyncio.run(_call("DELETE", "", url=url, key=key, user=user))
    say("Nothing is remembered of you any more.")


async def _call(
    method: str, path: str, body: dict[str, Any] | None = None, *, url: str | None, key: str | None, user: str
) -> Any:
    from app.cli.credential import connected

    async with connected(url=url, key=key, user=user, purpose="aprendiz memory", scopes=("predict", "read")) as client:
        return await client.send(method, f"/memory{path}", body)


async def _all(query: str, *, url: str | None, key: str | None, user: str) -> list[dict[str, Any]]:
    from app.cli.credential import connected

    found: list[dict[str, Any]] = []
    async with connected(url=url, key=key, user=user, purpose="aprendiz memory", scopes=("predict", "read")) as client:
        after = ""
        while True:
            page = await client.get(f"/memory?limit={_PAGE}{query}{after}")
            found += page["facts"]
            if page["next"] is None:
                return found
            after = f"&after={page['next']}"


def _id(text: str) -> str:
    """An id as it stands in a path. Raises InvalidRequest for what is none, before anything is sent."""
    from app.core.errors import InvalidRequest
    from app.core.ids import is_uuid7

    if not is_uuid7(text):
        raise InvalidRequest("That is no id of a fact; `aprendiz memory list` shows them.", field="fact_id")
    return text
