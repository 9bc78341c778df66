"""The inbox's page in a real browser: live, by keyboard, in 360 px, and what a mail holds stays text."""

import smtplib
import sys
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.browser.looks import AXE, SIZES, WITHOUT_AXE, faults
from tests.support.processes import ROOT, Process, free_port, http_status, stopping
from tests.support.waiting import eventually

ATTACK = "<img src=x onerror=alert(1)>"


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Process]:
    """Started; its ports are in `env`."""
    env = {"INBOX_SMTP_PORT": str(free_port()), "INBOX_HTTP_PORT": str(free_port())}
    process = Process("inbox", [sys.executable, str(ROOT / "deploy" / "local" / "inbox.py")], tmp_path, env)
    with stopping(process):
        process.start()
        yield process


def send(inbox: Process, subject: str) -> None:
    """One mail."""
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "welcome@mailflow.local", "ada@example.com", subject
    mail.set_content("Hello Ada")
    mail.add_alternative("<h1>Hello Ada</h1>", subtype="html")
    with smtplib.SMTP("127.0.0.1", int(inbox.env["INBOX_SMTP_PORT"])) as client:
        client.send_message(mail)


async def ready(inbox: Process) -> str:
    """Its address, once it answers there."""
    address = f"http://127.0.0.1:{inbox.env['INBOX_HTTP_PORT']}"
    await eventually(lambda: http_status(f"{address}/readyz") == 200, within_s=20)
    return address


async def test_mails_appear_are_read_and_deleted(inbox: Process, page: Page) -> None:
    """A mail shows up by itself and is opened by keyboard; deleting asks once; a lost inbox is said."""
    await page.goto(await ready(inbox))
    await expect(page.locator("#connection")).to_have_text("Live")
    await expect(page.locator("#empty")).to_contain_text("No mail yet")
    send(inbox, ATTACK)
    await expect(page.locator("#list .subject")).to_have_text(ATTACK)
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    await expect(page.locator("#subject")).to_have_text(ATTACK)
    found = []
    for scheme, width in SIZES:
        await page.emulate_media(color_scheme=scheme)
        await page.set_viewport_size({"width": width, "height": 780})
        found += await faults(page, f"a mail {scheme} {width}")
        await page.click("#delete-all")
        await expect(page.locator("#ask-cancel")).to_be_focused()
        found += await faults(page, f"a dialog {scheme} {width}")
        await page.click("#ask-cancel")
    assert found == []
    await page.click("#delete-all")
    await page.keyboard.press("Enter")
    await expect(page.locator("#list li")).to_have_count(1)
    await page.click("#delete-all")
    await page.click("#ask-confirm")
    await expect(page.locator("#list li")).to_have_count(0)
    inbox.kill()
    await expect(page.locator("#connection")).to_contain_text("Not connected since", timeout=20_000)
    if not AXE.exists():
        pytest.skip(WITHOUT_AXE)


async def test_a_mail_that_cannot_be_had_is_not_another_one(inbox: Process, page: Page) -> None:
    """An address that is none of a mail, and an inbox that is gone: words, and never the mail that was open before."""
    address = await ready(inbox)
    send(inbox, "the first")
    send(inbox, "the second")
    await page.goto(f"{address}/#%")
    await expect(page.locator("#gone")).to_contain_text("no longer here")
    await page.click("#list a >> nth=0")
    await expect(page.locator("#subject")).to_have_text("the second")
    await page.click("#headers-part summary")
    await expect(page.locator("#headers")).to_contain_text("Subject")
    inbox.kill()
    await page.click("#list a >> nth=1")
    await expect(page.locator("#gone")).to_contain_text("does not answer")
    await expect(page.locator("#content")).to_be_hidden()
    inbox.start()
    await expect(page.locator("#gone")).to_contain_text("no longer here", timeout=20_000)
