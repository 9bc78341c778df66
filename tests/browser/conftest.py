"""A real browser before the real system, and what no page may do in it."""

import shutil
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NOT_LOADED = "Failed to load resource"
"""Browsers log each answer that is bad or does not come; what a page makes of it, a test looks at. What the policy
refuses is logged in other words."""


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """The Chromium of this machine."""
    if CHROMIUM is None:
        pytest.skip("needs chromium, chromium-browser or google-chrome on the path: apt-get install chromium")
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        await started.close()


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page on which nothing went wrong: no error logged, no policy broken, no other host asked, no dialog."""
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    made = await context.new_page()
    wrong: list[str] = []
    hosts: set[str] = set()

    def logged(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(NOT_LOADED):
            wrong.append(message.text)

    made.on("console", logged)
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("dialog", lambda dialog: wrong.append(f"a script's dialog: {dialog.message}"))
    made.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    yield made
    await context.close()
    assert wrong == []
    assert len(hosts) <= 1, hosts
