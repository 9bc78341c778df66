"""The console as its users have it: a browser, both services, a broker and a mail server that refuses."""

import asyncio

import httpx
from playwright.async_api import Page, expect

from tests.e2e.test_way_of_a_mail import register
from tests.support.processes import System
from tests.support.smtp_server import Reply, SmtpServer
from tests.support.waiting import eventually
from user_svc.console.pages import PAGES

TOKEN = "a-token-for-the-console"
ATTACK = "<img src=x onerror=alert(1)><script>alert(2)</script>"


async def dead(system: System, smtp: SmtpServer, count: int) -> None:
    """So many dead letters; the mail server takes mail again."""
    smtp.on("rcpt", Reply(550, "5.1.1 no such user"))
    async with httpx.AsyncClient(base_url=system.user.url, timeout=30) as client:
        for batch in range(0, count, 50):
            await asyncio.gather(*(register(client, n) for n in range(batch, min(count, batch + 50))))

        async def all_dead() -> bool:
            return bool((await client.get(f"{system.user.admin}/ledger")).json()["dead"]["open"] == count)

        await eventually(all_dead, within_s=60, what=f"{count} dead letters")
    smtp.on("rcpt", None)


async def test_dead_letters_are_replayed_with_their_progress(system: System, smtp: SmtpServer, page: Page) -> None:
    """200 of them: counted before, asked once, watched, and gone; the page says then that nothing needs a person."""
    await system.start()
    await dead(system, smtp, 200)
    await page.goto(f"{system.user.admin}/console/dead-letters")
    await expect(page.locator("#found")).to_contain_text("there are more")
    await page.fill("#reason", "of another kind")
    await page.keyboard.press("Enter")
    await expect(page.locator("#none-match")).to_be_visible()
    await page.click("text=Show all")
    await expect(page.locator("#list")).to_be_visible()
    await page.fill("#code", "550")
    await page.click("#replay-all")
    await expect(page.locator("#ask-confirm")).to_have_text("Replay 200 mails")
    await page.click("#ask-confirm")
    await expect(page.locator("#ask-result")).to_contain_text("Started for 200 mails")
    await page.click("#ask-cancel")
    await expect(page.locator("#progress-words")).to_contain_text("200 of 200 mails", timeout=20_000)
    await page.click("text=Show all")
    await expect(page.locator("#none")).to_contain_text("Nothing needs a person", timeout=10_000)
    await eventually(lambda: len(smtp.accepted) == 200, within_s=20)
    await page.goto(f"{system.user.admin}/console/audit")
    await expect(page.locator("#rows tr").first).to_contain_text("done; 200 of 200 sent again")


async def test_one_and_some_are_replayed_and_a_replay_is_stopped(system: System, smtp: SmtpServer, page: Page) -> None:
    """By the button of a row, by boxes; and a slow one ends where it is when it is told to."""
    await system.start()
    await dead(system, smtp, 20)
    await page.goto(f"{system.user.admin}/console/dead-letters")
    await expect(page.locator("#found")).to_have_text("20 mails")
    await page.locator("#rows button").first.click()
    await page.click("#ask-confirm")
    await page.click("#ask-cancel")
    await expect(page.locator("#found")).to_have_text("19 mails", timeout=10_000)
    for box in (0, 1, 2):
        await page.locator("#rows input").nth(box).check()
    await expect(page.locator("#found")).to_have_text("19 mails · 3 selected")
    await page.click("#replay-chosen")
    await page.click("#ask-confirm")
    await page.click("#ask-cancel")
    await expect(page.locator("#found")).to_have_text("16 mails", timeout=10_000)
    await page.click("#replay-all")
    await page.fill("#field-per_second", "1")
    await page.click("#ask-confirm")
    await page.click("#ask-cancel")
    await page.click("#stop")
    await page.click("#ask-confirm")
    await expect(page.locator("#ask-result")).to_contain_text("Stopped after")
    await page.click("#ask-cancel")
    await expect(page.locator("#stop")).to_be_hidden()


async def test_a_mail_is_found_sent_again_and_erased_and_its_name_stays_text(
    system: System, smtp: SmtpServer, page: Page
) -> None:
    """A name that attacks is shown as it is; the address is in no page's address."""
    await system.start()
    async with httpx.AsyncClient(base_url=system.user.url) as client:
        user = {"email": "o'eve+1@example.com", "name": ATTACK}
        user_id = (await client.post("/v1/users", json=user)).json()["id"]
    admin = system.user.admin
    await page.goto(f"{admin}/console/mails")
    await page.fill("#who", "nobody@example.com")
    await page.keyboard.press("Enter")
    await expect(page.locator("#find-result")).to_contain_text("Nobody is registered")
    await page.fill("#who", "O'Eve+1@Example.com")
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"{admin}/console/mails/{user_id}")
    await expect(page.locator("#name")).to_have_text(f"Mails of {ATTACK}")
    await expect(page.locator("#email")).to_have_text("o'eve+1@example.com", ignore_case=True)
    await expect(page.locator(".mail .tag").first).to_have_text("✓ sent", timeout=10_000)
    await page.click("#resend")
    await page.click("#ask-confirm")
    await expect(page.locator("#ask-result")).to_contain_text("Asked for")
    await page.click("#ask-cancel")
    await expect(page.locator(".mail")).to_have_count(2)
    await eventually(lambda: len(smtp.accepted) == 2, within_s=10)
    await page.click("#erase")
    await page.fill("#field-confirm", user_id[:-1])
    await page.click("#ask-confirm")
    await expect(page.locator("#ask-result")).to_contain_text("Not done")
    await page.fill("#field-confirm", user_id)
    await page.click("#ask-confirm")
    await expect(page.locator("#ask-result")).to_contain_text("Erased")
    await page.click("#ask-cancel")
    await expect(page.locator("#problem")).to_contain_text("There is no such user")
    body = await page.locator("body").text_content()
    assert body is not None
    assert "example.com" not in body.lower()
    assert ATTACK not in body


async def test_nobody_acts_without_a_login(system: System, page: Page) -> None:
    """Every page leads to the login; a script of the page without its cookie is refused; the token is in no address."""
    system.set_env(ADMIN_TOKEN=TOKEN)
    await system.start(email=False)
    admin = system.user.admin
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    for address in PAGES.values():
        await page.goto(admin + address)
        assert page.url == f"{admin}/console/login?next={address}"
    post = """([to, body]) => fetch(to, {method: 'POST', headers: {'Content-Type': 'application/json'}, body})
        .then((answer) => answer.status)"""
    acts = {
        "/circuit-breaker/open": "{}",
        "/circuit-breaker/close": "{}",
        "/downtime": '{"for": "30s"}',
        "/dead-letters/replay": '{"all": true}',
        "/dead-letters/replay/stop": "{}",
        "/mails/find": '{"email": "ada@example.com"}',
        "/mails/abcdefghijklmnopqrstuvwxyz/resend": "{}",
        "/mails/abcdefghijklmnopqrstuvwxyz/erase": '{"confirm": "abcdefghijklmnopqrstuvwxyz"}',
    }
    assert {to: await page.evaluate(post, [to, body]) for to, body in acts.items()} == dict.fromkeys(acts, 401)
    await page.fill("#token", "not-the-token")
    await page.keyboard.press("Enter")
    await expect(page.locator("#login-result")).to_contain_text("not the token")
    await page.fill("#token", TOKEN)
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"{admin}/console/audit")
    assert await page.evaluate("document.cookie") == ""
    await page.goto(f"{admin}/")
    await page.click("#open-breaker")
    await page.click("#ask-confirm")
    await expect(page.locator("#ask-result")).to_contain_text("The breaker is open")
    await page.click("#ask-cancel")
    await page.goto(f"{admin}/console/audit")
    await expect(page.locator("#rows tr").first).to_contain_text("breaker open")
    await expect(page.locator("#rows tr").first).to_contain_text("login")
    await page.click("#logout")
    await page.wait_for_url(f"{admin}/console/login")
    await page.goto(f"{admin}/")
    assert page.url.startswith(f"{admin}/console/login")
    for elsewhere in ("/.//evil.example/", "/x/..//evil.example/", f"{admin}//evil.example/", "https://evil.example/"):
        await page.goto(f"{admin}/console/login?next={elsewhere}")
        await page.fill("#token", TOKEN)
        await page.keyboard.press("Enter")
        await page.wait_for_url(lambda url: "/console/login" not in url)
        assert page.url.startswith(f"{admin}/"), "a login leads to no other host"
    assert [url for url in seen if TOKEN in url] == []
    assert TOKEN not in system.user.text()
