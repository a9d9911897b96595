"""The pages' HTTP: headers, caching, ranges, paths, sizes."""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator
from importlib import resources

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from app.api.problems import response_of
from app.core.errors import NotFound
from app.web.pages import CONTENT_SECURITY_POLICY, PAGES, routes

STATIC = resources.files("app.web") / "static"
MODULES = sorted(entry.name for entry in STATIC.iterdir() if entry.name.endswith(".js"))


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async def on_not_found(request: Request, error: Exception) -> Response:
        return response_of(error, "/")

    transport = httpx.ASGITransport(Starlette(routes=routes(), exception_handlers={NotFound: on_not_found}))
    async with httpx.AsyncClient(transport=transport, base_url="http://pages.test") as client:
        yield client


def assets(html: str) -> list[str]:
    return re.findall(r'(?:href|src)="(/static/[^"]+)"', html)


@pytest.mark.parametrize("path", PAGES)
async def test_page_has_strict_headers_and_no_inline_code(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"<script(?![^>]* src=)|<style|\bstyle=|\bon\w+=|javascript:|https?://(?!www\.w3\.org)", answer.text)


def test_policy_allows_only_our_own_files() -> None:
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'; script-src 'self';")
    for part in ("base-uri 'none'", "frame-ancestors 'none'", "form-action 'self'", "require-trusted-types-for 'script'"):
        assert part in CONTENT_SECURITY_POLICY


@pytest.mark.parametrize("path", PAGES)
async def test_every_asset_of_a_page_is_there_and_cached_for_ever(client: httpx.AsyncClient, path: str) -> None:
    found = assets((await client.get(path)).text)
    assert found
    for asset in found:
        answer = await client.get(asset)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_other_releases_get_todays_file_uncached(client: httpx.AsyncClient) -> None:
    for path in ("/static/0123456789abcdef/app.css", "/static/app.css"):
        answer = await client.get(path)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-cache"


async def test_not_modified(client: httpx.AsyncClient) -> None:
    first = await client.get("/login")
    for tag in (first.headers["etag"], f"W/{first.headers['etag']}", f'"other", {first.headers["etag"]}', "*"):
        again = await client.get("/login", headers={"if-none-match": tag})
        assert again.status_code == 304
        assert again.content == b""
        assert again.headers["etag"] == first.headers["etag"]
        assert again.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert (await client.get("/login", headers={"if-none-match": '"other"'})).status_code == 200


async def test_gzip_only_where_asked_for(client: httpx.AsyncClient) -> None:
    tags = set()
    for accept, zipped in (("gzip, br", True), ("identity", False), ("gzip;q=0", False), ("", False), ("GZIP;q=0.5", True)):
        answer = await client.get("/static/app.css", headers={"accept-encoding": accept})
        assert (answer.headers.get("content-encoding") == "gzip") is zipped
        assert answer.headers["vary"] == "accept-encoding"
        assert answer.content == (STATIC / "app.css").read_bytes()
        tags.add(answer.headers["etag"])
    assert len(tags) == 2


async def test_head_has_the_headers_and_no_body(client: httpx.AsyncClient) -> None:
    for path in ("/", "/static/app.css"):
        get, head = await client.get(path), await client.head(path)
        assert head.status_code == 200
        assert head.content == b""
        assert head.headers["content-length"] == get.headers["content-length"]
        assert head.headers["etag"] == get.headers["etag"]


async def test_other_methods_are_refused(client: httpx.AsyncClient) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "TRACE"):
        assert (await client.request(method, "/login")).status_code == 405
        assert (await client.request(method, "/static/app.css")).status_code == 405


async def test_ten_thousand_ranges_get_one_whole_file(client: httpx.AsyncClient) -> None:
    ranges = "bytes=" + ",".join(f"{i}-{i}" for i in range(10_000))
    answer = await client.get("/static/app.css", headers={"range": ranges})
    assert answer.status_code == 200
    assert answer.content == (STATIC / "app.css").read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static/chat.html",
        "/static/../pages.py",
        "/static/%2e%2e/pages.py",
        "/static/..%2fpages.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/app.css/",
        "/static/app.css%00",
        "/static/APP.CSS",
        "/static/0123456789abcdef/",
        "/static/0123456789abcdef/0123456789abcdef/app.css",
        "/static/\\..\\pages.py",
    ],
)
async def test_nothing_but_the_assets_is_served(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 404


async def test_each_page_is_light(client: httpx.AsyncClient) -> None:
    """All that a page loads, modules included, stays far below 150 KB even without compression."""
    modules = sum(len((STATIC / name).read_bytes()) for name in MODULES)
    for path in PAGES:
        page = (await client.get(path)).text
        styles = 0
        for asset in {asset for asset in assets(page) if not asset.endswith(".js")}:
            styles += len((await client.get(asset)).content)
        assert len(page.encode()) + styles + modules < 120_000
    assert len(gzip.compress(b"".join((STATIC / name).read_bytes() for name in MODULES))) < 30_000


@pytest.mark.parametrize("name", MODULES)
def test_modules_make_no_html_from_strings(name: str) -> None:
    source = (STATIC / name).read_text("utf-8")
    assert not re.search(
        r"(inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|srcdoc|ContextualFragment",
        source,
    )
    assert len(source.splitlines()) <= 400
    for target in re.findall(r'from "([^"]+)"', source):
        assert target.removeprefix("./") in MODULES


def test_every_word_has_both_languages() -> None:
    source = (STATIC / "messages.js").read_text("utf-8")
    english, spanish = source.split("\n  es: {")
    key = re.compile(r"^    (\w+): \"(.*)\",$", re.MULTILINE)
    words = {language: dict(key.findall(text)) for language, text in (("en", english), ("es", spanish))}
    assert words["en"].keys() == words["es"].keys()
    for name, text in words["en"].items():
        assert re.findall(r"\{\w+\}", text) == re.findall(r"\{\w+\}", words["es"][name])
    everything = "".join((STATIC / name).read_text("utf-8") for name in (*MODULES, *PAGES.values()) if name != "messages.js")
    used = set(re.findall(r'\bt\("(\w+)"|data-t-\w+="(\w+)"|"(\w+_(?:title|password|password_long|busy|button))"', everything))
    flat = {word for group in used for word in group if word}
    assert {word for word in flat if word in words["en"] or "_" in word} <= words["en"].keys()
