"""The HTTP edge: foreign origins, hosts, bounds, security headers."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from starlette.responses import Response

from app.api.problems import respond
from app.core.settings import Server
from app.security.asgi import App, Message, Receive, Scope, Send
from app.security.bounds import MAX_HEADER_BYTES, MAX_HEADERS, MAX_URL_BYTES
from app.security.edge import CrossSiteGuard, RequestBounds, SecurityHeaders, TrustedHost

SERVER = Server(max_body_bytes=2048, receive_timeout_s=0.05)


class Echo:
    """An app that reads the whole body and answers with its length; counts how often it was reached."""

    def __init__(self) -> None:
        self.reached = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.reached += 1
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        await Response(str(size))(scope, receive, send)


class Swallow(Echo):
    """An app that turns every failure to read into a 400 of its own, as FastAPI does."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except Exception:
            await Response("my own words", status_code=400)(scope, receive, send)


async def call(
    app: App,
    *,
    method: str = "POST",
    kind: str = "http",
    headers: list[tuple[str, str]] | None = None,
    path: str = "/predict",
    query: bytes = b"",
    scheme: str = "http",
    pieces: list[bytes] | None = None,
    stall: bool = False,
    host: str | None = "localhost:8000",
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer; for a handshake 101 or 403."""
    lines = [] if host is None else [("host", host)]
    scope: Scope = {
        "type": kind,
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "scheme": scheme if kind == "http" else scheme.replace("http", "ws"),
        "client": ("203.0.113.7", 1),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in lines + (headers or [])],
    }
    if kind == "websocket":
        del scope["method"]
    waiting = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces or []]
    if not stall:
        waiting.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Message] = []

    async def receive() -> Message:
        if not waiting:
            await asyncio.sleep(30)
        return waiting.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    if kind == "websocket":
        return (101 if sent[0]["type"] == "websocket.accept" else 403), {}, b""
    starts = [message for message in sent if message["type"] == "http.response.start"]
    assert len(starts) == 1
    found = {name.decode().lower(): value.decode() for name, value in starts[0]["headers"]}
    return starts[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


def guard(app: App, **server: Any) -> CrossSiteGuard:
    return CrossSiteGuard(app, Server(**server), respond=respond)


OWN = "http://localhost:8000"
ORIGINS = {
    "own": (OWN, True),
    "own over TLS": ("https://localhost:8000", True),
    "other": ("https://evil.example", False),
    "null": ("null", False),
    "sibling": ("http://app.localhost:8000", False),
    "parent": ("http://host:8000", False),
    "other port": ("http://localhost:9000", False),
    "prefix": ("http://localhost:8000.evil.example", False),
    "user info": ("http://localhost:8000@evil.example", False),
    "with a path": ("http://localhost:8000/x", False),
    "another scheme": ("ftp://localhost:8000", False),
    "empty": ("", False),
    "absent": (None, None),
}
SITES = {"same-origin": True, "none": True, "same-site": False, "cross-site": False, "junk": False, None: None}
TYPES = ["application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None]


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("origin", ORIGINS)
async def test_cross_site_matrix(origin: str, kind: str) -> None:
    value, origin_good = ORIGINS[origin]
    app = Echo()
    guarded = guard(app)
    methods = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "PROPFIND", "post"] if kind == "http" else ["GET"]
    for method, site, content, cookie in itertools.product(methods, SITES, TYPES, (True, False)):
        headers = [("cookie", "aprendiz=x")] if cookie else []
        headers += [("origin", value)] if value is not None else []
        headers += [("sec-fetch-site", site)] if site is not None else []
        headers += [("content-type", content)] if content else []
        before = app.reached
        status, _, _ = await call(guarded, kind=kind, method=method, headers=headers)
        guards = cookie and (kind == "websocket" or method not in ("GET", "HEAD", "OPTIONS"))
        allowed = not guards or (origin_good is not False and SITES[site] is not False)
        assert (app.reached - before, status) == ((1, 101 if kind == "websocket" else 200) if allowed else (0, 403)), headers


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ([], True),  # a program with a cookie jar
        ([("referer", OWN + "/")], False),
        ([("sec-fetch-mode", "navigate")], False),
        ([("sec-fetch-dest", "empty")], False),
        ([("origin", OWN), ("origin", "https://evil.example")], False),
        ([("origin", OWN), ("origin", OWN)], False),
        ([("sec-fetch-site", "same-origin"), ("sec-fetch-site", "none")], False),
        ([("origin", OWN.upper())], True),
        ([("origin", OWN), ("sec-fetch-site", "cross-site")], False),
    ],
)
async def test_odd_senders(headers: list[tuple[str, str]], allowed: bool) -> None:
    status, _, _ = await call(guard(Echo()), headers=[("cookie", "aprendiz=x"), *headers])
    assert status == (200 if allowed else 403)


@pytest.mark.parametrize(
    ("server", "scheme", "host", "origin", "allowed"),
    [
        ({}, "https", "llm.example", "https://llm.example", True),
        ({}, "https", "llm.example", "https://llm.example:443", True),
        ({}, "https", "llm.example", "http://llm.example", False),
        ({}, "http", "llm.example", "http://llm.example:80", True),
        ({}, "http", "[::1]:8000", "http://[::1]:8000", True),
        ({"public_url": "https://llm.example/app/"}, "http", "backend:8000", "https://llm.example", False),
        ({"public_url": "https://llm.example/"}, "http", "backend:8000", "https://llm.example", True),
        ({"public_url": "https://llm.example"}, "http", "backend:8000", "https://evil.example", False),
        ({"cors_origins": ("https://other.example",)}, "http", "localhost", "https://other.example", False),
        ({}, "http", "evil.example:8000", OWN, False),
    ],
)
async def test_our_own_origins(server: dict[str, Any], scheme: str, host: str, origin: str, allowed: bool) -> None:
    headers = [("cookie", "aprendiz=x"), ("origin", origin)]
    status, _, _ = await call(guard(Echo(), **server), scheme=scheme, host=host, headers=headers)
    assert status == (200 if allowed else 403)


async def test_a_refusal_is_a_problem() -> None:
    status, headers, body = await call(guard(Echo()), headers=[("cookie", "a=b"), ("origin", "https://evil.example")])
    assert status == 403
    assert headers["content-type"] == "application/problem+json"
    assert b"cross-site-refused" in body


HOSTS = ("localhost", "127.0.0.1", "[::1]", "*.lab.example")


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("127.0.0.1:1", True),
        ("[::1]", True),
        ("[::1]:8000", True),
        ("[0:0:0:0:0:0:0:1]", True),
        ("llm.example.org", True),
        ("a.lab.example", True),
        ("lab.example", False),
        ("evil.example", False),
        ("", False),
        (None, False),
        ("localhost.", False),
        ("localhost:", False),
        ("localhost:99999", False),
        ("localhost:80:80", False),
        ("a/health?x=", False),
        ("a#", False),
        ("localhost/health?x=", False),
        ("localhost#", False),
        ("localhost?", False),
        ("localhost\\@evil", False),
        ("user@localhost", False),
        ("localhost evil.example", False),
        ("localhost,evil.example", False),
        ("evil.example\x00localhost", False),
        ("[::1", False),
        ("[::1]evil", False),
        ("[::zz]", False),
        ("[1.2.3.4]", False),
        ("::1", False),
        ("a" * 8192, False),
        ("..", False),
        ("lab..lab.example", False),
        ("*", False),
    ],
)
async def test_hosts(host: str | None, allowed: bool) -> None:
    app = Echo()
    server = Server(trusted_hosts=HOSTS, public_url="https://llm.example.org:444/x")
    status, headers, _ = await call(TrustedHost(app, server, respond=respond), host=host)
    assert (status, app.reached) == ((200, 1) if allowed else (400, 0))
    assert allowed or headers["content-type"] == "application/problem+json"


async def test_two_hosts_and_any_host() -> None:
    trusted = TrustedHost(Echo(), Server(trusted_hosts=("localhost",)), respond=respond)
    assert (await call(trusted, headers=[("host", "localhost:8000")]))[0] == 400
    anyone = TrustedHost(Echo(), Server(trusted_hosts=("*",)), respond=respond)
    assert (await call(anyone, host="whoever.example"))[0] == 200
    assert (await call(anyone, host="a/b"))[0] == 400
    assert (await call(trusted, kind="websocket", host="evil.example"))[0] == 403
    assert (await call(trusted, kind="websocket"))[0] == 101


def bounded(app: App) -> RequestBounds:
    return RequestBounds(app, SERVER, respond=respond)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("content-length", "2048")], 200),
        ([("content-length", "2049")], 413),
        ([("content-length", "1" * 30)], 400),
        ([("content-length", "-1")], 400),
        ([("content-length", "1e3")], 400),
        ([("content-length", "0x10")], 400),
        ([("content-length", "١")], 400),
        ([("content-length", "5"), ("content-length", "6")], 400),
        ([("content-length", "5"), ("content-length", "5")], 400),
        ([("content-length", "5"), ("transfer-encoding", "chunked")], 400),
        ([("transfer-encoding", "chunked")], 200),
        ([(f"x-{number}", "1") for number in range(MAX_HEADERS - 1)], 200),
        ([(f"x-{number}", "1") for number in range(MAX_HEADERS)], 431),
        ([("x", "a" * (MAX_HEADER_BYTES - 30))], 200),
        ([("x", "a" * MAX_HEADER_BYTES)], 431),
    ],
)
async def test_head_bounds(headers: list[tuple[str, str]], status: int) -> None:
    app = Echo()
    encoded = [(name, value.encode().decode("latin-1")) for name, value in headers]
    answer, found, _ = await call(bounded(app), headers=encoded)
    assert (answer, app.reached) == (status, int(status == 200))
    if status != 200:
        assert found["content-type"] == "application/problem+json"
        assert found["connection"] == "close"


async def test_url_bounds() -> None:
    assert (await call(bounded(Echo()), path="/" + "a" * (MAX_URL_BYTES - 2)))[0] == 200
    assert (await call(bounded(Echo()), path="/" + "a" * MAX_URL_BYTES))[0] == 414
    assert (await call(bounded(Echo()), query=b"a" * MAX_URL_BYTES))[0] == 414
    assert (await call(bounded(Echo()), kind="websocket", query=b"a" * MAX_URL_BYTES))[0] == 403


@pytest.mark.parametrize("app", [Echo, Swallow])
@pytest.mark.parametrize(
    ("pieces", "stall", "headers", "status"),
    [
        ([b"a" * 1024, b"b" * 1024], False, [], 200),
        ([b"a" * 1024, b"b" * 1024, b"c"], False, [], 413),
        ([b"a" * 1024] * 600_000, False, [], 413),
        ([b"a" * 1024, b"b" * 1025], False, [("content-length", "10")], 413),
        ([], True, [("content-length", "10")], 408),
        ([b"a"], True, [("content-length", "10")], 408),
    ],
)
async def test_body_bounds(
    app: type[Echo], pieces: list[bytes], stall: bool, headers: list[tuple[str, str]], status: int
) -> None:
    answer, found, body = await call(bounded(app()), pieces=pieces, stall=stall, headers=headers)
    assert answer == status
    if status != 200:
        assert found["content-type"] == "application/problem+json"
        assert found["connection"] == "close"
        assert b"my own words" not in body


async def test_a_trickle_is_cut_although_each_piece_comes_in_time() -> None:
    app = RequestBounds(Echo(), Server(receive_timeout_s=0.2), respond=respond)
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"a", "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    async with asyncio.timeout(10):
        await app(scope, receive, send)
    assert sent[0]["status"] == 408


async def test_waiting_for_the_client_to_leave_is_not_cut() -> None:
    left = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal left
        while (await receive()).get("more_body"):
            pass
        left = (await receive())["type"] == "http.disconnect"

    messages: list[Message] = [{"type": "http.request", "body": b"a"}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        await asyncio.sleep(0 if len(messages) == 2 else 0.2)
        return messages.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError

    await bounded(app)({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}, receive, send)
    assert left


async def test_an_error_of_the_app_passes() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError):
        await call(bounded(app))


@pytest.mark.parametrize("layer", [bounded, guard, lambda app: SecurityHeaders(app, SERVER)])
async def test_lifespan_passes(layer: Any) -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    await layer(app)({"type": "lifespan"}, None, None)
    assert seen == ["lifespan"]


async def test_security_headers_on_every_answer() -> None:
    inner = bounded(CrossSiteGuard(Echo(), SERVER, respond=respond))
    app = SecurityHeaders(TrustedHost(inner, SERVER, respond=respond), SERVER)
    for arguments in (
        {},
        {"host": "evil.example"},
        {"path": "/" + "a" * 9000},
        {"headers": [("content-length", "9999")]},
        {"pieces": [b"a" * 4096]},
        {"headers": [("cookie", "a=b"), ("origin", "null")]},
    ):
        _, headers, _ = await call(app, **arguments)
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'; base-uri 'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
        assert "permissions-policy" in headers
        assert headers["cache-control"] == "no-store"
        assert "strict-transport-security" not in headers
    _, headers, _ = await call(app, scheme="https")
    assert headers["strict-transport-security"].startswith("max-age=63072000")


async def test_a_page_keeps_its_own_headers() -> None:
    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        own = {"Content-Security-Policy": "default-src 'self'", "cache-control": "max-age=60"}
        await Response("x", headers=own)(scope, receive, send)

    _, headers, _ = await call(SecurityHeaders(page, SERVER))
    assert headers["content-security-policy"] == "default-src 'self'"
    assert headers["cache-control"] == "max-age=60"
    assert headers["x-content-type-options"] == "nosniff"
