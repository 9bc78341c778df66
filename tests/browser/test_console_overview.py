"""The overview while things go wrong: what it shows is what is, within seconds, and it comes back by itself."""

import httpx
from playwright.async_api import Page, expect

from tests.e2e.test_way_of_a_mail import register
from tests.support.processes import System
from tests.support.smtp_server import SmtpServer

SOON_MS = 20_000
HIDE = """(hidden) => {
  Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
  document.dispatchEvent(new Event('visibilitychange'));
}"""


async def test_it_follows_an_outage_and_the_recovery(system: System, smtp: SmtpServer, page: Page) -> None:
    """The mail server goes: the valve shuts and mail piles up. It is back: the valve opens, and all is sent."""
    system.set_env(CIRCUIT_BREAKER_TIMEOUT="1s")
    await system.start()
    await page.goto(system.user.admin)
    breaker = page.locator("#breaker")
    await expect(page.locator("#connection")).to_have_text("Live")
    await expect(breaker).to_have_attribute("data-state", "closed")
    await expect(page.locator("#replica-rows")).to_contain_text("email_svc")
    await smtp.refuse()
    async with httpx.AsyncClient(base_url=system.user.url, timeout=30) as client:
        for n in range(12):
            await register(client, n)
    await expect(breaker).to_have_attribute("data-state", "open", timeout=SOON_MS)
    await expect(breaker.locator(".figure")).to_have_text("open")
    await expect(page.locator('[data-v="queue.size"]')).to_have_text("12", timeout=SOON_MS)
    await expect(page.locator("#transition-rows li").first).to_contain_text("open")
    await smtp.listen()
    await expect(breaker).to_have_attribute("data-state", "closed", timeout=SOON_MS)
    await expect(page.locator('[data-v="sent.total"]')).to_have_text("12", timeout=SOON_MS)
    await expect(page.locator('[data-v="queue.size"]')).to_have_text("0", timeout=SOON_MS)
    await expect(page.locator("#balance")).to_contain_text("Balanced")
    await expect(page.locator("#spoken")).to_contain_text("Breaker closed")
    await expect(page.locator("#chart-area figure")).to_have_count(4)


async def test_a_downtime_is_begun_and_ended(system: System, page: Page) -> None:
    """By a dialog each; the page says that it is on, and each leaves its record."""
    await system.start()
    await page.goto(system.user.admin)
    downtime = page.locator("#downtime b")
    await expect(downtime).to_have_text("off", timeout=SOON_MS)
    await page.click("#start-downtime")
    await page.click("#ask-confirm")
    await expect(page.locator("#ask-result")).to_contain_text("is down, for all replicas")
    await page.click("#ask-cancel")
    await expect(downtime).to_have_text("on", timeout=SOON_MS)
    await page.click("#end-downtime")
    await page.click("#ask-confirm")
    await page.click("#ask-cancel")
    await expect(downtime).to_have_text("off", timeout=SOON_MS)
    await page.goto(f"{system.user.admin}/console/audit")
    await expect(page.locator("#rows tr").nth(0)).to_contain_text("downtime end")
    await expect(page.locator("#rows tr").nth(1)).to_contain_text("downtime start")


async def test_what_is_lost_is_said_and_comes_back_by_itself(system: System, page: Page) -> None:
    """The broker away: a problem in words. The service away: not connected, since when. A hidden page: paused."""
    await system.start()
    await page.goto(system.user.admin)
    connection = page.locator("#connection")
    await expect(connection).to_have_text("Live")
    system.nats.kill()
    await expect(page.locator("#problem")).to_contain_text("The broker does not answer", timeout=SOON_MS)
    await expect(page.locator("#as-of")).to_contain_text("These figures are old")
    await expect(page.locator("body")).to_have_class("stale")
    system.nats.start()
    await expect(page.locator("#problem")).to_be_hidden(timeout=SOON_MS)
    await page.evaluate(HIDE, True)
    await expect(connection).to_contain_text("Paused")
    await page.evaluate(HIDE, False)
    await expect(connection).to_have_text("Live")
    system.user.kill()
    await expect(connection).to_contain_text("Not connected since", timeout=SOON_MS)
    system.user.start()
    await expect(connection).to_have_text("Live", timeout=SOON_MS)
