"""Tokens: what we sign, and how strictly we read it back.

- session tokens: JWT (HS256), for a browser's cookie (``access``) or a program's header (``bearer``); each names its session
- refresh tokens, API keys, invites: opaque, 256 random bits, of which only the SHA-256 is stored
- feedback tokens: 48 characters that let their holder rate one prediction

Nothing in a token chooses its key or algorithm, and nothing here asks the database: whether a session still lives is
`app.security.auth`'s question.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import json
import re
import secrets
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import jwt

from app.core.errors import ConfigurationError, Unauthenticated
from app.core.ids import is_uuid7
from app.core.settings import Security

TokenKind = Literal["access", "bearer"]

ISSUER = "aprendiz"
AUDIENCE = "aprendiz-api"
MAX_TOKEN = 4096
"""Bytes of the longest credential that is looked at."""
API_KEY_PREFIX = "apz_"
SHOWN_CHARACTERS = 12
"""First characters of an API key that are kept to tell keys apart; 35 random ones stay secret."""
FEEDBACK_TOKEN_DAYS = 30

_HEADER = {"alg": "HS256", "typ": "JWT"}
_CLAIMS = ["exp", "iat", "nbf", "sub", "aud", "iss", "jti", "typ", "sid"]
_TIMES = ("exp", "iat", "nbf")
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))
_LEEWAY_S = 5
_LONGEST_S = 366 * 86_400
_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{43}")
_FEEDBACK_TOKEN = re.compile(r"[A-Za-z0-9_-]{48}")
_REFRESH_TOKEN = re.compile(r"[A-Za-z0-9_-]{64}")
_API_KEY = re.compile(r"apz_[A-Za-z0-9_-]{43}")
_BAD = "The credential is not valid or has expired. Log in again."
_BAD_FEEDBACK = "The feedback token is not valid or has expired."


@dataclass(frozen=True, slots=True)
class Claims:
    """What a session token says. ``expires_at``: seconds since the epoch."""

    user_id: str
    session_id: str
    kind: TokenKind
    expires_at: int


class SessionTokens:
    """Signs and reads session tokens.

    Args:
        settings: the secret key and the one before it, whose tokens stay good until they expire.
        now: seconds since the epoch.
    """

    def __init__(self, settings: Security, *, now: Callable[[], float] = time.time) -> None:
        self._keys = [_derive(secret, b"session token") for secret in _secrets(settings)]
        self._now = now

    def sign(self, *, user_id: str, session_id: str, kind: TokenKind, lifetime_s: int) -> str:
        """A token for one session, good for ``lifetime_s`` seconds."""
        now = int(self._now())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": user_id,
            "sid": session_id,
            "typ": kind,
            "jti": secrets.token_urlsafe(16),
            "iat": now,
            "nbf": now,
            "exp": now + lifetime_s,
        }
        return jwt.encode(claims, self._keys[0], algorithm="HS256", headers=_HEADER)

    def read(self, token: str) -> Claims:
        """What ``token`` says. Raises Unauthenticated for whatever `sign` did not write, or what has expired."""
        _check_form(token)
        for key in self._keys:
            claims = self._verify(token, key)
            if claims is not None:
                return claims
        raise Unauthenticated(_BAD)

    def _verify(self, token: str, key: bytes) -> Claims | None:
        try:
            verified = jwt.decode_complete(
                token,
                key,
                algorithms=["HS256"],
                audience=AUDIENCE,
                issuer=ISSUER,
                options={
                    "require": _CLAIMS,
                    "strict_aud": True,
                    "enforce_minimum_key_length": True,
                    # times are checked below, by our clock and our type rules: PyJWT takes "123" and 1.5 as times
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.InvalidTokenError:
            return None
        return self._claims(verified["payload"])

    def _claims(self, payload: dict[str, Any]) -> Claims:
        now = self._now()
        texts = (payload["sub"], payload["sid"], payload["jti"])
        if any(type(payload[name]) is not int for name in _TIMES) or not all(type(text) is str and text for text in texts):
            raise Unauthenticated(_BAD)
        if payload["typ"] not in get_args(TokenKind) or set(payload) != set(_CLAIMS):
            raise Unauthenticated(_BAD)
        issued, starts, expires = (payload[name] for name in _TIMES[1:] + _TIMES[:1])
        if max(issued, starts) > now + _LEEWAY_S or not now < expires <= issued + _LONGEST_S:
            raise Unauthenticated(_BAD)
        return Claims(payload["sub"], payload["sid"], cast("TokenKind", payload["typ"]), expires)


def new_api_key() -> str:
    """A new API key: ``apz_`` and 256 random bits."""
    return API_KEY_PREFIX + secrets.token_urlsafe(32)


def is_api_key(credential: str) -> bool:
    """Whether ``credential`` has the form of an API key."""
    return _API_KEY.fullmatch(credential) is not None


def new_invite_token() -> str:
    """A new invite token: 256 random bits."""
    return secrets.token_urlsafe(32)


def new_refresh_token(session_id: str) -> str:
    """A new refresh token of a session: opaque to its holder; inside, the session's id and 256 random bits."""
    return base64.urlsafe_b64encode(uuid.UUID(session_id).bytes + secrets.token_bytes(32)).decode()


def session_of_refresh_token(token: str) -> str | None:
    """The session's id that a refresh token names, unproved; None where ``token`` is none of ours."""
    if not _REFRESH_TOKEN.fullmatch(token):
        return None
    session_id = str(uuid.UUID(bytes=base64.urlsafe_b64decode(token)[:16]))
    return session_id if is_uuid7(session_id) else None


def hash_secret(secret: str) -> str:
    """SHA-256 in hex: how refresh tokens, API keys and invites are stored. Fast on purpose: they hold 256 random bits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def sign_feedback_token(prediction_id: str, settings: Security, *, now: float | None = None) -> str:
    """A token of 48 characters that lets its holder give feedback on one prediction for 30 days.

    Before base64url: the id (16 bytes), the expiry (4 bytes, seconds since the epoch), 16 bytes of HMAC-SHA256.
    """
    expires = int(time.time() if now is None else now) + FEEDBACK_TOKEN_DAYS * 86_400
    content = bytes.fromhex(prediction_id.replace("-", "")) + struct.pack(">I", expires)
    tag = _feedback_mac(next(_secrets(settings)), content)
    return binascii.b2a_base64(content + tag, newline=False).translate(_URL_SAFE).decode()


def read_feedback_token(token: str, settings: Security, *, now: float | None = None) -> str:
    """The prediction's id. Raises Unauthenticated (field ``feedback_token``) where the token is not ours or has expired."""
    if not _FEEDBACK_TOKEN.fullmatch(token):
        raise Unauthenticated(_BAD_FEEDBACK, field="feedback_token")
    raw = base64.urlsafe_b64decode(token)
    content, tag = raw[:20], raw[20:]
    good = any(hmac.compare_digest(_feedback_mac(secret, content), tag) for secret in _secrets(settings))
    if not good or struct.unpack(">I", content[16:])[0] <= (time.time() if now is None else now):
        raise Unauthenticated(_BAD_FEEDBACK, field="feedback_token")
    return str(uuid.UUID(bytes=content[:16]))


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def _feedback_mac(secret: bytes, content: bytes) -> bytes:
    """16 bytes of HMAC-SHA256. Each answer carries one: the key's part is done once, and nothing lets go of the interpreter."""
    inner, outer = (pad.copy() for pad in _feedback_pads(secret))
    inner.update(content)
    outer.update(inner.digest())
    return outer.digest()[:16]


@functools.lru_cache(maxsize=4)
def _feedback_pads(secret: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """SHA-256 after the inner and after the outer pad of RFC 2104, for the key of feedback tokens."""
    key = _derive(secret, b"feedback token").ljust(hashlib.sha256().block_size, b"\0")
    return hashlib.sha256(key.translate(_INNER)), hashlib.sha256(key.translate(_OUTER))


def _secrets(settings: Security) -> Iterator[bytes]:
    """The secret key, then the previous one. Raises ConfigurationError where there is none."""
    if settings.secret_key is None:
        raise ConfigurationError("There is no secret key. Set SECRET_KEY.")
    yield settings.secret_key.get_secret_value().encode()
    if settings.previous_secret_key is not None:
        yield settings.previous_secret_key.get_secret_value().encode()


def _derive(secret: bytes, purpose: bytes) -> bytes:
    """A key of its own for each purpose, so that no token of one kind can pass for another."""
    return hmac.digest(secret, b"aprendiz " + purpose, "sha256")


def _check_form(token: str) -> None:
    """Refuses, before any cryptography, what `SessionTokens.sign` would never write: size, header fields, repeated names."""
    if len(token) > MAX_TOKEN or not _JWT.fullmatch(token):
        raise Unauthenticated(_BAD)
    parts = token.split(".")
    if _strict_json(parts[0]) != _HEADER:
        raise Unauthenticated(_BAD)
    _strict_json(parts[1])


def _strict_json(part: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError
        return dict(pairs)

    try:
        data = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise Unauthenticated(_BAD) from None
    if not isinstance(value, dict):
        raise Unauthenticated(_BAD)
    return value
