"""Signing in, sessions that end, and whose words are whose."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, expect

from tests.web.conftest import Site, sign_in

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


async def test_wrong_password_is_told_and_can_be_mended(site: Site, browser: Browser) -> None:
    site.user("wendy")
    page, watch = await site.open(browser)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_have_text("Enter a user name.")
    await expect(page.locator("#username")).to_be_focused()
    await sign_in(page, "wendy", "not the password")
    await expect(page.get_by_role("alert")).to_have_text("Wrong user name or password.")
    await expect(page.locator("#password")).to_be_focused()
    await expect(page.locator("#username")).to_have_value("wendy")
    assert watch.answered == [401]
    await sign_in(page, "wendy")
    await expect(page.locator("#message")).to_be_focused()
    assert {cookie["httpOnly"] for cookie in await page.context.cookies()} == {True}
    assert await page.evaluate("document.cookie") == ""
    watch.clean()


async def test_expired_session_keeps_every_typed_word(site: Site, browser: Browser) -> None:
    page, watch = await site.enter(browser, "xenia")
    await page.locator("#message").fill("first")
    await page.keyboard.press("Enter")
    await page.get_by_role("button", name="Fix it").click()
    await page.get_by_label("What the answer should have been").fill("half a correction")
    await page.locator("#message").fill("a long\nquestion")
    await page.context.clear_cookies()
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("what you typed is kept")).to_be_visible()
    await sign_in(page, "xenia")
    await expect(page.locator("#message")).to_have_value("a long\nquestion")
    await expect(page.get_by_label("What the answer should have been")).to_have_value("half a correction")
    await expect(page.locator(".turn")).to_have_count(1)
    await page.locator("#message").press("Enter")
    await expect(page.locator(".turn .words").nth(2)).to_have_text("a longquestion")
    first = page.locator(".turn").first

    await page.context.clear_cookies()
    await first.get_by_role("button", name="Save correction").click()
    await expect(page.get_by_text("what you typed is kept")).to_be_visible()
    await sign_in(page, "xenia")
    await expect(first.get_by_label("What the answer should have been")).to_have_value("half a correction")
    assert set(watch.answered) == {401}
    watch.clean()


async def test_expired_access_is_renewed_unseen(site: Site, browser: Browser) -> None:
    page, watch = await site.enter(browser, "yara")
    await page.context.clear_cookies(name="aprendiz")
    await page.locator("#message").fill("still here")
    await page.keyboard.press("Enter")
    await expect(page.locator(".turn .words").first).to_have_text("still here")
    assert watch.answered == [401]
    # Calls that find it expired together share one renewal: a rotated token shown late would end the session.
    renewals: list[str] = []
    page.on("request", lambda request: renewals.append(request.url) if request.url.endswith("/auth/refresh") else None)
    await page.context.clear_cookies(name="aprendiz")
    states = await page.evaluate(
        """async () => {
            const home = document.querySelector('script[type=module]').src;
            const { call } = await import(new URL('api.js', home).href);
            return Promise.all(Array.from({ length: 5 }, () => call('/auth/me').then((answer) => answer.status)));
        }"""
    )
    assert states == [200] * 5
    assert len(renewals) == 1
    watch.clean()


async def test_another_user_of_the_same_tab_sees_nothing_of_the_first(site: Site, browser: Browser) -> None:
    page, watch = await site.enter(browser, "ursula")
    await page.locator("#message").fill("private words")
    await page.keyboard.press("Enter")
    await expect(page.locator(".turn .words").first).to_have_text("private words")
    await page.locator("#message").fill("private draft")
    await page.context.clear_cookies()
    await page.goto(site.url + "/login")
    await sign_in(page, site.user("victor"))
    await expect(page.get_by_role("heading", name="Ask your apprentice")).to_be_visible()
    await expect(page.locator("#message")).to_have_value("")
    await expect(page.get_by_text("private")).to_have_count(0)
    assert "private" not in await page.evaluate("JSON.stringify(sessionStorage)")
    watch.clean()


async def test_after_sign_in_only_our_own_pages_follow(site: Site, browser: Browser) -> None:
    page, watch = await site.open(browser, "/login?next=//evil.example/")
    hostile = [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example",
        "\\\\evil.example",
        "javascript:alert(1)",
        "data:text/html,x",
    ]
    chosen = await page.evaluate(
        """async (hostile) => {
            const home = document.querySelector('script[type=module]').src;
            const { destination } = await import(new URL('account.js', home).href);
            return [...hostile, '/docs?x=1', '%'].map((next) => destination('?next=' + encodeURIComponent(next)));
        }""",
        hostile,
    )
    assert chosen == ["/"] * len(hostile) + ["/docs?x=1", "/%"]
    await sign_in(page, site.user("zoe"))
    await expect(page.locator("#message")).to_be_focused()
    assert page.url == f"{site.url}/"
    watch.clean()
