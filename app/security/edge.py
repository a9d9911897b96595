"""The HTTP edge: what every request passes before anything of ours reads it, and every answer on its way out.

Pure ASGI middleware, for http and websocket alike. None of it looks at the path to decide anything, and none of it knows who
calls: authorization belongs to the routes. Order, from the outside: `SecurityHeaders`, `TrustedHost`, `RequestBounds`
(in `app.security.bounds`), `CrossSiteGuard`.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import urlsplit

from app.core.errors import CrossSiteRefused, MalformedRequest
from app.core.settings import Server
from app.security.address import is_secure
from app.security.asgi import App, Message, Receive, Respond, Scope, Send
from app.security.bounds import RequestBounds

__all__ = ["CrossSiteGuard", "RequestBounds", "SecurityHeaders", "TrustedHost", "refuse_cross_site"]

_HEADERS: Final = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_NAMES: Final = frozenset(name for name, _ in _HEADERS)
_HSTS: Final = (b"strict-transport-security", b"max-age=63072000; includeSubDomains")
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(
    r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9_])?)(?::(?P<port>[0-9]{1,5}))?"
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class SecurityHeaders:
    """Adds to every answer, errors and refused handshakes included, the headers that it does not set itself."""

    def __init__(self, app: App, server: Server) -> None:
        self._app = app
        self._proxies = server.trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = list(message.get("headers", ()))
                present = {name.lower() for name, _ in headers}
                if present.isdisjoint(_NAMES):
                    headers += _HEADERS
                else:
                    headers.extend(pair for pair in _HEADERS if pair[0] not in present)
                if _HSTS[0] not in present and is_secure(scope, self._proxies):
                    headers.append(_HSTS)
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_with_headers)


class TrustedHost:
    """Lets only requests through that ask for a host of ours: exactly one well-formed Host, named in the settings.

    ``*`` in ``trusted_hosts`` accepts every well-formed one; ``*.example.org`` every name below it.
    """

    def __init__(self, app: App, server: Server, *, respond: Respond) -> None:
        self._app = app
        self._respond = respond
        public = urlsplit(server.public_url).netloc.rpartition("@")[2]
        names = [_host_name(host) for host in (*server.trusted_hosts, public) if host and "*" not in host]
        self._names = frozenset(name for name in names if name)
        self._suffixes = tuple(host[1:].lower() for host in server.trusted_hosts if host.startswith("*."))
        self._any = "*" in server.trusted_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and not self._trusted(_values(scope, b"host")):
            error = MalformedRequest("This server does not answer for that host name. Its names are in server.trusted_hosts.")
            await self._respond(error, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _trusted(self, hosts: Sequence[str]) -> bool:
        name = _host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None:
            return False
        return self._any or name in self._names or name.endswith(self._suffixes)


class CrossSiteGuard:
    """Refuses what another web site makes a user's browser do: unsafe methods and WebSocket handshakes with a cookie.

    A request without a cookie passes: a foreign page can send it, but not in a user's name.
    """

    def __init__(self, app: App, server: Server, *, respond: Respond) -> None:
        self._app = app
        self._server = server
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handshake = scope["type"] == "websocket"
        if (handshake or (scope["type"] == "http" and scope["method"] not in _SAFE)) and _values(scope, b"cookie"):
            try:
                refuse_cross_site(scope, self._server)
            except CrossSiteRefused as error:
                await self._respond(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


def refuse_cross_site(scope: Scope, server: Server) -> None:
    """Raises CrossSiteRefused unless the request comes from a page of ours, or from no page at all.

    ``Origin``, where sent, must be our own; ``Sec-Fetch-Site``, where sent, must be ``same-origin`` or ``none``. A request with
    neither passes only if it has no ``Referer`` and no ``Sec-Fetch-*`` either: every browser of today sends Origin with unsafe
    methods and handshakes, so this is a program with a cookie jar (curl, a script), which no web page can steer.
    """
    origins, sites = _values(scope, b"origin"), _values(scope, b"sec-fetch-site")
    if not origins and not sites:
        if any(name == b"referer" or name.startswith(b"sec-fetch-") for name, _ in scope["headers"]):
            raise _cross_site()
        return
    if sites and (len(sites) > 1 or sites[0] not in ("same-origin", "none")):
        raise _cross_site()
    if origins and (len(origins) > 1 or not _is_own(origins[0], scope, server)):
        raise _cross_site()


def _is_own(origin: str, scope: Scope, server: Server) -> bool:
    parsed = _origin(origin)
    if parsed is None:
        return False
    if server.public_url and parsed == _origin(server.public_url):
        return True
    hosts = _values(scope, b"host")
    if len(hosts) != 1:
        return False
    if parsed == _origin(f"https://{hosts[0]}"):
        return True  # also where a proxy that we were not told to trust ends TLS: https vouches for more than http
    return not is_secure(scope, server.trusted_proxies) and parsed == _origin(f"http://{hosts[0]}")


def _origin(text: str) -> tuple[str, str, int] | None:
    """``(scheme, host, port)`` of an origin or URL; None for ``null`` and whatever else is none."""
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    match = _HOST.fullmatch(rest.rstrip("/") if text.count("/") <= 3 else "")
    if not separator or scheme not in _DEFAULT_PORTS or match is None:
        return None
    return scheme, match["name"].lower(), int(match["port"] or _DEFAULT_PORTS[scheme])


@functools.lru_cache(maxsize=256)
def _host_name(host: str) -> str | None:
    """The name in a Host header, in lower case, without the port; None where the header is malformed."""
    match = _HOST.fullmatch(host)
    if match is None or int(match["port"] or 0) > 65_535:
        return None
    name = match["name"].lower()
    if name.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(name[1:-1])}]"
        except ValueError:
            return None
    return None if ".." in name else name


def _values(scope: Scope, wanted: bytes) -> list[str]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value.decode("latin-1").strip() for name, value in headers if name == wanted]


def _cross_site() -> CrossSiteRefused:
    return CrossSiteRefused(
        "Another web site sent this request. If it was ours, the operator has to set server.public_url to the address you use."
    )
