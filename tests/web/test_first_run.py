"""The first run, as a stranger meets it: printed link, account, chat, rating, correction, all of it in the database."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Browser, Page, expect

from tests.web.conftest import PASSWORD, Site, sign_in

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


async def test_from_the_printed_link_to_a_stored_correction(new_site: Site, browser: Browser) -> None:
    site = new_site
    invite = site.process.invite()
    page, watch = await site.open(browser, f"/setup#invite={invite}")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))

    await expect(page.get_by_text("Invite received")).to_be_visible()
    await expect(page.locator("#invite-field")).to_be_hidden()
    assert page.url == f"{site.url}/setup"
    await expect(page.locator("#username")).to_be_focused()
    await page.keyboard.type("ada")
    await page.keyboard.press("Tab")
    await page.keyboard.type("short")
    await expect(page.get_by_text("5 of 12 characters")).to_be_visible()
    await page.get_by_label("Show password").click()
    await expect(page.locator("#password")).to_have_attribute("type", "text")
    await page.locator("#password").fill(PASSWORD)
    await page.keyboard.press("Enter")

    await expect(page.get_by_role("heading", name="Ask your apprentice")).to_be_visible()
    assert page.url == f"{site.url}/"
    assert not any(invite in url for url in sent)
    assert site.rows("SELECT username, role FROM users") == [("ada", "admin")]

    await expect(page.locator("#message")).to_be_focused()
    await page.keyboard.type("say **this** back")
    await page.keyboard.press("Enter")
    answer = page.locator(".turn .words").first
    await expect(answer).to_have_text("say this back")
    await expect(answer.locator("strong")).to_have_text("this")
    await expect(page.locator(".meta")).to_contain_text(re.compile(r"echo/echo · version [0-9a-f]{8} · \d+ tokens"))

    up, down = page.get_by_role("button", name="Good answer"), page.get_by_role("button", name="Bad answer")
    await up.click()
    await expect(page.get_by_text("Saved: good answer")).to_be_visible()
    await down.click()
    await expect(page.get_by_text("Saved: bad answer")).to_be_visible()
    await expect(up).to_have_attribute("aria-pressed", "false")
    await page.get_by_role("button", name="Fix it").click()
    editor = page.get_by_label("What the answer should have been")
    await expect(editor).to_have_value("say **this** back")
    await page.get_by_role("button", name="Save correction").click()
    await expect(page.get_by_text("Nothing has changed yet")).to_be_visible()
    await editor.fill("What I *should* have said")
    await page.get_by_role("button", name="Save correction").click()
    await expect(page.locator(".correction")).to_contain_text("What I should have said")

    assert site.rows("SELECT rating, correction FROM feedback WHERE superseded_at IS NULL") == [
        ("down", "What I *should* have said")
    ]
    assert site.rows("SELECT count(*) FROM feedback") == [(3,)]
    assert site.rows("SELECT output, status FROM predictions") == [("say **this** back", "ok")]
    await reload_and_leave(site, page)
    watch.clean()
    # The one refusal that a browser reports here: after log-out, the chat page asks who is there.
    assert set(watch.answered) <= {401}


async def reload_and_leave(site: Site, page: Page) -> None:
    """A reload shows the same; log-out ends the session on the server and forgets the conversation in this tab."""
    await page.reload()
    await expect(page.locator(".turn .words").first).to_have_text("say this back")
    await expect(page.get_by_role("button", name="Bad answer")).to_have_attribute("aria-pressed", "true")
    await expect(page.locator(".correction")).to_be_visible()
    await page.get_by_role("button", name="Log out").click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert await page.evaluate("sessionStorage.length") == 0
    await page.goto(site.url + "/")
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    await sign_in(page, "ada")
    await expect(page.get_by_role("heading", name="Ask your apprentice")).to_be_visible()


async def test_a_used_invite_is_refused_with_a_way_on(new_site: Site, browser: Browser) -> None:
    site = new_site
    if not site.rows("SELECT id FROM users"):
        site.register("ada", site.process.invite())
    page, watch = await site.open(browser, "/setup")
    await expect(page.locator("#invite-field")).to_be_visible()
    # A link opened in a tab that shows the page already changes only the fragment.
    await page.evaluate(f"location.hash = '#invite={site.process.invite()}'")
    await expect(page.locator("#invite-field")).to_be_hidden()
    assert page.url == f"{site.url}/setup"
    await sign_in(page, "mallory")
    alert = page.get_by_role("alert")
    await expect(alert).to_be_visible()
    assert page.url == f"{site.url}/setup"
    assert site.rows("SELECT count(*) FROM users WHERE username = 'mallory'") == [(0,)]
    await expect(alert).to_contain_text("This invite does not work.")
    await expect(page.locator("#invite")).to_be_focused()
    watch.clean()
