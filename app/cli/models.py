"""``aprendiz models``: what lies in the data directory, and what the running service should load.

``list`` and ``pull`` work on files, also without a service; all others ask the service, over HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from app.cli.context import load_config, quiet_logs
from app.cli.output import EXIT_USAGE, data, emit_json, say, stderr_console, table, visible

if TYPE_CHECKING:
    from pathlib import Path

    from app.core.settings import Settings
    from app.models.local import Progress
    from app.models.pull import Pulled

app = typer.Typer(help="Models: list, pull, load, reload, promote, canary, rollback.", no_args_is_help=True)

URL = typer.Option(None, "--url", help="Address of the service; unless told, this machine's, from the settings.")
KEY = typer.Option(None, "--key", help="An admin's API key; better given as APRENDIZ_API_KEY.")

_WORDS = {
    "wait": "another process fetches it; waiting",
    "download": "downloading",
    "unpack": "unpacking",
    "copy": "copying",
    "convert": "converting",
    "verify": "checking the SHA-256",
    "done": "done",
}


@app.command("list")
def list_models(as_json: bool = typer.Option(False, "--json", help="JSON instead of a table.")) -> None:
    """List the models that are here, and those that `models pull` knows by name."""
    from app.models.catalogue import catalogue
    from app.models.local import list_models as installed

    here = {item.name: item for item in installed(load_config().settings.data_dir / "models")}
    known = catalogue()
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "here": name in here,
            "bytes": here[name].bytes if name in here else known[name].bytes,
            "sha256": here[name].sha256 if name in here else known[name].sha256,
            "licence": (here[name].licence if name in here else known[name].licence) or "",
            "source": here[name].source if name in here else f"package:{known[name].package}",
        }
        for name in sorted({*here, *known})
    ]
    if as_json:
        emit_json(found)
        return
    rows = (
        (item["name"], "here" if item["here"] else "can be pulled", megabytes(item["bytes"]), item["licence"], item["source"])
        for item in found
    )
    table(("NAME", "STATE", "SIZE", "LICENCE", "SOURCE"), rows)


@app.command("pull")
def pull_model(
    what: str = typer.Argument(
        "", help="A catalogue name, a GGUF file, a folder, owner/name of a hub, or an https:// address."
    ),
    name: str | None = typer.Option(None, "--name", help="What to call it here."),
    sha256: str | None = typer.Option(None, "--sha256", help="What the file's hash must be; needed for an address."),
    configured: bool = typer.Option(False, "--configured", help="Model and embedder of the settings, if known."),
) -> None:
    """Fetch a model, check its SHA-256, and print its path. A download that broke off goes on where it stopped."""
    from app.models.pull import pull

    quiet_logs()
    settings = load_config().settings
    if configured:
        pull_configured(settings)
        return
    if not what:
        say("Name a model; `aprendiz models list` shows those that are known.")
        raise typer.Exit(EXIT_USAGE)
    with _progress(what) as tell:
        pulled = pull(what, _models_dir(settings), tell, name=name, sha256=sha256)
    _tell_pulled(pulled)
    data(str(pulled.path))


def pull_configured(settings: Settings) -> None:
    """Fetches the model and the embedder that the settings name, where the catalogue has them and they are not here; else does
    and says nothing."""
    for wanted in (missing_model(settings), missing_embedder(settings)):
        if wanted is not None:
            pull_known(wanted, settings)


def pull_known(wanted: str, settings: Settings) -> None:
    """Fetches a model of the catalogue and says so."""
    from app.models.pull import pull

    with _progress(wanted) as tell:
        pulled = pull(wanted, _models_dir(settings), tell)
    _tell_pulled(pulled)


def missing_model(settings: Settings) -> str | None:
    """The configured model, if it can be pulled and is not here."""
    return _missing("llamacpp", f"{settings.model.provider}/{settings.model.model}", settings)


def missing_embedder(settings: Settings) -> str | None:
    """The configured embedder, if it can be pulled and is not here."""
    return _missing("onnx", settings.memory.embedder, settings)


def _missing(provider: str, public_name: str, settings: Settings) -> str | None:
    from app.models.catalogue import catalogue
    from app.models.local import list_models as installed

    kind, _, wanted = public_name.partition("/")
    if kind != provider or wanted not in catalogue():
        return None
    # Its hash is checked when it is loaded; here only a missing model costs time.
    return None if any(item.name == wanted for item in installed(settings.data_dir / "models")) else wanted


def _models_dir(settings: Settings) -> Path:
    folder = settings.data_dir / "models"
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def _tell_pulled(pulled: Pulled) -> None:
    manifest = pulled.manifest
    licence = f", licence {manifest.licence}" if manifest.licence else ""
    state = "is here" if pulled.fresh else "was here already"
    say(f"{visible(pulled.name)} {state}: {megabytes(manifest.bytes)}, SHA-256 checked{licence}.")


@contextlib.contextmanager
def _progress(label: str) -> Iterator[Progress]:
    """A progress bar on a terminal; elsewhere one line for each phase."""
    if not sys.stderr.isatty():
        yield _lines(label)
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr_console(), transient=True) as bar:
        task = bar.add_task(visible(label), total=None)

        def tell(done: int, total: int | None, phase: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{visible(label)}: {_WORDS.get(phase, phase)}")

        yield tell


def _lines(label: str) -> Progress:
    last = ""

    def tell(done: int, total: int | None, phase: str) -> None:
        nonlocal last
        if phase != last:
            last = phase
            size = f" ({megabytes(total)})" if total and phase == "download" else ""
            say(f"{visible(label)}: {_WORDS.get(phase, phase)}{size}")

    return tell


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


@app.command()
def load(
    name: str = typer.Argument(metavar="PROVIDER/MODEL", help="As llamacpp/smollm2-135m-instruct or hf/gpt2."),
    device: str = typer.Option("auto", "--device", help="auto, cpu, cuda or mps."),
    url: str | None = URL,
    key: str | None = KEY,
) -> None:
    """Make the running service load a model and use it as the default; the old one serves until then."""
    provider, slash, model = name.partition("/")
    if not slash or not model:
        say("Name the model as PROVIDER/MODEL, for example llamacpp/smollm2-135m-instruct.")
        raise typer.Exit(EXIT_USAGE)
    answer = asyncio.run(_post("/model", {"provider": provider, "model": model, "device": device}, url=url, key=key))
    _report(answer)


@app.command("reload")
def reload_model(url: str | None = URL, key: str | None = KEY) -> None:
    """Make the running service load its default model again, without a dropped answer."""
    _report(asyncio.run(_post("/model/reload", None, url=url, key=key)))


@app.command()
def promote(
    version: str = typer.Argument(help="An id of a version, 16 hex digits; `GET /model/versions` lists them."),
    share: float | None = typer.Option(None, "--share", help="Start a canary with this share of the sessions, 0.01 to 0.5."),
    override: str | None = typer.Option(None, "--override", metavar="REASON", help="Insist, although the gate failed."),
    url: str | None = URL,
    key: str | None = KEY,
) -> None:
    """Let the default model be a version that has been loaded before; or let it answer a share of the sessions, on trial."""
    body: dict[str, Any] = {"version": version}
    if share is not None:
        body["share"] = share
    if override is not None:
        body["override"] = {"reason": override}
    _report(asyncio.run(_post("/model/promote", body, url=url, key=key)))


@app.command()
def rollback(url: str | None = URL, key: str | None = KEY) -> None:
    """Let the default model be what it was before; a canary that runs ends. Again: what it was before that."""
    _report(asyncio.run(_post("/model/rollback", None, url=url, key=key)))


@app.command()
def canary(
    stop: bool = typer.Option(False, "--stop", help="End it: all sessions get the default model."),
    as_json: bool = typer.Option(False, "--json", help="JSON instead of words."),
    url: str | None = URL,
    key: str | None = KEY,
) -> None:
    """Show the version on trial with a share of the sessions, and the votes on both sides; or end it."""
    found = asyncio.run(
        _post("/model/canary/stop", None, url=url, key=key) if stop else _get("/model/canary", url=url, key=key)
    )
    if as_json:
        emit_json(found)
    else:
        _report(found)


async def _get(path: str, *, url: str | None, key: str | None) -> Any:
    from app.cli.credential import connected

    quiet_logs()
    async with connected(url=url, key=key, purpose="aprendiz models", scopes=("read",)) as client:
        return await client.get(path)


async def _post(path: str, body: dict[str, Any] | None, *, url: str | None, key: str | None) -> Any:
    from app.cli.credential import connected

    quiet_logs()
    async with connected(url=url, key=key, purpose="aprendiz models", scopes=("read", "admin")) as client:
        return await client.post(path, body)


def _report(answer: Any) -> None:
    if isinstance(answer, dict) and "provider" in answer:
        say(visible(f"{answer['provider']}/{answer.get('model')} serves now (version {answer.get('version')})."))
    elif isinstance(answer, dict) and "control_version" in answer:
        _report_canary(answer)
    else:
        emit_json(answer)


def _report_canary(answer: dict[str, Any]) -> None:
    counts = answer.get("counts") or {}
    votes = ", ".join(
        f"{name} {counts[side]['good']} up and {counts[side]['bad']} down"
        for side, name in (("new", "it has"), ("control", "the other has"))
        if side in counts
    )
    why = f" ({answer['reason']})" if answer.get("reason") else ""
    say(
        visible(
            f"Canary {answer['version']} beside {answer['control_version']}, {answer['share']:.0%} of the sessions: "
            f"{answer['state']}{why}; {votes or 'no votes yet'}."
        )
    )
