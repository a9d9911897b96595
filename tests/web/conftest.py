"""What the tests of the pages share: the real service, Chromium, JavaScript without a page."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Dialog, Page, async_playwright, expect

from tests.acceptance.harness import ServiceProcess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")
PASSWORD = "quiet lantern over seven hills"

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
]

RunModule = Callable[[str, str, Any], Any]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """A Chromium that can reach nothing but this machine."""
    if CHROMIUM is None:
        pytest.skip("There is no Chromium here (`apt-get install chromium`).")
    expect.set_options(timeout=20_000)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
def run_module() -> RunModule:
    """``run(module, expression, value)``: evaluates ``expression`` over the module ``m`` and the JSON value ``v`` with Node."""
    node = NODE
    if node is None:
        pytest.skip("There is no Node here; the browser tests use the same modules.")

    def run(module: str, expression: str, value: Any) -> Any:
        address = resources.files("app.web") / "static" / module
        program = (
            f'import * as m from {json.dumps(f"file://{address}")}; import {{ readFileSync }} from "node:fs";'
            f"const v = JSON.parse(readFileSync(0, 'utf8')); process.stdout.write(JSON.stringify(await ({expression})));"
        )
        done = subprocess.run(
            [node, "--input-type=module", "--eval", program],
            input=json.dumps(value),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@dataclass
class Watch:
    """What a page did that it should not have done."""

    url: str
    page: Page
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)

    def start(self) -> Watch:
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(f"page error: {error}"))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.on("dialog", self._dialog)
        return self

    def clean(self) -> None:
        """Nothing wrong on the console (a script ran, the policy was broken, an error), and nobody else was asked."""
        assert self.errors == []
        assert self.foreign == []

    def _heard(self, message: ConsoleMessage) -> None:
        refused = re.match(r"Failed to load resource: the server responded with a status of (\d+)", message.text)
        if refused:
            self.answered.append(int(refused[1]))
        elif message.type in ("error", "warning"):
            self.errors.append(f"{message.type}: {message.text}")

    def _asked(self, url: str) -> None:
        if not url.startswith((f"{self.url}/", "data:", "blob:")):
            self.foreign.append(url)

    async def _dialog(self, dialog: Dialog) -> None:
        self.errors.append(f"dialog: {dialog.message}")
        await dialog.dismiss()


@dataclass(slots=True)
class Site:
    """The real service, in a process of its own, with the echo provider."""

    process: ServiceProcess
    _admin: dict[str, str] = field(default_factory=dict)
    _model: str = "echo"

    @property
    def url(self) -> str:
        return self.process.url

    @property
    def admin(self) -> dict[str, str]:
        """Headers of an administrator; the first use takes the printed invite."""
        if not self._admin:
            self.register("root", self.process.invite())
            body = {"username": "root", "password": PASSWORD}
            answer = httpx.post(f"{self.url}/auth/token", json=body, timeout=30)
            assert answer.status_code == 200, answer.text
            self._admin = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        return self._admin

    def register(self, name: str, invite: str) -> None:
        """Makes an account; its password is `PASSWORD`."""
        body = {"username": name, "password": PASSWORD, "invite": invite}
        answer = httpx.post(f"{self.url}/auth/register", json=body, timeout=30)
        assert answer.status_code == 201, answer.text

    def user(self, name: str) -> str:
        """A new account with a user's rights; returns its name."""
        invite = httpx.post(f"{self.url}/auth/invites", json={"role": "user"}, headers=self.admin, timeout=30)
        assert invite.status_code == 201, invite.text
        self.register(name, invite.json()["token"])
        return name

    def model(self, name: str) -> None:
        """Serves ``echo/name`` from now on."""
        if name == self._model:
            return
        self._model = name
        answer = httpx.post(f"{self.url}/model", json={"provider": "echo", "model": name}, headers=self.admin, timeout=30)
        assert answer.status_code == 200, answer.text

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the database holds."""
        with contextlib.closing(sqlite3.connect(f"file:{self.process.data / 'aprendiz.db'}?mode=ro", uri=True)) as database:
            return database.execute(query).fetchall()

    async def open(self, browser: Browser, path: str = "/login", **options: Any) -> tuple[Page, Watch]:
        """A page of a new browser profile."""
        context = await browser.new_context(**{"locale": "en-GB", "viewport": {"width": 1100, "height": 800}, **options})
        context.set_default_timeout(20_000)
        page = await context.new_page()
        watch = Watch(self.url, page).start()
        await page.goto(self.url + path)
        return page, watch

    async def enter(self, browser: Browser, name: str, **options: Any) -> tuple[Page, Watch]:
        """A page where ``name``, a new user, has signed in and sees the chat."""
        self.user(name)
        self.model("echo")
        page, watch = await self.open(browser, **options)
        await sign_in(page, name)
        await page.locator("#message").wait_for()
        return page, watch


async def sign_in(page: Page, name: str, password: str = PASSWORD) -> None:
    """Fills in the sign-in form and sends it."""
    await page.locator("#username").fill(name)
    await page.locator("#password").fill(password)
    await page.keyboard.press("Enter")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One service for all tests; its printed invite is taken."""
    yield from _serve(tmp_path_factory)


@pytest.fixture(scope="module")
def new_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A service that nobody has opened yet."""
    yield from _serve(tmp_path_factory)


def _serve(folders: pytest.TempPathFactory) -> Iterator[Site]:
    if CHROMIUM is None:
        pytest.skip("There is no Chromium here (`apt-get install chromium`).")
    with ServiceProcess(folders.mktemp("site")) as process:
        yield Site(process)
