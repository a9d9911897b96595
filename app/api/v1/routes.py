"""All routes under ``/v1``, in one list; one file a shape beside this one."""

from __future__ import annotations

from starlette.routing import BaseRoute


def routes() -> list[BaseRoute]:
    """The routes, for the app to put before all others."""
    return []
