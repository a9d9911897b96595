"""Tokens: what is refused, what survives a change of the key, and that no token passes for another."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from app.core.errors import ConfigurationError, Unauthenticated
from app.core.ids import uuid7
from app.core.settings import Security
from app.security import tokens
from app.security.tokens import (
    SessionTokens,
    hash_secret,
    is_api_key,
    new_api_key,
    new_refresh_token,
    read_feedback_token,
    session_of_refresh_token,
    sign_feedback_token,
)
from tests.security.world import SECRET, World, raw

NOW = 1_800_000_000.0
SECURITY = Security(secret_key=SecretStr(SECRET))
KEY = hmac.digest(SECRET.encode(), b"aprendiz session token", "sha256")
USER, SESSION = uuid7(), uuid7()


def reader(security: Security = SECURITY, now: float = NOW) -> SessionTokens:
    return SessionTokens(security, now=lambda: now)


def good_claims(now: float = NOW) -> dict[str, Any]:
    return {
        "iss": "aprendiz",
        "aud": "aprendiz-api",
        "sub": USER,
        "sid": SESSION,
        "typ": "access",
        "jti": "j" * 22,
        "iat": int(now),
        "nbf": int(now),
        "exp": int(now) + 900,
    }


def encode(part: Any) -> str:
    data = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def forge(claims: Any = None, *, header: Any = None, key: bytes = KEY, algorithm: str = "sha256", **changes: Any) -> str:
    """A token signed with the right key, so that only what is wrong in it can be the reason to refuse it."""
    if claims is None:
        claims = good_claims() | changes
    if isinstance(claims, dict):
        claims = {name: value for name, value in claims.items() if value is not ...}
    signed = f"{encode({'alg': 'HS256', 'typ': 'JWT'} if header is None else header)}.{encode(claims)}"
    return f"{signed}.{encode(hmac.digest(key, signed.encode(), algorithm))}"


def corpus() -> Iterator[tuple[str, str]]:
    for alg in ("none", "None", "nOnE", "NONE", "", "HS384", "HS512", "RS256", "ES256", "PS256", "EdDSA", "hs256", "HS256 "):
        yield f"alg {alg}", forge(header={"alg": alg, "typ": "JWT"})
    head = encode({"alg": "none", "typ": "JWT"})
    yield "none without signature", f"{head}.{encode(good_claims())}."
    yield "HS256 without signature", f"{encode({'alg': 'HS256', 'typ': 'JWT'})}.{encode(good_claims())}."
    yield "empty key", forge(key=b"")
    yield "the secret itself as the key", forge(key=SECRET.encode())
    yield "the feedback key", forge(key=hmac.digest(SECRET.encode(), b"aprendiz feedback token", "sha256"))
    yield "another key", forge(key=b"k" * 32)
    yield "signed with SHA-512", forge(header={"alg": "HS256", "typ": "JWT"}, algorithm="sha512")
    extras: list[tuple[str, Any]] = [
        ("crit", ["exp"]),
        ("crit", ["b64"]),
        ("b64", False),
        ("kid", "1"),
        ("kid", "../../dev/null"),
        ("kid", "x' UNION SELECT 'k"),
        ("jku", "https://evil.example/jwks"),
        ("x5u", "https://evil.example/c"),
        ("x5c", ["MII"]),
        ("jwk", {"kty": "oct", "k": encode(b"k" * 32)}),
        ("zip", "DEF"),
        ("cty", "JWT"),
    ]
    for name, value in extras:
        yield f"header {name} {value}", forge(header={"alg": "HS256", "typ": "JWT", name: value})
    yield "no typ in the header", forge(header={"alg": "HS256"})
    yield "typ at+jwt", forge(header={"alg": "HS256", "typ": "at+jwt"})
    yield "alg twice", forge(header=b'{"alg":"none","alg":"HS256","typ":"JWT"}')
    yield "exp twice", forge(claims=json.dumps(good_claims()).replace('"iat"', '"exp": 1, "iat"').encode())
    for claim in good_claims():
        yield f"no {claim}", forge(good_claims() | {claim: ...})
    for claim in ("exp", "iat", "nbf"):
        times: list[Any] = [str(int(NOW) + 900), NOW + 900.5, True, None, [1], 10**30, "x"]
        for time_ in times:
            yield f"{claim} {time_!r}", forge(good_claims() | {claim: time_})
    yield "expired", forge(exp=int(NOW))
    yield "not yet", forge(nbf=int(NOW) + 60)
    yield "issued tomorrow", forge(iat=int(NOW) + 86_400, exp=int(NOW) + 90_000)
    yield "good for a century", forge(exp=int(NOW) + 100 * 366 * 86_400)
    yield "exp NaN", forge(claims=json.dumps(good_claims()).replace(str(int(NOW) + 900), "NaN").encode())
    yield "exp Infinity", forge(claims=json.dumps(good_claims()).replace(str(int(NOW) + 900), "Infinity").encode())
    for typ in ("refresh", "feedback", "Access", "", None, ["access"], 1):
        yield f"typ {typ!r}", forge(typ=typ)
    for aud in ("other", ["aprendiz-api"], ["aprendiz-api", "other"], "", None):
        yield f"aud {aud!r}", forge(aud=aud)
    for iss in ("other", ["aprendiz"], "", None):
        yield f"iss {iss!r}", forge(iss=iss)
    yield "sub a number", forge(sub=1)
    yield "sub empty", forge(sub="")
    yield "sid a list", forge(sid=[SESSION])
    yield "jti empty", forge(jti="")
    yield "a claim of one's own", forge(role="admin")
    good = forge()
    for cut in (1, 10, 43, 44, 60, len(good) - 1):
        yield f"truncated by {cut}", good[:-cut]
    yield "one part more", good + ".x"
    yield "no parts", "x"
    yield "empty", ""
    yield "dots", ".."
    yield "one megabyte", "a" * 1_000_000
    yield "one megabyte of claims", forge(jti="j" * 1_000_000)
    yield "padding", good + "="
    yield "not ASCII", good + "é"
    yield "claims are a list", forge(claims=[1])
    yield "claims are deep", forge(claims=b'{"a":' * 500 + b"1" + b"}" * 500)
    yield "header is deep", forge(header=b'{"a":' * 600 + b"1" + b"}" * 600)
    yield "same first 20 characters", good[:20] + "A" * (len(good) - 20)
    yield "plus for minus", good.replace("-", "+").replace("_", "/") + "+"


CORPUS = dict(corpus())


def test_the_corpus_fails_only_where_it_differs() -> None:
    assert len(CORPUS) > 100
    assert reader().read(forge()) == tokens.Claims(USER, SESSION, "access", int(NOW) + 900)


@pytest.mark.parametrize("name", CORPUS)
def test_bad_tokens(name: str) -> None:
    with pytest.raises(Unauthenticated):
        reader().read(CORPUS[name])


async def test_bad_tokens_on_every_carrier(world: World) -> None:
    """0 accepted and no other error than Unauthenticated, through the whole of the authenticator."""
    await world.user()
    begun = await world.accounts.login("ada", "four quiet words help", kind="access", address="a")
    claims = jwt.decode(begun.token, options={"verify_signature": False})
    assert await world.authenticator.principal(raw(authorization=f"Bearer {begun.token}")) is not None
    wrong = [forge(claims | {"typ": "refresh"}), forge(claims | {"sub": USER}), forge(claims | {"sid": SESSION})]
    for token in [*CORPUS.values(), *wrong, begun.refresh_token or "", "apz_" + "A" * 43, begun.token[:-4] + "AAAA"]:
        value = token.encode("latin-1", "replace").decode("latin-1")
        for carrier in ({"authorization": f"Bearer {value}"}, {"x_api_key": value}, {"cookie": f"aprendiz={value}"}):
            if value or "cookie" not in carrier:  # an empty cookie is no credential
                with pytest.raises(Unauthenticated):
                    await world.authenticator.principal(raw(**carrier))


@pytest.mark.parametrize("kind", ["access", "bearer"])
def test_round_trip(kind: Any) -> None:
    token = reader().sign(user_id=USER, session_id=SESSION, kind=kind, lifetime_s=60)
    assert reader(now=NOW + 59).read(token) == tokens.Claims(USER, SESSION, kind, int(NOW) + 60)
    with pytest.raises(Unauthenticated):
        reader(now=NOW + 60).read(token)
    assert token != reader().sign(user_id=USER, session_id=SESSION, kind=kind, lifetime_s=60)


def test_a_new_key_logs_nobody_out_while_the_old_one_is_named() -> None:
    old, new = SecretStr("old" * 20), SecretStr("new" * 20)
    token = reader(Security(secret_key=old)).sign(user_id=USER, session_id=SESSION, kind="access", lifetime_s=60)
    feedback = sign_feedback_token(uuid7(), Security(secret_key=old), now=NOW)
    both = Security(secret_key=new, previous_secret_key=old)
    assert reader(both).read(token).user_id == USER
    assert read_feedback_token(feedback, both, now=NOW)
    fresh = reader(both).sign(user_id=USER, session_id=SESSION, kind="access", lifetime_s=60)
    assert reader(Security(secret_key=new)).read(fresh)
    for security, foreign in ((Security(secret_key=new), token), (Security(secret_key=old), fresh)):
        with pytest.raises(Unauthenticated):
            reader(security).read(foreign)
    with pytest.raises(Unauthenticated):
        read_feedback_token(feedback, Security(secret_key=new), now=NOW)


def test_without_a_key_nothing_is_signed() -> None:
    with pytest.raises(ConfigurationError):
        SessionTokens(Security())
    with pytest.raises(ConfigurationError):
        sign_feedback_token(uuid7(), Security())


def test_feedback_token() -> None:
    prediction = uuid7()
    token = sign_feedback_token(prediction, SECURITY, now=NOW)
    assert len(token) == 48
    assert read_feedback_token(token, SECURITY, now=NOW + 30 * 86_400 - 1) == prediction
    with pytest.raises(Unauthenticated) as caught:
        read_feedback_token(token, SECURITY, now=NOW + 30 * 86_400)
    assert caught.value.field == "feedback_token"
    assert read_feedback_token(sign_feedback_token(prediction, SECURITY), SECURITY) == prediction
    for bad in ("", token[:-1], token + "A", token.swapcase(), "A" * 48, " " + token[1:], token[:-1] + "=", "é" * 48):
        with pytest.raises(Unauthenticated):
            read_feedback_token(bad, SECURITY, now=NOW)


@settings(max_examples=60)
@given(st.integers(0, 47), st.integers(1, 63))
def test_one_changed_character_spoils_a_feedback_token(position: int, step: int) -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    token = sign_feedback_token(uuid7(), SECURITY, now=NOW)
    changed = letters[(letters.index(token[position]) + step) % 64]
    with pytest.raises(Unauthenticated):
        read_feedback_token(token[:position] + changed + token[position + 1 :], SECURITY, now=NOW)


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_any_text_is_refused_cleanly(data: bytes) -> None:
    text = data.decode("latin-1")
    with pytest.raises(Unauthenticated):
        reader().read(text)
    with pytest.raises(Unauthenticated):
        read_feedback_token(text, SECURITY)
    assert session_of_refresh_token(text) is None
    assert not is_api_key(text)


def test_opaque_tokens() -> None:
    refresh = new_refresh_token(SESSION)
    assert len(refresh) == 64
    assert session_of_refresh_token(refresh) == SESSION
    assert refresh != new_refresh_token(SESSION)
    key = new_api_key()
    assert is_api_key(key) and key != new_api_key()
    assert hash_secret(key) == hashlib.sha256(key.encode()).hexdigest()
    assert len(hash_secret("\ud800")) == 64


@pytest.mark.slow
def test_feedback_tokens_are_cheap() -> None:
    prediction = uuid7()
    began = time.monotonic()
    for _ in range(100_000):
        sign_feedback_token(prediction, SECURITY)
    assert (time.monotonic() - began) / 100_000 < 50e-6
