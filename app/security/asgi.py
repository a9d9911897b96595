"""The types of ASGI as our middleware uses them. No code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Respond = Callable[[Exception, Scope, Receive, Send], Awaitable[None]]
"""Answers a request, or refuses a WebSocket handshake, with an error of `app.core.errors`; ``app.api.problems.respond``."""
