"""``aprendiz serve``: starts the service in this process. What it serves is ``app.main``'s business."""

from __future__ import annotations

import typer

from app.cli.context import load_config


def serve(
    host: str | None = typer.Option(None, "--host", help="Address to listen on, in place of the setting server.host."),
    port: int | None = typer.Option(None, "--port", min=0, max=65535, help="Port to listen on, in place of server.port."),
    pull: bool = typer.Option(False, "--pull", help="First fetch the configured model if it is missing."),
) -> None:
    """Serve the API, the pages and the models until told to stop (SIGTERM or Ctrl-C)."""
    from app.core import config
    from app.core.logging import configure

    loaded = config.with_secret_key(load_config(host=host, port=port))
    configure(loaded.settings.logging, secrets=config.secrets_in(loaded.settings))
    if pull:
        from app.cli.models import pull_configured

        pull_configured(loaded.settings)
    from app import main

    main.serve(loaded.settings)
