"""The web pages: static HTML, CSS and ES modules, read once into memory and served by the same process.

Refuses to be a template engine or a file server. No page depends on who asks (scripts ask the API, with the caller's own
rights), and nothing is read from the disk while serving: there is no path to traverse, no folder to list, and no `Range` to
bound (a range request gets the whole small file, which RFC 9110 section 14.2 allows).

Every asset lives under ``/static/<digest>/``, where the digest covers all assets together. That address never changes its
content and may be cached for ever; modules import each other by relative paths and so stay within one release.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from app.core.errors import NotFound

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "font-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
"""Own scripts and styles from files only; no inline code, no ``eval``, no string that becomes HTML, nothing from elsewhere."""

PAGES: Mapping[str, str] = {"/": "chat.html", "/login": "login.html", "/setup": "setup.html"}
"""Path to page."""

_CONTENT_TYPES: Mapping[str, str] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_DIGEST = re.compile(r"[0-9a-f]{16}")
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_FIRST = "no-cache"

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Asset:
    """One file in memory, plain and gzipped. ``etag``: without quotes; the gzipped form adds ``-gz``."""

    content_type: str
    body: bytes
    zipped: bytes
    etag: str

    @classmethod
    def of(cls, name: str, body: bytes) -> Asset:
        """Raises KeyError for a kind of file that has no business here."""
        return cls(
            content_type=_CONTENT_TYPES[name.rpartition(".")[2]],
            body=body,
            zipped=gzip.compress(body, 9, mtime=0),
            etag=hashlib.sha256(body).hexdigest()[:20],
        )

    def answer(self, request: Request, *, cache_control: str) -> Response:
        """200 with the content, or 304 where the caller has it; HEAD without the body."""
        zipped = _accepts_gzip(request.headers.get("accept-encoding", ""))
        body = self.zipped if zipped else self.body
        etag = f'"{self.etag}-gz"' if zipped else f'"{self.etag}"'
        headers = {
            "etag": etag,
            "cache-control": cache_control,
            "vary": "accept-encoding",
            "x-content-type-options": "nosniff",
            "content-security-policy": CONTENT_SECURITY_POLICY,
            "referrer-policy": "same-origin",
        }
        if _matches(request.headers.get("if-none-match", ""), etag):
            return Response(status_code=304, headers=headers)
        headers["content-type"] = self.content_type
        headers["content-length"] = str(len(body))
        if zipped:
            headers["content-encoding"] = "gzip"
        return Response(b"" if request.method == "HEAD" else body, headers=headers)


def routes() -> list[BaseRoute]:
    """The routes of all pages and their assets, GET and HEAD; main adds them to the application.

    Raises:
        FileNotFoundError: the package lacks a page.
    """
    files = _read_files()
    digest = _digest(files)
    assets = {name: Asset.of(name, body) for name, body in files.items() if not name.endswith(".html")}
    found: list[BaseRoute] = []
    for path, name in PAGES.items():
        if name not in files:
            raise FileNotFoundError(f"The page {name} is missing from the installation.")
        page = Asset.of(name, files[name].replace(b"/static/", f"/static/{digest}/".encode()))
        found.append(Route(path, _page(page), methods=["GET"], include_in_schema=False))
    found.append(Route("/favicon.ico", _page(assets["favicon.svg"]), methods=["GET"], include_in_schema=False))
    found.append(Route("/static/{path:path}", _static(assets, digest), methods=["GET"], include_in_schema=False))
    return found


def _read_files() -> dict[str, bytes]:
    folder = resources.files("app.web") / "static"
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")}


def _digest(files: Mapping[str, bytes]) -> str:
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{len(files[name])}\0".encode())
        total.update(files[name])
    return total.hexdigest()[:16]


def _page(page: Asset) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return page.answer(request, cache_control=_ASK_FIRST)

    return endpoint


def _static(assets: Mapping[str, Asset], digest: str) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        first, slash, rest = request.path_params["path"].partition("/")
        # Another release's digest (a page opened before an update, or from the other replica) gets today's file, uncached.
        name = rest if slash and _DIGEST.fullmatch(first) else request.path_params["path"]
        asset = assets.get(name)
        if asset is None:
            raise NotFound("There is no such file.")
        return asset.answer(request, cache_control=_FOR_EVER if slash and first == digest else _ASK_FIRST)

    return endpoint


def _accepts_gzip(header: str) -> bool:
    for part in header.lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() == "gzip":
            return weight.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def _matches(header: str, etag: str) -> bool:
    return any(part.strip().removeprefix("W/") in {etag, "*"} for part in header.split(","))
