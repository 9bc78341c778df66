"""The inbox's page in a real browser: live, by keyboard, in 360 px, and what a mail holds stays text."""

import smtplib
import sys
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Page, expect

from tests.support.processes import ROOT, Process, free_port, stopping
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


async def test_mails_appear_are_read_and_deleted(inbox: Process, page: Page) -> None:
    """A mail shows up by itself and is opened by keyboard; deleting asks once; a lost inbox is said."""
    address = f"http://127.0.0.1:{inbox.env['INBOX_HTTP_PORT']}"

    async def ready() -> bool:
        async with httpx.AsyncClient() as client:
            try:
                return (await client.get(f"{address}/readyz")).status_code == 200
            except httpx.TransportError:
                return False

    await eventually(ready, within_s=20)
    await page.goto(address)
    await expect(page.locator("#connection")).to_have_text("Live")
    await expect(page.locator("#empty")).to_contain_text("No mail yet")
    send(inbox, ATTACK)
    await expect(page.locator("#list .subject")).to_have_text(ATTACK)
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    await expect(page.locator("#subject")).to_have_text(ATTACK)
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        for width in (1280, 360):
            await page.set_viewport_size({"width": width, "height": 780})
            assert await page.evaluate("document.documentElement.scrollWidth") == width
    await page.click("#delete-all")
    await expect(page.locator("#ask-cancel")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("#list li")).to_have_count(1)
    await page.click("#delete-all")
    await page.click("#ask-confirm")
    await expect(page.locator("#list li")).to_have_count(0)
    inbox.kill()
    await expect(page.locator("#connection")).to_contain_text("Not connected since", timeout=20_000)
