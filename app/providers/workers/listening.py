"""Where a worker with an aiohttp server listens: on its private Unix socket, or on a port that the system chooses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from aiohttp import web


async def listen(runner: web.AppRunner, config: Mapping[str, Any]) -> int | None:
    """Begins to listen as the configuration of `app.providers.workers.child` says; the port, or None for a socket."""
    if config.get("socket"):
        before = os.umask(0o077)
        try:
            await web.UnixSite(runner, str(config["socket"])).start()
        finally:
            os.umask(before)
        return None
    await web.TCPSite(runner, str(config["host"]), 0).start()
    return int(runner.addresses[0][1])
