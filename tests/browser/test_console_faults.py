"""What the console says when something is amiss: nothing is told for certain that is not known."""

import httpx
from playwright.async_api import Page, expect

from contracts import subjects as s
from contracts.runtime.broker import connect
from tests.browser.test_console_pages import TOKEN
from tests.e2e.test_way_of_a_mail import register
from tests.support.processes import System, http_status
from tests.support.waiting import eventually

SOON_MS = 20_000


async def registered(system: System) -> str:
    """The id of a user."""
    async with httpx.AsyncClient(base_url=system.user.url) as client:
        return str((await register(client, 1)).json()["id"])


async def write(system: System, subject: str, data: bytes) -> None:
    """As nobody, who may do everything in a test."""
    broker = await connect(name="test", url=system.nats.url, on_closed=lambda reason: None)
    await broker.store(subject, data)
    await broker.close()


async def test_a_user_is_not_missing_while_a_service_starts(system: System, page: Page) -> None:
    """user_svc without a broker knows nobody yet: the page says that it tries again, and is right afterwards."""
    await system.start()
    user_id = await registered(system)
    system.user.kill()
    system.nats.kill()
    system.user.start()

    await eventually(lambda: http_status(f"{system.user.admin}/healthz") == 200, within_s=20)
    await page.goto(f"{system.user.admin}/console/mails/{user_id}")
    await expect(page.locator("#connection")).to_contain_text("Trying again")
    await expect(page.locator("#problem")).to_be_hidden()
    await page.goto(f"{system.user.admin}/console/mails")
    await page.fill("#who", user_id)
    await page.keyboard.press("Enter")
    await expect(page.locator("#find-result")).to_contain_text("▲")
    await expect(page.locator("#find-result")).not_to_contain_text("Nobody has that id")
    system.nats.start()
    await system.user.ready()
    await page.goto(f"{system.user.admin}/console/mails/{user_id}")
    await expect(page.locator("#name")).to_have_text("Mails of User 1")


async def test_what_may_have_been_done_is_not_told_as_not_done(system: System, page: Page) -> None:
    """An action whose answer is lost, with the broker or with the service. An open dialog stays what it is."""
    await system.start()
    user_id = await registered(system)
    await page.goto(f"{system.user.admin}/console/mails/{user_id}")
    await expect(page.locator("#name")).to_have_text("Mails of User 1")
    await page.evaluate("document.getElementById('erase').click(); document.getElementById('resend').click()")
    await expect(page.locator("#ask-title")).to_have_text("Erase this user")
    await page.click("#ask-cancel")
    await page.click("#resend")
    system.nats.pause()
    await page.click("#ask-confirm")
    await expect(page.locator("#ask-result")).to_contain_text("ot known whether it was done", timeout=SOON_MS)
    system.nats.resume()
    await page.click("#ask-cancel")
    await page.click("#resend")
    system.user.kill()
    await page.click("#ask-confirm")
    await expect(page.locator("#ask-result")).to_contain_text("Not known whether it was done: It does not answer")


async def test_a_logout_that_fails_is_said(system: System, page: Page) -> None:
    """The service is gone: whoever leaves the machine then is still logged in, and is told."""
    system.set_env(ADMIN_TOKEN=TOKEN)
    await system.start(email=False)
    await page.goto(f"{system.user.admin}/console/login?next=/console/mails")
    await page.fill("#token", TOKEN)
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"{system.user.admin}/console/mails")
    system.user.kill()
    await page.click("#logout")
    await expect(page.locator("#not-out")).to_contain_text("Still logged in: It does not answer")


async def test_a_damaged_user_is_said_and_can_be_erased(system: System, page: Page) -> None:
    """A record that no version wrote: the page says so, sends nothing again, and erases."""
    await system.start()
    user_id = await registered(system)
    await page.goto(f"{system.user.admin}/console/mails/{user_id}")
    await expect(page.locator("#email")).to_have_text("user1@example.com")
    await write(system, s.user_key(user_id), b"no record")
    await expect(page.locator("#problem")).to_contain_text("can be erased", timeout=SOON_MS)
    await expect(page.locator("#resend")).to_be_disabled()
    assert "user1@example.com" not in await page.content()
    await page.click("#erase")
    await page.fill("#field-confirm", user_id)
    await page.click("#ask-confirm")
    await expect(page.locator("#ask-result")).to_contain_text("Erased")
    await page.click("#ask-cancel")
    await expect(page.locator("#problem")).to_contain_text("There is no such user")


async def test_what_is_in_quarantine_needs_a_person(system: System, page: Page) -> None:
    """A message that is no event of ours is counted on the overview and beside the dead letters, of which there are
    none."""
    await system.start()
    await page.goto(system.user.admin)
    await expect(page.locator("#quarantine")).to_have_text("None in quarantine.", timeout=SOON_MS)
    await page.goto(f"{system.user.admin}/console/dead-letters")
    await expect(page.locator("#none")).to_contain_text("Nothing needs a person")
    await write(system, s.welcome_requested(f"{'b' * 26}.1"), b"no event")
    await expect(page.locator("#quarantine")).to_contain_text("1 message is in quarantine", timeout=SOON_MS)
    await expect(page.locator("#needs-nobody")).to_be_hidden()
    await page.goto(system.user.admin)
    await expect(page.locator("#quarantine")).to_contain_text("1 message is in quarantine", timeout=SOON_MS)


async def test_an_address_does_not_get_into_the_filter(system: System, page: Page) -> None:
    """It would stand in the request's address; the page refuses it in words, and goes on when it is gone."""
    await system.start(email=False)
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    await page.goto(f"{system.user.admin}/console/dead-letters")
    await expect(page.locator("#none")).to_be_visible()
    await page.fill("#reason", "ada@example.com")
    await page.keyboard.press("Enter")
    words = await page.evaluate("document.getElementById('reason').validationMessage")
    assert "no email address" in words
    await page.fill("#reason", "greylisted")
    await page.keyboard.press("Enter")
    await expect(page.locator("#none-match")).to_be_visible()
    assert [url for url in seen if "%40" in url or "@" in url] == []
