"""``aprendiz config``: shows the settings and where each value came from. Changes nothing: files and environment do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from app.cli.context import load_config
from app.cli.output import data, emit_json, table, visible

if TYPE_CHECKING:
    from app.core.config import Entry

app = typer.Typer(help="Show the settings and where each value comes from.", no_args_is_help=True)


@app.command()
def show(
    section: str = typer.Argument("", help="Only this section, as `server`."),
    changed: bool = typer.Option(False, "--changed", help="Only settings that differ from their default."),
    as_json: bool = typer.Option(False, "--json", help="JSON instead of a table."),
) -> None:
    """Print all settings with value and origin. Secrets are masked."""
    from app.core.errors import ConfigurationError

    entries = load_config().entries()
    if section:
        known = sorted({entry.key.partition(".")[0] for entry in entries})
        if section not in known:
            raise ConfigurationError(f"unknown section {section!r}; known: {', '.join(known)}.")
        entries = [entry for entry in entries if entry.key.partition(".")[0] == section]
    if changed:
        entries = [entry for entry in entries if entry.origin != "default"]
    if as_json:
        emit_json([_as_mapping(entry) for entry in entries])
    else:
        table(("SETTING", "VALUE", "ORIGIN"), ((entry.key, _text(entry.shown), entry.origin) for entry in entries))


@app.command()
def explain(
    key: str = typer.Argument(help="The setting, as `server.port`."),
    as_json: bool = typer.Option(False, "--json", help="JSON instead of text."),
) -> None:
    """Print one setting: what it does, its value, where that came from, and how to change it."""
    entry = load_config().explain(key)
    if as_json:
        emit_json(_as_mapping(entry))
        return
    data(f"{entry.key} = {visible(_text(entry.shown))}")
    data(f"  {entry.description}")
    data(f"  origin:      {entry.origin}")
    data(f"  default:     {visible(_text(entry.default))}")
    data(f"  environment: {entry.env}")


def _as_mapping(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "value": entry.shown,
        "default": None if entry.secret else entry.default,
        "origin": entry.origin,
        "environment": entry.env,
        "description": entry.description,
    }


def _text(value: object) -> str:
    """A value as it would be written in the environment."""
    match value:
        case None:
            return "(not set)"
        case bool():
            return str(value).lower()
        case tuple():
            return ",".join(str(item) for item in value) or "(none)"
        case "":
            return '""'
        case _:
            return str(value)
