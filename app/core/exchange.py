"""An extension of ASGI: what our own server tells at once, and ASGI only to a task that waits for it.

Under another server it is not there, and everything works by ASGI's own means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

EXTENSION: Final = "aprendiz.exchange"
"""Its name in ``scope["extensions"]``."""


class Exchange(Protocol):
    """One request and its answer."""

    @property
    def body_is_here(self) -> bool:
        """Whether the whole body has come, so that ``receive`` will not wait."""

    @property
    def client_is_gone(self) -> bool:
        """Whether the connection has ended before the answer did."""

    async def send(self, message: Any) -> None:
        """The server's own ``send``, for the body of a stream whose head went the usual way: nobody else looks at it."""

    def on_leave(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls back once the connection ends; returns what takes that back."""


def exchange_of(scope: Mapping[str, Any]) -> Exchange | None:
    """The extension, where the server has it."""
    extensions = scope.get("extensions")
    return extensions.get(EXTENSION) if extensions else None
