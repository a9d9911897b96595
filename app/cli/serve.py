"""``aprendiz serve``: starts the service in this process. What it serves is ``app.main``'s business."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

from app.cli.context import load_config


def serve(
    host: str | None = typer.Option(None, "--host", help="Address to listen on, in place of the setting server.host."),
    port: int | None = typer.Option(None, "--port", min=0, max=65535, help="Port to listen on, in place of server.port."),
    pull: bool = typer.Option(
        False, "--pull", help="First fetch the configured model if it is missing; the embedder beside serving."
    ),
) -> None:
    """Serve the API, the pages and the models until told to stop (SIGTERM or Ctrl-C)."""
    from app.core import config
    from app.core.logging import configure

    loaded = config.with_secret_key(load_config(host=host, port=port))
    configure(loaded.settings.logging, secrets=config.secrets_in(loaded.settings))
    with contextlib.ExitStack() as stack:
        if pull:
            from app.cli.models import missing_embedder, missing_model, pull_known

            if (wanted := missing_model(loaded.settings)) is not None:
                pull_known(wanted, loaded.settings)
            if (wanted := missing_embedder(loaded.settings)) is not None:
                stack.enter_context(_pulling(wanted, loaded.settings.data_dir))
        from app import main

        main.serve(loaded.settings)


@contextlib.contextmanager
def _pulling(wanted: str, data_dir: Path) -> Iterator[None]:
    """A process that fetches ``wanted`` while the block runs, and says on stderr how it goes. Until then searches go by words
    alone. It ends with the block, with all that it started."""
    command = [sys.executable, "-P", "-m", "app.cli.main", "models", "pull", wanted]
    environ = {**os.environ, "APRENDIZ_DATA_DIR": str(data_dir), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environ, start_new_session=True
    )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
