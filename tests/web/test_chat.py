"""The chat page in a real browser: streaming, stopping, trouble, scrolling, keyboard, languages, sizes."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from tests.web.conftest import Site, sign_in

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

WIDTHS = "[document.documentElement.scrollWidth, innerWidth, scroller.scrollWidth, scroller.clientWidth]"


async def ask(page: Page, text: str) -> None:
    await page.locator("#message").fill(text)
    await page.locator("#message").press("Enter")


async def test_stream_stop_and_again(site: Site, browser: Browser) -> None:
    page, watch = await site.enter(browser, "ann")
    site.model("slow")
    words = " ".join(f"word{i}" for i in range(200))
    await ask(page, words)
    turn = page.locator(".turn")
    await expect(turn.locator(".words").first).to_contain_text("word3")
    await expect(turn).to_have_attribute("aria-busy", "true")
    await expect(page.locator("#status")).to_have_text("Answering…")
    await expect(page.get_by_role("button", name="Send")).to_be_hidden()
    await page.get_by_role("button", name="Stop").click()
    await expect(page.get_by_text("You stopped this answer")).to_be_visible()
    await expect(page.get_by_role("button", name="Good answer")).to_be_hidden()
    await expect(page.locator("#message")).to_be_focused()
    await expect(turn.locator(".words").first).not_to_contain_text("word199")
    # Typing goes on while an answer comes; Escape stops it too.
    await page.get_by_role("button", name="Regenerate").click()
    await page.locator("#message").fill("next")
    await page.keyboard.press("Enter")
    await expect(page.locator("#message")).to_have_value("next")
    await page.keyboard.press("Escape")
    await expect(page.get_by_text("You stopped this answer")).to_be_visible()
    site.model("echo")
    await page.get_by_role("button", name="Regenerate").click()
    await expect(turn.locator(".words").first).to_contain_text("word199")
    await expect(turn).to_have_count(1)
    await expect(turn).to_have_attribute("aria-busy", "false")
    watch.clean()


async def test_trouble_is_told_in_place_and_tried_again(site: Site, browser: Browser) -> None:
    page, watch = await site.enter(browser, "ben")
    site.model("breaks")
    await ask(page, "one two three four five")
    trouble = page.get_by_role("alert")
    await expect(trouble).to_contain_text("The service is busy or not ready.")
    await expect(page.locator(".turn .words").first).to_have_text("one two three")
    await expect(page.get_by_role("button", name="Good answer")).to_be_hidden()
    site.model("echo")
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator(".turn .words").first).to_have_text("one two three four five")
    await expect(page.get_by_role("alert")).to_have_count(0)
    # No network at all.
    await page.context.set_offline(True)
    await ask(page, "anybody?")
    await expect(page.get_by_text("The service cannot be reached.")).to_be_visible()
    await page.context.set_offline(False)
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator(".turn .words").nth(2)).to_have_text("anybody?")
    assert [error for error in watch.errors if "ERR_INTERNET_DISCONNECTED" not in error] == []


async def test_a_service_that_is_not_ready_says_so(site: Site, browser: Browser) -> None:
    page, watch = await site.enter(browser, "bob")
    await page.locator("#message").fill("kept")
    await page.route(
        "**/auth/me", lambda route: route.fulfill(status=503, json={"detail": "Not yet."}, headers={"retry-after": "2"})
    )
    await page.reload()
    await expect(page.get_by_role("alert")).to_contain_text("The service is busy or not ready. Not yet. Try again in 2 s.")
    await expect(page.locator("#message")).to_be_hidden()
    await page.unroute("**/auth/me")
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator("#message")).to_have_value("kept")
    watch.clean()


async def test_earlier_turns_are_recalled(site: Site, browser: Browser) -> None:
    page, watch = await site.enter(browser, "cleo")
    await ask(page, "alpha")
    await expect(page.locator(".turn .words").first).to_have_text("alpha")
    await ask(page, "beta")
    await expect(page.locator(".turn .words").nth(2)).to_have_text("beta")
    await page.reload()
    await expect(page.locator(".turn")).to_have_count(2)
    await page.get_by_role("button", name="Regenerate").click()
    await expect(page.locator(".turn .words").nth(2)).to_have_text("beta")
    await expect(page.locator(".turn").nth(1)).to_have_attribute("aria-busy", "false")
    rows = site.rows(
        "SELECT p.input FROM predictions p JOIN users u ON u.id = p.user_id WHERE u.username = 'cleo' ORDER BY p.id"
    )
    inputs = [str(row[0]) for row in rows]
    assert len(inputs) == 3
    assert "alpha" in inputs[1]
    # Another answer to the same question: asked with the same history, not with its own first try.
    assert inputs[2].count("beta") == 1
    assert inputs[2].count("alpha") == 2
    await page.get_by_role("button", name="New chat").click()
    await expect(page.locator(".turn")).to_have_count(0)
    await expect(page.get_by_role("heading", name="Ask your apprentice")).to_be_visible()
    watch.clean()


async def test_another_answer_can_be_compared_with_the_first(site: Site, browser: Browser) -> None:
    page, watch = await site.enter(browser, "carl")
    await ask(page, "which one?")
    await page.get_by_role("button", name="Good answer").click()
    await expect(page.get_by_text("Saved: good answer")).to_be_visible()
    for verdict in ("Worse", "Better"):
        await expect(page.get_by_role("group", name="Is this answer better")).to_be_hidden()
        await page.get_by_role("button", name="Regenerate").click()
        await expect(page.locator(".saved")).to_be_empty()
        await page.get_by_role("button", name=verdict).click()
        await expect(page.get_by_text(f"Saved: {verdict.lower()} than before")).to_be_visible()
    query = """SELECT f.prediction_id, f.rating, f.preferred_over FROM feedback f JOIN users u ON u.id = f.user_id
        WHERE u.username = 'carl' AND f.superseded_at IS NULL ORDER BY f.prediction_id"""
    first, third = site.rows(query)
    ids = [
        row[0]
        for row in site.rows(
            "SELECT p.id FROM predictions p JOIN users u ON u.id = p.user_id WHERE username = 'carl' ORDER BY p.id"
        )
    ]
    assert first == (ids[0], "up", ids[1])
    assert third == (ids[2], None, ids[1])
    watch.clean()


async def test_scrolling_follows_until_the_reader_looks_back(site: Site, browser: Browser) -> None:
    page, watch = await site.enter(browser, "dora", viewport={"width": 700, "height": 400})
    await ask(page, "\n\n".join(f"Paragraph {i}." for i in range(40)))
    await expect(page.locator(".turn .words").first).to_contain_text("Paragraph 39.")
    distance = "scroller.scrollHeight - scroller.clientHeight - scroller.scrollTop"
    await expect(page.locator(".meta")).to_be_in_viewport()
    site.model("slow")
    await ask(page, "\n\n".join(f"Line {i}." for i in range(80)))
    await expect(page.locator(".turn .words").nth(2)).to_contain_text("Line 8.")
    await page.mouse.move(350, 200)
    await page.mouse.wheel(0, -600)
    latest = page.get_by_role("button", name="Latest")
    await expect(latest).to_be_visible()
    held = await page.evaluate("scroller.scrollTop")
    await expect(page.locator(".turn .words").nth(2)).to_contain_text("Line 30.")
    assert abs(await page.evaluate("scroller.scrollTop") - held) < 2
    await latest.click()
    await expect(latest).to_be_hidden()
    await expect(page.locator(".turn .words").nth(2)).to_contain_text("Line 45.")
    assert await page.evaluate(distance) < 100
    await page.keyboard.press("Escape")
    site.model("echo")
    watch.clean()


async def test_keyboard_alone_reaches_everything(site: Site, browser: Browser) -> None:
    page, watch = await site.enter(browser, "eve")
    await expect(page.locator("#message")).to_be_focused()
    await page.keyboard.type("one")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("two")
    await expect(page.locator("#message")).to_have_value("one\ntwo")
    await page.keyboard.press("Enter")
    await expect(page.locator(".turn")).to_have_attribute("aria-busy", "false")
    await expect(page.locator("#status")).to_contain_text("Answer: one\ntwo")
    names: list[str] = []
    await page.locator("body").press("Home")
    await page.evaluate("document.activeElement.blur()")
    for _ in range(14):
        await page.keyboard.press("Tab")
        names.append(
            await page.evaluate("((e) => e.getAttribute('aria-label') || e.textContent.trim() || e.id)(document.activeElement)")
        )
        if names[-1] == "Good answer":
            await page.keyboard.press("Enter")
    for wanted in ("New chat", "Log out", "Good answer", "Bad answer", "Fix it", "Copy", "Regenerate", "message", "Send"):
        assert wanted in names, names
    await expect(page.get_by_text("Saved: good answer")).to_be_visible()
    await page.get_by_role("button", name="Fix it").press("Enter")
    await page.keyboard.press("ControlOrMeta+A")
    await page.keyboard.type("better")
    await page.keyboard.press("ControlOrMeta+Enter")
    await expect(page.locator(".correction")).to_contain_text("better")
    await expect(page.get_by_role("button", name="Edit correction")).to_be_focused()
    watch.clean()


NAMELESS = """[...document.querySelectorAll('button, input, textarea, a')].filter((node) => node.checkVisibility()
    && !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length)).map((node) => node.outerHTML)"""


@pytest.mark.parametrize(
    ("locale", "language", "scheme"), [("es-MX", "es", "dark"), ("en-US", "en", "light"), ("fr-FR", "en", "dark")]
)
async def test_languages_schemes_and_a_small_phone(
    site: Site, browser: Browser, locale: str, language: str, scheme: str
) -> None:
    small: dict[str, Any] = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}
    page, watch = await site.open(browser, locale=locale, color_scheme=scheme, **small)
    for path in ("/setup", "/login"):
        await page.goto(site.url + path)
        await expect(page.locator("html")).to_have_attribute("lang", language)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert await page.evaluate(NAMELESS) == []
    await sign_in(page, site.user(f"p-{locale.lower()}"))
    await expect(page.locator("#message")).to_have_attribute(
        "placeholder", "Escribe un mensaje" if language == "es" else "Write a message"
    )
    await ask(
        page,
        f"{'x' * 300} https://example.org/{'y' * 200}\n\n```py\n{'z' * 300}\n```\n\n|{'a|' * 20}\n|{'-|' * 20}\n|{'1|' * 20}",
    )
    await expect(page.locator(".turn table")).to_be_visible()
    await expect(page.locator(".meta")).not_to_be_empty()
    wide, inner, scroll, client = await page.evaluate(WIDTHS)
    assert wide <= inner
    assert scroll <= client
    assert await page.evaluate(NAMELESS) == []
    paper = await page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(int(part) for part in paper[4:-1].split(",")) < 150) is (scheme == "dark")
    watch.clean()


async def test_what_a_page_costs(site: Site, browser: Browser) -> None:
    page, watch = await site.enter(browser, "greta")
    size = (
        """performance.getEntries().filter((e) => e.transferSize !== undefined).reduce((sum, e) => sum + e.transferSize, 0)"""
    )
    for path in ("/", "/login", "/setup"):
        context = await browser.new_context(storage_state=await page.context.storage_state())
        fresh = await context.new_page()
        await fresh.goto(site.url + path)
        await expect(fresh.locator("html")).to_have_attribute("data-ready", "")
        assert 1_000 < await fresh.evaluate(size) < 50_000
        await context.close()
    watch.clean()
