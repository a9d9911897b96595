"""What the tests of the pages share: Chromium, JavaScript without a page."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from importlib import resources
from typing import Any

import pytest
from playwright.async_api import Browser, async_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")

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


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A Chromium that can reach nothing but this machine."""
    if CHROMIUM is None:
        pytest.skip("There is no Chromium here (`apt-get install chromium`).")
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
