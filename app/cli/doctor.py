"""``aprendiz doctor``: everything a support person would ask, answered in one table. Changes nothing and shows no secret."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from app.cli.context import load_config, quiet_logs, service_url
from app.cli.output import EXIT_FAILURE, emit_json, public, say, stdout_console, table, visible

if TYPE_CHECKING:
    from app.cli.checks import Check
    from app.core.config import Config
    from app.core.settings import Settings

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_QUESTION = "Answer with one word: what is the capital of France?"


def doctor(
    deep: bool = typer.Option(
        False, "--deep", help="Also check the model's hash, start an engine of its own and ask it something."
    ),
    as_json: bool = typer.Option(False, "--json", help="JSON instead of a table."),
) -> None:
    """Check the installation, the data and the service. Exit code 1 where something fails."""
    quiet_logs()
    checks = list(_all(deep=deep))
    if as_json:
        emit_json([public(check) for check in checks])
    else:
        _print(checks)
    failed = sum(check.state == "fail" for check in checks)
    warned = sum(check.state == "warn" for check in checks)
    say(f"{failed} failed, {warned} warning(s), {len(checks) - failed - warned} ok.")
    if failed:
        raise typer.Exit(EXIT_FAILURE)


def _all(*, deep: bool) -> Iterator[Check]:
    from app.cli.checks import Check, local_checks
    from app.core.errors import AprendizError, ConfigurationError

    try:
        config = load_config()
    except ConfigurationError as error:
        yield Check("settings", "fail", error.detail, "Correct it; nothing else can be checked before.")
        return
    yield from local_checks(config)
    for name, part in (("database", _database), ("model", _model), ("service", _service)):
        try:
            yield from part(config, deep)
        except AprendizError as error:
            yield Check(name, "fail", error.detail)


def _database(config: Config, deep: bool) -> Iterator[Check]:
    from app.cli.checks import database_checks

    yield from database_checks(config.settings)


def _print(checks: list[Check]) -> None:
    from rich.text import Text

    rows = [(Text(check.state, style=_STYLES[check.state]), check.name, check.found) for check in checks]
    table(("", "CHECK", "FOUND"), rows)
    advised = [check for check in checks if check.advice]
    if advised:
        stdout_console().print("\nWhat to do:")
        for check in advised:
            stdout_console().print(f"  {check.name}: {visible(check.advice)}", markup=False)


def _service(config: Config, deep: bool) -> Iterator[Check]:
    from app.cli.checks import Check, port_is_taken
    from app.core.errors import AprendizError, UpstreamError

    settings = config.settings
    address = service_url(settings, None)
    if not port_is_taken(settings):
        yield Check("service", "ok", f"not running; {address} is free")
        return
    try:
        live = asyncio.run(_get(address, "/health/live"))
        if not isinstance(live, dict) or live.get("live") is not True:
            raise UpstreamError
    except AprendizError:
        yield Check(
            "service", "fail", f"another program listens at {address}", "Stop it, or choose another port with server.port."
        )
        return
    ready = asyncio.run(_get(address, "/health/ready"))
    reasons = [str(item.get("detail")) for item in ready.get("checks", {}).values() if not item.get("ok")]
    if reasons:
        yield Check("service", "warn", visible(f"runs at {address}, not ready: {' '.join(reasons)}"), "Look at its log.")
        return
    yield Check("service", "ok", f"ready at {address}")


async def _get(address: str, path: str) -> Any:
    from app.cli.client import ServiceClient

    async with ServiceClient(address, None) as client:
        return await client.get(path, accept=503)


def _model(config: Config, deep: bool) -> Iterator[Check]:
    from app.cli.checks import Check

    model = config.settings.model
    name = f"{model.provider}/{model.model}"
    if model.provider == "llamacpp":
        yield _local_model(name, model.model, config.settings.data_dir / "models", deep=deep)
    else:
        yield Check("model", "ok", f"{name} (not a file of ours: --deep tries it)")
    if deep:
        yield asyncio.run(_ask(config.settings))


def _local_model(label: str, name: str, models_dir: Path, *, deep: bool) -> Check:
    """A model that should lie on this disk. Only ``deep`` reads it all to check its hash."""
    from app.cli.checks import Check, gigabytes
    from app.models.local import list_models, resolve

    manifest = next((item for item in list_models(models_dir) if item.name == name), None)
    if manifest is not None and not deep:
        return Check("model", "ok", f"{label}, {gigabytes(manifest.bytes)} (--deep checks its SHA-256)")
    path = resolve(name, models_dir)
    if path is None:
        return Check("model", "fail", f"{label} is not here", f"aprendiz models pull {visible(name)}")
    checked = "SHA-256 as it was pulled" if manifest is not None else "a file of yours, no SHA-256 known"
    return Check("model", "ok", f"{label}, {checked}")


async def _ask(settings: Settings) -> Check:
    """Starts an engine of its own, asks one question, and ends it."""
    import tempfile
    import time

    from app.cli.checks import Check
    from app.core.files import FileHashes
    from app.core.types import GenerationRequest, Message, ModelSpec, Sampling, fold
    from app.models.local import Resolver
    from app.providers.base import ProviderContext
    from app.providers.registry import ProviderRegistry

    models_dir = settings.data_dir / "models"
    hashes = FileHashes()
    with tempfile.TemporaryDirectory(prefix="aprendiz-doctor-") as runtime:
        context = ProviderContext(
            settings.model, settings.providers, models_dir, Path(runtime), Resolver(models_dir, hashes), hashes
        )
        provider = ProviderRegistry(context, settings.providers.allowed).get(settings.model.provider)
        begun = time.monotonic()
        spec = ModelSpec(settings.model.provider, settings.model.model, settings.model.device)
        loaded = await provider.open(spec, on_state=lambda state: None)
        try:
            ready = time.monotonic()
            request = GenerationRequest((Message("user", _QUESTION),), sampling=Sampling(max_tokens=16, temperature=0))
            answer = await fold(loaded.stream(request))
            done = time.monotonic()
        finally:
            await loaded.aclose()
    device = loaded.status().device or settings.model.device
    found = (
        f"on {device}: loaded in {ready - begun:.1f} s, answered in {done - ready:.1f} s: {visible(answer.text.strip()[:60])}"
    )
    if not answer.text.strip():
        return Check("engine", "fail", found, "The engine runs but says nothing; try another model.")
    return Check("engine", "ok", found)
