"""``aprendiz docs``: one's documents at the running service: add, search, list, show, delete, index again. All over HTTP.

It sends files as they are and reads none of them: what is in a file is the service's matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import typer

from app.cli.context import quiet_logs
from app.cli.output import (
    EXIT_FAILURE,
    EXIT_USAGE,
    confirm,
    data,
    emit_json,
    say,
    stderr_console,
    table,
    visible,
    visible_lines,
)

if TYPE_CHECKING:
    from app.cli.client import ServiceClient

app = typer.Typer(help="Documents: add, search, list, show, delete, reindex.", no_args_is_help=True)

URL = typer.Option(None, "--url", help="Address of the service; unless told, this machine's, from the settings.")
KEY = typer.Option(None, "--key", help="API key; better given as APRENDIZ_API_KEY: process lists show this.")
USER = typer.Option("", "--user", help="On this machine, without a key: as this user.")
JSON = typer.Option(False, "--json", help="JSON instead of a table.")
COLLECTION = typer.Option(None, "--collection", "-c", help="Of this collection alone.")
DOCUMENT = typer.Argument(metavar="DOCUMENT", help="Its id, as `docs list` shows it.")

SUFFIXES: Final = (".txt", ".text", ".md", ".markdown", ".html", ".htm", ".pdf", ".docx", ".csv", ".tsv")
"""Files of a folder that are sent; a file that is named itself is sent whatever it is called."""
_MOST_FILES: Final = 10_000
_POLL_S: Final = 0.3
_BUSY_S: Final = 300.0
_ENDED: Final = ("ready", "failed")

T = TypeVar("T")
Tell = Callable[[str, float], None]


@app.command()
def add(
    paths: list[Path] = typer.Argument(..., help="Files, or folders with files."),
    collection: str = typer.Option("default", "--collection", "-c", help="Where to: a-z, 0-9, dot, hyphen, underscore."),
    detach: bool = typer.Option(False, "--detach", "-d", help="Leave when they are sent; they are indexed in the background."),
    as_json: bool = JSON,
    url: str | None = URL,
    key: str | None = KEY,
    user: str = USER,
) -> None:
    """Upload documents (txt, md, html, pdf, docx, csv) and wait until they are indexed."""
    files, skipped = _files(paths)
    if not files:
        _tell_skipped(skipped)
        say("There is nothing to send.")
        raise typer.Exit(EXIT_USAGE)

    async def work(client: ServiceClient) -> list[dict[str, Any]]:
        with _progress(len(files)) as tell:
            sent = [await _send(client, file, collection, tell, at / len(files)) for at, file in enumerate(files)]
        if not detach:
            with _progress(len(files)) as tell:
                await _indexed(client, sent, tell)
        return sent

    results = _ask(work, url=url, key=key, user=user)
    if as_json:
        emit_json(results)
    else:
        table(
            ("DOCUMENT", "STATE", "CHUNKS", "FILE", "NOTE"),
            [(each["id"], each["state"], each["chunks"], each["path"], _note(each)) for each in results],
        )
    _tell_skipped(skipped)
    if any(each["state"] in ("failed", "refused") for each in results):
        raise typer.Exit(EXIT_FAILURE)


@app.command()
def search(
    query: str = typer.Argument(..., help="A question, or words."),
    k: int = typer.Option(5, "-k", min=1, max=50, help="At most so many passages."),
    collection: str | None = COLLECTION,
    as_json: bool = JSON,
    url: str | None = URL,
    key: str | None = KEY,
    user: str = USER,
) -> None:
    """Search your documents by meaning and by words."""
    body = {"query": query, "k": k, **({} if collection is None else {"collection": collection})}
    found = _ask(lambda client: client.post("/documents/search", body), url=url, key=key, user=user)
    if as_json:
        emit_json(found)
        return
    for hit in found["hits"]:
        data(f"{hit['score']:.2f}  {visible(place(hit['source']))}  ({hit['document_id']})")
        data("".join(f"      {line}\n" for line in visible_lines(hit["text"]).splitlines()))
    for note in found["notes"]:
        say(note)
    if not found["hits"]:
        say("Nothing was found.")


@app.command("list")
def list_documents(
    collection: str | None = COLLECTION,
    limit: int = typer.Option(100, "--limit", min=1, max=10_000, help="At most so many, newest first."),
    as_json: bool = JSON,
    url: str | None = URL,
    key: str | None = KEY,
    user: str = USER,
) -> None:
    """List your documents, newest first."""

    async def work(client: ServiceClient) -> list[dict[str, Any]]:
        return await _pages(client, collection, limit)

    found = _ask(work, url=url, key=key, user=user)
    if as_json:
        emit_json(found)
        return
    rows = [
        (each["id"], each["collection"], _state(each), each["chunks"], each["name"], each["created_at"][:16].replace("T", " "))
        for each in found
    ]
    table(("DOCUMENT", "COLLECTION", "STATE", "CHUNKS", "NAME", "ADDED (UTC)"), rows)


@app.command()
def show(
    document: str = DOCUMENT, as_json: bool = JSON, url: str | None = URL, key: str | None = KEY, user: str = USER
) -> None:
    """Show one document and how far its indexing is."""
    path = f"/documents/{_id(document)}"
    found = _ask(lambda client: client.get(path), url=url, key=key, user=user)
    if as_json:
        emit_json(found)
        return
    for name, value in found.items():
        shown = "; ".join(value) if isinstance(value, list) else value
        data(f"{name + ':':<13}{visible(shown)}")


@app.command()
def delete(
    documents: list[str] | None = typer.Argument(None, metavar="[DOCUMENT]...", help="Their ids."),
    collection: str | None = typer.Option(None, "--collection", "-c", help="Instead: this whole collection."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    url: str | None = URL,
    key: str | None = KEY,
    user: str = USER,
) -> None:
    """Delete documents with all that was made of them, or a whole collection."""
    from urllib.parse import quote

    if bool(documents) == (collection is not None):
        say("Name documents, or a collection with --collection.")
        raise typer.Exit(EXIT_USAGE)
    ids = [_id(each) for each in documents or ()]
    what = f"{len(ids)} document(s)" if collection is None else f"the collection {visible(collection)}"
    confirm(f"Delete {what}?", yes=yes)

    async def work(client: ServiceClient) -> int:
        if collection is not None:
            gone = await client.send("DELETE", f"/documents?collection={quote(collection, safe='')}")
            return int(gone["deleted"])
        for each in ids:
            await client.send("DELETE", f"/documents/{each}")
        return len(ids)

    say(f"{_ask(work, url=url, key=key, user=user)} document(s) deleted.")


@app.command()
def reindex(
    documents: list[str] = typer.Argument(..., metavar="DOCUMENT...", help="Their ids."),
    url: str | None = URL,
    key: str | None = KEY,
    user: str = USER,
) -> None:
    """Read and index documents again; until then they are found as they are."""
    ids = [_id(each) for each in documents]

    async def work(client: ServiceClient) -> list[dict[str, Any]]:
        again = [{**await client.post(f"/documents/{each}/reindex"), "path": each} for each in ids]
        with _progress(len(ids)) as tell:
            await _indexed(client, again, tell)
        return again

    failed = 0
    for each in _ask(work, url=url, key=key, user=user):
        say(f"{each['id']}: {each['state']} {_note(each)}".rstrip())
        failed += each["state"] == "failed"
    if failed:
        raise typer.Exit(EXIT_FAILURE)


def place(source: dict[str, Any]) -> str:
    """Where a hit stands, as people write it: ``manual.pdf, page 3``."""
    words = [f"{name} {source[name]}" for name in ("page", "section", "line", "row") if source.get(name) not in (None, "")]
    return ", ".join([source["name"], *words])


def _ask(work: Callable[[ServiceClient], Awaitable[T]], *, url: str | None, key: str | None, user: str) -> T:
    from app.cli.credential import connected

    async def inside() -> T:
        async with connected(url=url, key=key, user=user, purpose="aprendiz docs", scopes=("predict", "read")) as client:
            return await work(client)

    quiet_logs()
    return asyncio.run(inside())


def _files(paths: Sequence[Path]) -> tuple[list[Path], dict[str, int]]:
    """The files to send, each once, and how many of the folders' are not, by reason. Links in folders are not followed."""
    found: dict[Path, None] = {}
    skipped: dict[str, int] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = None
            continue
        for each in sorted(path.rglob("*")):
            if each.is_dir() and not each.is_symlink():
                continue
            reason = _why_not(each, each.relative_to(path))
            if reason is None and len(found) >= _MOST_FILES:
                reason = f"more than {_MOST_FILES} files"
            if reason is None:
                found[each] = None
            else:
                skipped[reason] = skipped.get(reason, 0) + 1
    return list(found), skipped


def _why_not(file: Path, inside: Path) -> str | None:
    """Why a file of a folder is not sent, or None."""
    if file.is_symlink():
        return "a link"
    if not file.is_file():
        return "not a file"
    if any(part.startswith(".") for part in inside.parts):
        return "hidden"
    if file.suffix.lower() not in SUFFIXES:
        return f"{visible(file.suffix.lower()) or 'no ending'}: not a format that is read"
    return None if file.stat().st_size else "empty"


async def _send(client: ServiceClient, file: Path, collection: str, tell: Tell, share: float) -> dict[str, Any]:
    """Uploads one file; what refuses it is noted, and the next is tried. Waits where too many are waiting already."""
    from app.core.errors import AprendizError, TooManyRequests, Unauthenticated, Unavailable

    tell(f"sending {file.name}", share)
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            with file.open("rb") as content:
                answer = await client.upload("/documents", content, name=file.name, fields={"collection": collection})
            return {**answer, "path": str(file)}
        except TooManyRequests as error:
            if time.monotonic() > until:
                return _refused(file, error.detail)
            await asyncio.sleep(error.retry_after or 1.0)
        except (Unauthenticated, Unavailable):
            raise
        except AprendizError as error:
            return _refused(file, error.detail)
        except OSError as error:
            return _refused(file, f"It cannot be read: {error.strerror or type(error).__name__}.")


def _refused(file: Path, why: str) -> dict[str, Any]:
    return {"id": None, "state": "refused", "chunks": None, "path": str(file), "error": why, "notes": []}


async def _indexed(client: ServiceClient, documents: list[dict[str, Any]], tell: Tell) -> None:
    """Waits until each is indexed or has failed, and puts what it then is in its place."""
    for at, each in enumerate(documents):
        while each["state"] not in (*_ENDED, "refused"):
            tell(f"indexing {each['name']}", (at + each["progress"]) / len(documents))
            await asyncio.sleep(_POLL_S)
            each |= await client.get(f"/documents/{each['id']}")
    tell("done", 1.0)


async def _pages(client: ServiceClient, collection: str | None, limit: int) -> list[dict[str, Any]]:
    from urllib.parse import quote

    found: list[dict[str, Any]] = []
    only, after = ("" if collection is None else f"&collection={quote(collection, safe='')}"), ""
    while len(found) < limit:
        page = await client.get(f"/documents?limit={min(500, limit - len(found))}{only}{after}")
        found += page["items"]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    return found


@contextlib.contextmanager
def _progress(count: int) -> Iterator[Tell]:
    """A bar on a terminal; elsewhere nothing, for what is left at the end says it all."""
    console = stderr_console()
    if not console.is_terminal:
        yield lambda label, share: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda label, share: bar.update(task, completed=share, description=visible(label)[:60])


def _state(document: dict[str, Any]) -> str:
    return f"indexing {document['progress']:.0%}" if document["state"] == "indexing" else str(document["state"])


def _note(document: dict[str, Any]) -> str:
    return str(document["error"]) if document.get("error") else " ".join(document.get("notes", ()))


def _tell_skipped(skipped: dict[str, int]) -> None:
    for reason, count in sorted(skipped.items()):
        say(f"Passed over: {count} ({reason})")


def _id(text: str) -> str:
    """An id as it stands in a path. Raises InvalidRequest for what is none, before anything is sent."""
    from app.core.errors import InvalidRequest
    from app.core.ids import is_uuid7

    if not is_uuid7(text):
        raise InvalidRequest("That is no id of a document; `aprendiz docs list` shows them.", field="document")
    return text
