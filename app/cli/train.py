"""``aprendiz train``: order training runs at the running service, follow them, read what came of them. All over HTTP.

The options of ``train run`` are the fields of `TrainConfig`, made from it: a new hyper-parameter needs no line here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import typer
from typer.core import TyperCommand

from app.cli.context import quiet_logs
from app.cli.models import KEY, URL
from app.cli.output import EXIT_FAILURE, EXIT_USAGE, data, emit_json, say, stderr_console, table, visible
from app.core.records import PromotePolicy

if TYPE_CHECKING:
    from app.cli.client import ServiceClient

app = typer.Typer(help="Training: start runs, follow, cancel, read their reports; snapshots.", no_args_is_help=True)

_LOST_S: Final = 120.0
_ENDED: Final = ("succeeded", "failed", "cancelled")
_ID: Final = typer.Argument(metavar="RUN", help="A run's id, or `latest`.")
_JSON: Final = typer.Option(False, "--json", help="JSON instead of a table.")

Tell = Callable[[Mapping[str, Any]], None]


class _HyperParameters(TyperCommand):
    """A command with an option for each field of `TrainConfig`; those that are given lie in ``ctx.obj``.

    They are made when they are first asked for: help and completion of other commands load no pydantic.
    """

    _params: list[Any]
    _complete: bool

    @property
    def params(self) -> list[Any]:
        """Its own parameters and the hyper-parameters: one list, which click appends to."""
        if not self._complete:
            self._complete = True
            self._params.extend(_hyper_parameters())
        return self._params

    @params.setter
    def params(self, own: list[Any]) -> None:
        self._params, self._complete = own, False

    def invoke(self, ctx: Any) -> Any:
        """See `TyperCommand.invoke`."""
        given = {each.name: ctx.params.pop(each.name, None) for each in _hyper_parameters()}
        ctx.obj = {name: value for name, value in given.items() if value is not None}
        return super().invoke(ctx)


@functools.cache
def _hyper_parameters() -> list[Any]:
    from app.training.config import TrainConfig

    parameters = []
    for name, field in TrainConfig.model_fields.items():
        if name == "method":
            continue
        default = "by method" if field.default is None else str(field.default)
        option = typer.Option(None, "--" + name.replace("_", "-"), help=field.description, show_default=default)
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=field.annotation))

    def takes(**values: Any) -> None:
        """Never called: Typer reads its signature."""

    takes.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    takes.__annotations__ = {each.name: each.annotation for each in parameters}
    options = typer.Typer(add_completion=False)
    options.command()(takes)
    return [each for each in typer.main.get_command(options).params if each.name in TrainConfig.model_fields]


@app.command("run", cls=_HyperParameters)
def run(
    context: typer.Context,
    method: Literal["auto", "sft", "dpo", "kto"] = typer.Option(
        "auto", "--method", help="sft: corrections; dpo: pairs; kto: ratings; auto: whichever there is most for."
    ),
    promote: PromotePolicy = typer.Option(
        "never", "--promote", help="if_passed: the version serves once its gate has passed it."
    ),
    snapshot: str | None = typer.Option(None, "--snapshot", help="Train on this snapshot; unless told, a new one is made."),
    holdout: float | None = typer.Option(None, "--holdout", help="Share of the prompts of a new snapshot to judge with."),
    detach: bool = typer.Option(False, "--detach", "-d", help="Order the run, print its id and leave."),
    as_json: bool = typer.Option(False, "--json", help="Print the events of the run as JSON lines."),
    url: str | None = URL,
    key: str | None = KEY,
) -> None:
    """Train on the feedback and follow the run to its end; Ctrl-C leaves it running."""
    from pydantic import ValidationError

    from app.training.config import TrainConfig

    config: dict[str, Any] = context.obj
    try:
        TrainConfig.model_validate(config)
    except ValidationError as error:
        say("; ".join(f"--{str(each['loc'][0]).replace('_', '-')}: {each['msg']}" for each in error.errors()))
        raise typer.Exit(EXIT_USAGE) from None
    body: dict[str, Any] = {"method": method, "promote": promote, "config": config}
    body |= {name: value for name, value in (("snapshot", snapshot), ("holdout", holdout)) if value is not None}

    async def order(client: ServiceClient) -> dict[str, Any]:
        found: dict[str, Any] = await client.post("/training/runs", body)
        return found

    ordered = _ask(order, url=url, key=key)
    if detach:
        data(ordered["id"])
        return
    say(f"Run {ordered['id']} is ordered.")
    _follow(ordered["id"], as_json=as_json, url=url, key=key)


@app.command("list")
def list_runs(
    limit: int = typer.Option(50, "--limit", min=1, max=500, help="At most so many, newest first."),
    as_json: bool = _JSON,
    url: str | None = URL,
    key: str | None = KEY,
) -> None:
    """List training runs, newest first."""
    runs = _get(f"/training/runs?limit={limit}", url=url, key=key)["items"]
    if as_json:
        emit_json(runs)
        return
    rows = (
        (
            each["id"],
            each["state"],
            f"{each['progress'].get('percent', 0):.0f} %",
            each["method"],
            (each["gate"] or {}).get("verdict"),
            each["version"],
            each["created_at"][:16].replace("T", " "),
        )
        for each in runs
    )
    table(("RUN", "STATE", "DONE", "METHOD", "GATE", "VERSION", "ORDERED (UTC)"), rows)


@app.command()
def show(
    run_id: str = _ID,
    follow: bool = typer.Option(False, "--follow", "-f", help="Stay until it has ended."),
    as_json: bool = typer.Option(False, "--json", help="JSON; with --follow its events as JSON lines."),
    url: str | None = URL,
    key: str | None = KEY,
) -> None:
    """Show a run: its state, how far it is, what its gate says."""
    found = _run(run_id, url=url, key=key)
    if follow:
        _follow(found["id"], as_json=as_json, url=url, key=key)
    elif as_json:
        emit_json(found)
    else:
        _tell_run(found)


@app.command()
def cancel(run_id: str = _ID, url: str | None = URL, key: str | None = KEY) -> None:
    """End a run; what it has learned is lost."""

    async def work(client: ServiceClient) -> Any:
        found = await _named(client, run_id)
        return await client.post(f"/training/runs/{found['id']}/cancel")

    ended = _ask(work, url=url, key=key)
    say(f"Run {ended['id']} {'is cancelled' if ended['state'] == 'cancelled' else 'is being cancelled'}.")


@app.command()
def report(
    run_id: str = _ID,
    html: bool = typer.Option(False, "--html", help="The page, for --output or a pipe."),
    as_json: bool = typer.Option(False, "--json", help="All of it, as JSON."),
    output: Path | None = typer.Option(None, "--output", "-o", help="File to write; stdout unless told."),
    url: str | None = URL,
    key: str | None = KEY,
) -> None:
    """Show what the gate measured and decided."""

    async def work(client: ServiceClient) -> Any:
        path = f"/training/runs/{(await _named(client, run_id))['id']}/report"
        return await client.text(f"{path}?format=html") if html else await client.get(path)

    found = _ask(work, url=url, key=key)
    if html:
        if output is None:
            data(found)
        else:
            output.write_text(found, encoding="utf-8")
    elif as_json:
        emit_json(found)
    else:
        _tell_gate(found)


@app.command()
def snapshots(
    preview: bool = typer.Option(False, "--preview", help="What a snapshot made now would hold, and what is missing."),
    as_json: bool = _JSON,
    url: str | None = URL,
    key: str | None = KEY,
) -> None:
    """List the datasets that were frozen, newest first."""

    async def work(client: ServiceClient) -> Any:
        if preview:
            return await client.post("/training/snapshots/preview", {})
        return (await client.get("/training/snapshots"))["items"]

    found = _ask(work, url=url, key=key)
    if as_json:
        emit_json(found)
    elif preview:
        _tell_preview(found)
    else:
        rows = (
            (each["id"], each["source"], *_counts(each["report"]), each["created_at"][:16].replace("T", " ")) for each in found
        )
        table(("SNAPSHOT", "SOURCE", "TRAIN", "HELD OUT", "SET ASIDE", "MADE (UTC)"), rows)


def _ask(work: Callable[[ServiceClient], Any], *, url: str | None, key: str | None) -> Any:
    """Runs one question to the service."""

    async def asked() -> Any:
        async with _connected(url, key) as client:
            return await work(client)

    quiet_logs()
    return asyncio.run(asked())


def _get(path: str, *, url: str | None, key: str | None) -> Any:
    return _ask(lambda client: client.get(path), url=url, key=key)


def _run(run_id: str, *, url: str | None, key: str | None) -> dict[str, Any]:
    return cast("dict[str, Any]", _ask(lambda client: _named(client, run_id), url=url, key=key))


async def _named(client: ServiceClient, run_id: str) -> dict[str, Any]:
    """The run of that id, or the newest for ``latest``. Raises NotFound."""
    from urllib.parse import quote

    from app.core.errors import NotFound

    if run_id != "latest":
        found: dict[str, Any] = await client.get(f"/training/runs/{quote(run_id, safe='')}")
        return found
    newest = (await client.get("/training/runs?limit=1"))["items"]
    if not newest:
        raise NotFound("There is no training run yet. Start one with `aprendiz train run`.")
    return cast("dict[str, Any]", newest[0])


@contextlib.asynccontextmanager
async def _connected(url: str | None, key: str | None) -> AsyncIterator[ServiceClient]:
    from app.cli.credential import connected

    async with connected(url=url, key=key, purpose="aprendiz train", scopes=("read", "admin")) as client:
        yield client


def _follow(run_id: str, *, as_json: bool, url: str | None, key: str | None) -> None:
    """Until the run has ended, or the person leaves it. Exits with 1 where the run did not succeed."""
    follower = _Follower(run_id)
    while True:
        try:
            with _shown(run_id, as_json=as_json) as tell:
                final = _ask(lambda client, tell=tell: follower.to_the_end(client, tell), url=url, key=key)  # type: ignore[misc]
            break
        except KeyboardInterrupt:
            if not sys.stdin.isatty() or typer.confirm(
                "\nLeave the run alone? It goes on in the service.", default=True, err=True
            ):
                say(
                    f"It goes on: `aprendiz train show {run_id} --follow` comes back, `aprendiz train cancel {run_id}` ends it."
                )
                raise typer.Exit(0) from None
    if not as_json:
        _tell_run(final)
    if final["state"] != "succeeded":
        raise typer.Exit(EXIT_FAILURE)


class _Follower:
    """Reads the events of a run, over restarts of the service, each once."""

    def __init__(self, run_id: str) -> None:
        self._path = f"/training/runs/{run_id}"
        self._mark: str | None = None

    async def to_the_end(self, client: ServiceClient, tell: Tell) -> dict[str, Any]:
        """The run once it has ended. Raises AprendizError where the service is away for longer than a restart takes."""
        from app.core.errors import Unavailable, UpstreamError

        lost = None
        while True:
            try:
                async with contextlib.aclosing(client.follow(f"{self._path}/events", after=self._mark)) as events:
                    async for mark, name, event in events:
                        lost, self._mark = None, mark or self._mark
                        if name == "end":
                            return event
                        tell({"event": name, **event})
            except (Unavailable, UpstreamError):
                lost = lost or time.monotonic()
                if time.monotonic() - lost > _LOST_S:
                    raise
            await asyncio.sleep(1)


@contextlib.contextmanager
def _shown(run_id: str, *, as_json: bool) -> Iterator[Tell]:
    """How events are shown: JSON lines, a progress bar on a terminal, else a line for each phase."""
    if as_json:
        import json

        yield lambda event: data(json.dumps(event, ensure_ascii=False))
    elif not sys.stderr.isatty():
        yield _line
    else:
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[said]}"),
        )
        with Progress(*columns, console=stderr_console(), transient=True) as bar:
            task = bar.add_task("waiting", total=None, said="")

            def tell(event: Mapping[str, Any]) -> None:
                match event["event"]:
                    case "phase":
                        bar.update(task, description=visible(event.get("phase")), total=None, completed=0, said="")
                    case "step":
                        bar.update(task, total=event.get("steps"), completed=event.get("step"), said=_figures(event))
                    case "paused" | "continued" as word:
                        bar.update(task, said="paused: people are served" if word == "paused" else "")

            yield tell


def _line(event: Mapping[str, Any]) -> None:
    match event["event"]:
        case "phase":
            say(visible(event.get("phase")))
        case "step" if event.get("step") == event.get("steps"):
            say(f"{event.get('steps')} steps: {_figures(event)}")
        case "resumed":
            say("resumed from a checkpoint")


def _figures(event: Mapping[str, Any]) -> str:
    words = [
        f"{word} {event[name]:{form}}{unit}"
        for name, word, form, unit in (
            ("loss", "loss", ".3f", ""),
            ("tokens_per_s", "at", ".0f", " tokens/s"),
            ("eta_s", "still", ".0f", " s"),
        )
        if isinstance(event.get(name), int | float)
    ]
    return ", ".join(words)


def _tell_run(found: Mapping[str, Any]) -> None:
    progress = found["progress"]
    say(f"Run {found['id']}: {found['state']}, {progress.get('percent', 0):.0f} %, {progress.get('phase')}.")
    for name in ("base", "method", "snapshot", "version", "retired_reason", "error"):
        if found.get(name):
            say(f"  {name.replace('_', ' ')}: {visible(found[name])}")
    if progress.get("detail"):
        say(f"  {visible(progress['detail'])}")
    if found["gate"]:
        _tell_gate(found["gate"])


def _tell_gate(gate: Mapping[str, Any]) -> None:
    say(f"The gate's verdict: {visible(gate.get('verdict'))}.")
    rows = (
        (
            each["name"],
            _number(each.get("value")),
            _interval(each.get("interval")),
            _number(each.get("bound")),
            "yes" if each["passed"] else "NO",
        )
        for each in gate.get("checks", ())
    )
    table(("CHECK", "VALUE", "95 %", "BOUND", "PASSED"), rows)


def _tell_preview(found: Mapping[str, Any]) -> None:
    say(f"A run would train by {found['method']}." if found["method"] else "There is too little feedback to learn from.")
    methods = found["report"]["methods"]
    rows = ((name, each["train"], each["heldout"], "; ".join(each["missing"]) or "nothing") for name, each in methods.items())
    table(("METHOD", "TRAIN", "HELD OUT", "MISSING"), rows)


def _counts(report: Mapping[str, Any]) -> tuple[int, int, int]:
    rows = report.get("rows", {}).values()
    return tuple(sum(each.get(name, 0) for each in rows) for name in ("train", "heldout", "quarantined"))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _interval(value: Any) -> str:
    return f"{_number(value[0])} to {_number(value[1])}" if value else ""
