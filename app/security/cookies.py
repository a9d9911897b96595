"""The cookies of a browser's session: their names and flags, and nothing else.

Over TLS the names carry the prefixes that browsers enforce: ``__Host-`` (Secure, Path=/, no Domain) for the access token,
``__Secure-`` for the refresh token, whose Path=/auth keeps it off every other request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from app.core.settings import Settings
from app.security.address import is_secure

CookieKind = Literal["access", "refresh"]

_NAMES: Mapping[CookieKind, str] = {"access": "aprendiz", "refresh": "aprendiz-refresh"}
_PREFIXES: Mapping[CookieKind, str] = {"access": "__Host-", "refresh": "__Secure-"}
_PATHS: Mapping[CookieKind, str] = {"access": "/", "refresh": "/auth"}


def over_tls(scope: Mapping[str, Any], settings: Settings) -> bool:
    """Whether the browser sees us over TLS: by this request, or by the public address."""
    return _public_tls(settings) or is_secure(scope, settings.server.trusted_proxies)


def set_cookie(kind: CookieKind, value: str, *, max_age_s: int, tls: bool, settings: Settings) -> str:
    """A Set-Cookie value. ``tls`` as `over_tls` says."""
    secure = "; Secure" if tls or settings.security.secure_cookies else ""
    prefix = _PREFIXES[kind] if tls else ""
    return f"{prefix}{_NAMES[kind]}={value}; Max-Age={max_age_s}; Path={_PATHS[kind]}{secure}; HttpOnly; SameSite=Lax"


def clear_cookies(*, tls: bool, settings: Settings) -> list[str]:
    """Set-Cookie values that end both cookies."""
    return [set_cookie(kind, "", max_age_s=0, tls=tls, settings=settings) for kind in _NAMES]


def access_cookies(settings: Settings) -> Sequence[bytes]:
    """Names under which an access token counts, the stronger first. Where the public address is https, only that one."""
    names = [(_PREFIXES["access"] + _NAMES["access"]).encode()]
    return names if _public_tls(settings) else [*names, _NAMES["access"].encode()]


def refresh_token(headers: Iterable[tuple[bytes, bytes]], *, tls: bool) -> str | None:
    """The refresh token among the cookies, or None; None too where there are two different ones."""
    wanted = ((_PREFIXES["refresh"] if tls else "") + _NAMES["refresh"]).encode()
    pairs = [pair.strip().partition(b"=") for name, line in headers if name == b"cookie" for pair in line.split(b";")]
    found = {value.strip() for name, _, value in pairs if name == wanted}
    return found.pop().decode("latin-1") if len(found) == 1 else None


def _public_tls(settings: Settings) -> bool:
    return settings.server.public_url.lower().startswith("https://")
