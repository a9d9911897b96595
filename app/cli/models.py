"""``aprendiz models``: what lies in the data directory, and what the running service should load.

``list`` and ``pull`` work on files, also without a service; ``load`` and ``reload`` ask the service, over HTTP.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import typer

from app.cli.context import load_config, quiet_logs, service_url
from app.cli.output import EXIT_USAGE, emit_json, say, visible

if TYPE_CHECKING:
    pass

app = typer.Typer(help="Models: list, pull, load, reload.", no_args_is_help=True)

URL = typer.Option(None, "--url", help="Address of the service; unless told, this machine's, from the settings.")
KEY = typer.Option(None, "--key", help="An admin's API key; better given as APRENDIZ_API_KEY.")


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


async def _post(path: str, body: dict[str, Any] | None, *, url: str | None, key: str | None) -> Any:
    from app.cli.client import ServiceClient
    from app.cli.credential import credential

    quiet_logs()
    settings = load_config().settings
    address = service_url(settings, url)
    async with ServiceClient(address, None) as stranger:
        await stranger.get("/health/live")  # before a key is minted for nothing
    async with (
        credential(
            settings, key=key, user="", remote=url is not None, purpose="aprendiz models", scopes=("read", "admin")
        ) as secret,
        ServiceClient(address, secret) as client,
    ):
        return await client.post(path, body)


def _report(answer: Any) -> None:
    if isinstance(answer, dict) and "provider" in answer:
        say(visible(f"{answer['provider']}/{answer.get('model')} serves now (version {answer.get('version')})."))
    else:
        emit_json(answer)
