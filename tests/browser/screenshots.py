"""`just screenshots`: pictures of each view of the console, light and dark, from a system that has a bad day.

    python -m tests.browser.screenshots [FOLDER] [--minutes M]      (deploy/screenshots, 3 minutes; needs Chromium)

People register all the while; some addresses do not exist, and the mail server goes away twice: the first outage is
over when the pictures are taken, the second is not.
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
from pathlib import Path

import httpx
from playwright.async_api import Browser, async_playwright, expect

from tests.browser.conftest import CHROMIUM
from tests.e2e.test_way_of_a_mail import register
from tests.support.processes import ROOT, System
from tests.support.smtp_server import Reply, SmtpServer
from tests.support.waiting import eventually
from user_svc.console.pages import PAGES

FOLDER = ROOT / "deploy" / "screenshots"
SCHEMES = ("light", "dark")
VIEWS = ("overview", "mails", "history", "dead-letters", "audit", "login")
TOKEN = "only-for-pictures"
_DEAD = 4


async def scene(system: System, smtp: SmtpServer, day_s: float) -> None:
    """A day of so many seconds; it ends while the breaker is open, with mail in the queue."""
    system.set_env(ADMIN_TOKEN=TOKEN, CIRCUIT_BREAKER_TIMEOUT=f"{max(1, round(day_s / 20))}s")
    await system.start()
    more = system.another("email_svc")
    more.start()
    await more.ready()
    numbers = itertools.count()
    operator = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=system.user.url, timeout=30) as client:

        async def people() -> None:
            while True:
                await register(client, next(numbers))
                await asyncio.sleep(0.4)  # a steady rate

        async def state(wanted: str) -> None:
            async def is_so() -> bool:
                return bool((await client.get(f"{system.user.admin}/circuit-breaker")).json()["state"] == wanted)

            await eventually(is_so, within_s=60, what=f"a breaker that is {wanted}")

        registering = asyncio.create_task(people())
        try:
            await asyncio.sleep(day_s / 4)  # here and below: the course of the day, which the charts show
            smtp.on("rcpt", Reply(550, "5.1.1 no such user"), times=_DEAD)
            await asyncio.sleep(day_s / 4)
            await smtp.refuse()
            await state("open")
            await asyncio.sleep(day_s / 8)
            await smtp.listen()
            await state("closed")
            for action in ("open", "close"):
                done = await client.post(f"{system.user.admin}/circuit-breaker/{action}", json={}, headers=operator)
                assert done.status_code == 200, done.text
            await asyncio.sleep(day_s / 4)
            await smtp.refuse()
            await state("open")
            await asyncio.sleep(day_s / 8)
        finally:
            registering.cancel()


async def pictures(browser: Browser, admin: str, folder: Path) -> None:
    """All views in both schemes, as `<view>-<scheme>.png`."""
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        letter = (await client.get(f"{admin}/dead-letters")).json()["dead_letters"][0]
    history = f"/console/mails/{letter['user_id']}"
    addresses = {name.lower().replace(" ", "-"): address for name, address in PAGES.items()} | {"history": history}
    for scheme in SCHEMES:
        context = await browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
        page = await context.new_page()
        await page.goto(f"{admin}/console/login")
        await page.screenshot(path=folder / f"login-{scheme}.png")
        await page.fill("#token", TOKEN)
        await page.keyboard.press("Enter")
        await expect(page.locator("#connection")).to_have_text("Live")
        for view in VIEWS[:-1]:
            await page.goto(admin + addresses[view])
            if await page.locator("#connection").count():
                await expect(page.locator("#connection")).to_have_text("Live" if view == "overview" else "Up to date")
            await page.screenshot(path=folder / f"{view}-{scheme}.png", full_page=True)
        await context.close()


async def take(folder: Path, day_s: float) -> None:
    """The scene, and its pictures."""
    with tempfile.TemporaryDirectory(prefix="mailflow-screenshots-") as data:
        async with SmtpServer() as smtp, async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM)
            system = System(Path(data), f"smtp://127.0.0.1:{smtp.port}")
            try:
                await scene(system, smtp, day_s)
                await pictures(browser, system.user.admin, folder)
            finally:
                await asyncio.to_thread(system.stop)
                await browser.close()


def main() -> None:
    """As the command line says."""
    parser = argparse.ArgumentParser(prog="just screenshots", description="Take pictures of the console.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="where they go (deploy/screenshots)")
    parser.add_argument("--minutes", type=float, default=3.0, help="how long the day before them lasts (3)")
    given = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("screenshots: needs chromium, chromium-browser or google-chrome on the path: apt-get install chromium")
    given.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(take(given.folder, given.minutes * 60))
    print(f"{len(VIEWS) * len(SCHEMES)} pictures in {given.folder}")


if __name__ == "__main__":
    main()
