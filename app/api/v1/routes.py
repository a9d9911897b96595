"""All routes under ``/v1``, in one list, with what describes them; one file a shape beside this one."""

from __future__ import annotations

from starlette.routing import BaseRoute

from app.api.v1 import chat, completions, embeddings, messages, models, responses, responses_about
from app.api.v1.describe import Operation


def routes() -> list[BaseRoute]:
    """The routes, for the app to put before all others."""
    return [
        chat.route(),
        completions.route(),
        embeddings.route(),
        *models.routes(),
        *messages.routes(),
        *responses.routes(),
    ]


def operations() -> list[Operation]:
    """What each of them is, for ``/openapi.json``."""
    return [
        chat.OPERATION,
        completions.OPERATION,
        embeddings.OPERATION,
        *models.OPERATIONS,
        *messages.OPERATIONS,
        *responses_about.OPERATIONS,
    ]
