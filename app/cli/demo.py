"""``aprendiz demo``: the whole loop before your eyes, in minutes, with the real model: bad answers, ratings and corrections, a
training run, the gate, promotion under traffic, good answers, rollback.

It only does what people do: it speaks HTTP to a service of its own (`app.cli.demo_service`). What it prints came from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from app.cli.context import load_config, quiet_logs
from app.cli.output import EXIT_FAILURE, stdout_console, visible
from app.core.errors import AprendizError, TrainingUnavailable
from app.training.packages import packages

if TYPE_CHECKING:
    from rich.console import Console

    from app.cli.demo_service import DemoService, Person

_ROOT = Path(__file__).parents[2]
_CONTENT = Path(__file__).with_name("demo.json")
_AT_ONCE = 6
_MAX_TOKENS = 48
_RUN_S = 1800.0
_CELL = 150


def demo(
    install: bool = typer.Option(True, "--install/--no-install", help="Install what training needs if it is missing."),
    as_json: bool = typer.Option(False, "--json", help="The result as JSON on stdout, without the show."),
) -> None:
    """See the loop: answer, correct, train, prove, promote, roll back. Takes minutes; uses a folder of its own."""
    quiet_logs()
    _packages(install)
    settings = load_config().settings
    from app.cli.demo_service import prepare

    folder = prepare(settings)
    show = Show(quiet=as_json)
    result = asyncio.run(_play(folder, settings, show))
    if as_json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
    if not result["proved"] or result["dropped"]:
        raise typer.Exit(EXIT_FAILURE)


def _packages(install: bool) -> None:
    if not packages().missing:
        return
    script = _ROOT / "run_llm.sh"
    if not install or not script.is_file():
        raise TrainingUnavailable(
            "Training needs more packages: `./run_llm.sh --train --setup-only`, or `pip install 'aprendiz[train]'`."
        )
    done = subprocess.run(["bash", str(script), "--train", "--setup-only"], cwd=_ROOT, check=False)  # noqa: S603, S607
    if done.returncode or packages().missing:
        raise TrainingUnavailable("What training needs could not be installed; the lines above say why.")


@dataclass
class Show:
    """What the person sees."""

    quiet: bool = False
    began: float = field(default_factory=time.monotonic)
    step: int = 0

    @property
    def console(self) -> Console:
        """Rich, on stdout; on stderr where stdout is for the result."""
        if self.quiet:
            from app.cli.output import stderr_console

            return stderr_console()
        return stdout_console()

    def chapter(self, title: str, note: str = "") -> None:
        """The next step of the story."""
        self.step += 1
        spent = time.monotonic() - self.began
        self.console.print(f"\n[bold]{self.step}. {title}[/bold]  [dim]{int(spent // 60)}:{int(spent % 60):02} so far[/dim]")
        if note:
            self.line(note)

    def line(self, text: str) -> None:
        """One line, as it is."""
        self.console.print(visible(text), markup=False, soft_wrap=False)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table whose cells are shortened, never wrapped into another cell."""
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, show_lines=True)
        for row in rows:
            table.add_row(*(Text(_cut(visible(cell))) for cell in row))
        self.console.print(table)

    @contextlib.contextmanager
    def bar(self, title: str, total: int | None) -> Any:
        """A progress bar; gives a function ``(completed, text)``."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(title, total=total, note="")

            def advance(completed: float, note: str = "", *, title: str | None = None, total: float | None = None) -> None:
                changes: dict[str, Any] = {} if title is None else {"description": title}
                progress.update(task, completed=completed, note=visible(note), total=total, **changes)

            yield advance


async def _play(folder: Path, settings: Any, show: Show) -> dict[str, Any]:
    from app.cli.demo_service import running

    content = json.loads(_CONTENT.read_text(encoding="utf-8"))
    facts = content["facts"]
    shown = [facts[index] for index in content["shown"]]
    show.chapter("A service of its own starts", f"Everything of this demo lies in {folder}.")
    async with running(folder, settings) as service:
        admin = await service.admin()
        people = [await service.person(name) for name in content["people"]]
        show.line(f"{service.url} serves; an admin and {len(people)} people have accounts.")

        show.chapter("The model does not know the house", f"Questions about {content['place']}, which nobody told it about:")
        before = await _answers(people[0], [fact["fresh"] for fact in shown])
        show.table(("question", "answer"), [(fact["fresh"], text) for fact, text in zip(shown, before, strict=True)])

        show.chapter("People ask, rate, and write what the answer should have been")
        await _give_feedback(people, facts, show)

        show.chapter(
            "A correction helps within a second", "An admin approves one; it is shown to the model with similar questions."
        )
        at_once = await _two_speeds(admin, people[0], content["at_once"], show)

        show.chapter("A run trains on all of it, on this machine")
        run = await _train(admin, show)
        gate = run["gate"] or {}
        show.chapter(
            f"The gate says: {gate.get('verdict', 'nothing')}", "Judged on held-out feedback, on the engine that serves:"
        )
        show.table(
            ("check", "value", "bound", "passed"),
            [
                (each["name"], _figure(each), each["bound"], "yes" if each["passed"] else "NO")
                for each in gate.get("checks", ())
            ],
        )
        result = {"run": run["id"], "verdict": gate.get("verdict"), "proved": gate.get("verdict") == "pass", "dropped": 0}
        if not result["proved"]:
            show.line("So this version does not go live. The report says why.")
            return result | await _ending(service, run, show)

        show.chapter("The version goes live while people keep asking")
        old, dropped, answered = await _promote(admin, people[1], run["version"], shown)
        show.line(f"{answered} answers during the change, {dropped} dropped. default was {old}, and is {run['version']}.")

        show.chapter("The same questions again")
        after = await _answers(people[2], [fact["fresh"] for fact in shown])
        rows = [(fact["fresh"], was, now) for fact, was, now in zip(shown, before, after, strict=True)]
        show.table(("question", "before", "now"), rows)
        right = sum(_says(now, fact["answer"]) for now, fact in zip(after, shown, strict=True))
        show.line(f"{right} of {len(shown)} say what people wrote. None of these wordings was among the corrections.")

        show.chapter("And back, in one call", "If people find it worse after all:")
        alias = await admin.client.post("/model/rollback")
        again = await _answers(people[0], [shown[1]["fresh"]])
        show.line(f"default is {alias['version']} again, and says: {_cut(again[0])}")
        result |= {"dropped": dropped, "right": right, "asked": len(shown), "at_once": at_once}
        result |= {"rolled_back": alias["version"] == old}
        return result | await _ending(service, run, show)


async def _ending(service: DemoService, run: dict[str, Any], show: Show) -> dict[str, Any]:
    seconds = round(time.monotonic() - show.began, 1)
    show.chapter("That was the loop", f"It took {seconds:.0f} seconds.")
    show.line(f"The gate's report: {service.folder / 'runs' / run['id'] / 'report.html'}")
    show.line("The same with your own people: ./run_llm.sh, then `aprendiz train run` once there is feedback.")
    return {"seconds": seconds}


async def _ask(person: Person, question: str) -> dict[str, Any]:
    body = {"prompt": question, "temperature": 0, "max_tokens": _MAX_TOKENS}
    answer: dict[str, Any] = await person.client.post("/predict", body)
    return answer


async def _answers(person: Person, questions: Sequence[str]) -> list[str]:
    return [(await _ask(person, question))["text"] for question in questions]


async def _give_feedback(people: Sequence[Person], facts: Sequence[dict[str, Any]], show: Show) -> None:
    """Every wording is asked by somebody, rated, and corrected where it is wrong."""
    asked = [(question, fact["answer"]) for fact in facts for question in fact["asked"]]
    places, done = asyncio.Semaphore(_AT_ONCE), 0
    with show.bar("asking and correcting", len(asked)) as advance:

        async def one(person: Person, question: str, better: str) -> None:
            nonlocal done
            async with places:
                answer = await _ask(person, question)
                body = {"prediction_id": answer["id"], "rating": "down", "correction": better}
                await person.client.post("/feedback", body)
            done += 1
            advance(done, f"{done} of {len(asked)}", total=len(asked))

        await asyncio.gather(*(one(people[at % len(people)], question, better) for at, (question, better) in enumerate(asked)))


async def _two_speeds(admin: Person, person: Person, pair: dict[str, str], show: Show) -> bool:
    """Approves the correction of one question, and asks it in other words."""
    page = await admin.client.get("/feedback/review?limit=100")
    item = next(each for each in page["items"] if each["prompt"] and each["prompt"][-1]["content"] == pair["corrected"])
    await admin.client.post(f"/feedback/{item['id']}/review", {"decision": "approve"})
    await asyncio.sleep(1)
    answer = await _ask(person, pair["asked"])
    show.table(("corrected", "asked now", "answer"), [(pair["corrected"], pair["asked"], answer["text"])])
    return _says(answer["text"], item["correction"])


async def _train(admin: Person, show: Show) -> dict[str, Any]:
    """Starts a run and watches it to its end. Raises AprendizError where it fails."""
    run: dict[str, Any] = await admin.client.post("/training/runs", {"method": "auto", "promote": "never"})
    deadline = time.monotonic() + _RUN_S
    with show.bar("waiting", 100) as advance:
        while run["state"] in ("queued", "running"):
            if time.monotonic() > deadline:
                raise AprendizError("The run takes too long; the demo gives up. `aprendiz train list` knows more.")
            await asyncio.sleep(0.3)
            run = await admin.client.get(f"/training/runs/{run['id']}")
            advance(*_progress(run), title=str((run["progress"] or {}).get("phase", run["state"])), total=100)
    if run["state"] != "succeeded":
        raise AprendizError(f"The run ended as {run['state']}: {run.get('error') or 'no reason given'}")
    return run


def _progress(run: dict[str, Any]) -> tuple[float, str]:
    heard = run["progress"] or {}
    words = [f"{name} {heard[key]:.3g}" for key, name in (("loss", "loss"), ("tokens_per_s", "tokens/s")) if heard.get(key)]
    if heard.get("paused"):
        words.append("paused: people are served first")
    return float(heard.get("percent") or 0), ", ".join(words)


async def _promote(admin: Person, person: Person, version: str, shown: Sequence[dict[str, Any]]) -> tuple[str, int, int]:
    """Promotes while somebody keeps asking. The version of before, answers that failed, answers in all."""
    old = (await admin.client.get("/model"))["version"]
    async with _traffic(person, [fact["fresh"] for fact in shown]) as counts:
        await asyncio.sleep(2)
        await admin.client.post("/model/promote", {"version": version})
        await asyncio.sleep(2)
    return old, counts["failed"], counts["answered"]


@contextlib.asynccontextmanager
async def _traffic(person: Person, questions: Sequence[str]) -> AsyncIterator[dict[str, int]]:
    """Asks without a pause until left, three at a time; then waits for the last answers."""
    counts, leaving = {"answered": 0, "failed": 0}, False

    async def ask(first: int) -> None:
        at = first
        while not leaving:
            try:
                await _ask(person, questions[at % len(questions)])
                counts["answered"] += 1
            except AprendizError:
                counts["failed"] += 1
            at += 1

    tasks = [asyncio.create_task(ask(first)) for first in range(3)]
    try:
        yield counts
    finally:
        leaving = True
        await asyncio.gather(*tasks)


def _says(text: str, wanted: str) -> bool:
    """Whether an answer says what was wanted: most of its words, all of its numbers and names."""
    words = {word.strip(".,:;!?").casefold() for word in wanted.split()}
    said = {word.strip(".,:;!?").casefold() for word in text.split()}
    marks = {word.strip(".,:;!?").casefold() for word in wanted.split()[1:] if any(c.isdigit() or c.isupper() for c in word)}
    return marks <= said and len(words & said) >= 0.8 * len(words)


def _figure(check: dict[str, Any]) -> str:
    value = check.get("value")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    interval = check.get("interval")
    return f"{value:.3g}" + (f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else "")


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"
