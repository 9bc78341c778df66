"""The development inbox: real SMTP in, real HTTP out. What a mail says must never become part of the page."""

import os
import smtplib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.processes import free_port

INBOX = Path(__file__).resolve().parents[2] / "deploy" / "local" / "inbox.py"
DEADLINE_S = 20.0

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@dataclass
class Inbox:
    smtp_port: int
    web: httpx.Client

    def send(self, mail: EmailMessage | bytes, *to: str) -> None:
        with smtplib.SMTP("127.0.0.1", self.smtp_port, timeout=DEADLINE_S) as client:
            client.sendmail("bounce@example.com", to, mail if isinstance(mail, bytes) else mail.as_bytes(policy=SMTP))

    def get(self, path: str, **params: Any) -> Any:
        answer = self.web.get(path, params=params)
        answer.raise_for_status()
        return answer.json()


@pytest.fixture(scope="module")
def process() -> Iterator[tuple[int, int]]:
    smtp_port, http_port = free_port(), free_port()
    env = os.environ | {"INBOX_SMTP_PORT": str(smtp_port), "INBOX_HTTP_PORT": str(http_port)}
    child = subprocess.Popen([sys.executable, str(INBOX)], env=env)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{http_port}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                assert child.poll() is None, "the inbox died"
            assert time.monotonic() < deadline, "the inbox did not get ready"
            time.sleep(0.05)
        yield smtp_port, http_port
    finally:
        child.terminate()
        child.wait(DEADLINE_S)


@pytest.fixture
def inbox(process: tuple[int, int]) -> Iterator[Inbox]:
    smtp_port, http_port = process
    with httpx.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=DEADLINE_S) as web:
        assert web.delete("/api/v1/messages").text == "ok"
        yield Inbox(smtp_port, web)


def welcome(to: str = "ada@example.com", **headers: str) -> EmailMessage:
    mail = EmailMessage()
    mail["From"] = "MailFlow <welcome@mailflow.local>"
    mail["To"] = f"Ada <{to}>"
    mail["Subject"] = headers.pop("Subject", "Welcome, Zoë")
    mail["Message-ID"] = "<one@mailflow.local>"
    mail["Date"] = "Tue, 24 Nov 2026 20:00:00 +0100"
    for name, value in headers.items():
        mail[name] = value
    mail.set_content("Hello Ada,\n\nyour account is ready.\n")
    mail.add_alternative("<h1>Hello Ada</h1>", subtype="html")
    return mail


def test_list_has_mailpits_shape(inbox: Inbox) -> None:
    """A client written for Mailpit finds what it looks for."""
    inbox.send(welcome(), "ada@example.com", "hidden@example.com")
    answer = inbox.get("/api/v1/messages")
    [mail] = answer.pop("messages")
    assert answer == {
        "total": 1,
        "unread": 1,
        "count": 1,
        "messages_count": 1,
        "messages_unread": 1,
        "start": 0,
        "tags": [],
    }
    assert mail["MessageID"] == "one@mailflow.local"
    assert mail["From"] == {"Name": "MailFlow", "Address": "welcome@mailflow.local"}
    assert mail["To"] == [{"Name": "Ada", "Address": "ada@example.com"}]
    assert mail["Bcc"] == [{"Name": "", "Address": "hidden@example.com"}]
    assert mail["Subject"] == "Welcome, Zoë"
    assert mail["Snippet"] == "Hello Ada, your account is ready."
    assert mail["Created"].endswith("Z")
    assert mail["Size"] > 100
    assert mail["Read"] is False


def test_one_mail_has_mailpits_shape_and_is_read_then(inbox: Inbox) -> None:
    """Parts, headers and source of one mail, by id and as the latest."""
    inbox.send(welcome(), "ada@example.com")
    mail = inbox.get("/api/v1/message/latest")
    assert mail["Text"].split() == ["Hello", "Ada,", "your", "account", "is", "ready."]
    assert mail["HTML"].strip() == "<h1>Hello Ada</h1>"
    assert mail["Date"] == "2026-11-24T19:00:00.000Z"
    assert mail["ReturnPath"] == "bounce@example.com"
    assert inbox.get(f"/api/v1/message/{mail['ID']}/headers")["Message-ID"] == ["<one@mailflow.local>"]
    assert b"Message-ID: <one@mailflow.local>\r\n" in inbox.web.get(f"/api/v1/message/{mail['ID']}/raw").content
    assert inbox.get("/api/v1/messages")["messages"][0]["Read"] is True
    assert inbox.web.get("/api/v1/message/nosuch").status_code == 404


def test_newest_comes_first_and_pages_are_cut_out(inbox: Inbox) -> None:
    """limit and start walk from the newest mail to the oldest."""
    for number in range(5):
        inbox.send(welcome(Subject=f"mail {number}"), "ada@example.com")
    answer = inbox.get("/api/v1/messages", limit=2, start=1)
    assert [mail["Subject"] for mail in answer["messages"]] == ["mail 3", "mail 2"]
    assert (answer["total"], answer["count"], answer["start"]) == (5, 2, 1)
    assert inbox.web.get("/api/v1/messages?limit=many").status_code == 400


def test_some_or_all_are_deleted(inbox: Inbox) -> None:
    """Ids in the body name what goes; no body means everything."""
    for number in range(3):
        inbox.send(welcome(Subject=f"mail {number}"), "ada@example.com")
    doomed = inbox.get("/api/v1/message/latest")["ID"]
    inbox.web.request("DELETE", "/api/v1/messages", json={"IDs": [doomed]}).raise_for_status()
    assert [mail["Subject"] for mail in inbox.get("/api/v1/messages")["messages"]] == ["mail 1", "mail 0"]
    assert inbox.web.request("DELETE", "/api/v1/messages", content=b"[1").status_code == 400
    inbox.web.delete("/api/v1/messages").raise_for_status()
    assert inbox.get("/api/v1/messages")["total"] == 0


def test_page_allows_no_foreign_and_no_inline_code(inbox: Inbox) -> None:
    """The page's policy names only its own files, and the page keeps to it."""
    page = inbox.web.get("/")
    rules = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in rules
    assert "script-src 'self'" in rules
    assert "unsafe" not in rules
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert " style=" not in page.text
    assert "<style" not in page.text
    assert page.text.count("<script") == page.text.count('<script src="/')
    script = inbox.web.get("/inbox.js")
    assert "javascript" in script.headers["Content-Type"]
    for trap in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert trap not in script.text


def test_attacking_mail_stays_text(inbox: Inbox) -> None:
    """HTML in subject, name, body and headers comes out as JSON or plain text, and its HTML part under a sandbox."""
    mail = welcome(Subject=ATTACK, **{"X-Evil": ATTACK})
    mail.replace_header("To", f'"{ATTACK}" <eve@example.com>')
    mail.clear_content()
    mail.set_content(ATTACK)
    mail.add_alternative(f"{ATTACK}<meta http-equiv=refresh content='0;url=http://example.com/'>", subtype="html")
    inbox.send(mail, "eve@example.com")

    shown = inbox.get("/api/v1/message/latest")
    assert shown["Subject"] == ATTACK
    assert shown["To"] == [{"Name": ATTACK, "Address": "eve@example.com"}]
    assert shown["Text"].strip() == ATTACK
    for part, kind in (("", "application/json"), ("/headers", "application/json"), ("/raw", "text/plain")):
        answer = inbox.web.get(f"/api/v1/message/{shown['ID']}{part}")
        assert answer.headers["Content-Type"].startswith(kind)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in answer.headers["Content-Security-Policy"]
    html = inbox.web.get(f"/api/v1/message/{shown['ID']}/html")
    rules = [rule.strip() for rule in html.headers["Content-Security-Policy"].split(";")]
    assert {"default-src 'none'", "form-action 'none'", "frame-ancestors 'self'", "sandbox"} <= set(rules)
    assert not any(rule.startswith("script-src") for rule in rules)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no header at all",
        b"Subject: =?nosuch?q?x?=\r\nContent-Type: text/plain; charset=nosuch\r\n\r\n\xff\xfe",
        b"Subject: \xff\xfe\xed\xa0\x80\r\nFrom: \xff <\xff@\xff>\r\n\r\n\xed\xa0\x80",
        b"Date: Mon, 01 Jan 0001 00:00:00 +2300\r\nTo: ,,,<>\r\n\r\n",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nContent-Type: multipart/mixed\r\n\r\n--x",
        b"Content-Type: text/plain; charset=utf-7\r\n\r\n+2AA-",
        b"Content-Disposition: attachment; filename*=x'y'%ff\r\nMessage-ID: <[\r\nTo: \"\r\n\r\n",
    ],
)
def test_no_mail_breaks_the_list(inbox: Inbox, raw: bytes) -> None:
    """Whatever arrives, the list and the mail itself still answer."""
    inbox.send(raw, "ada@example.com")
    assert inbox.get("/api/v1/messages")["count"] == 1
    mail = inbox.get("/api/v1/message/latest")
    assert mail["ReturnPath"] == "bounce@example.com"
    inbox.get(f"/api/v1/message/{mail['ID']}/headers")


def test_oversized_mail_is_refused(inbox: Inbox) -> None:
    """552 after 10 MB, and nothing is kept."""
    with pytest.raises(smtplib.SMTPSenderRefused) as refused:
        inbox.send(b"Subject: big\r\n\r\n" + b"x" * 70 * 160_000, "ada@example.com")
    assert refused.value.smtp_code == 552
    assert inbox.get("/api/v1/messages")["total"] == 0


def test_only_the_newest_thousand_stay(inbox: Inbox) -> None:
    """The memory is bounded; the oldest mails go first."""
    with smtplib.SMTP("127.0.0.1", inbox.smtp_port, timeout=DEADLINE_S) as client:
        for number in range(1010):
            client.sendmail("a@example.com", ["b@example.com"], f"Subject: mail {number}\r\n\r\nx".encode())
    answer = inbox.get("/api/v1/messages", limit=1000)
    assert (answer["total"], answer["messages"][0]["Subject"]) == (1000, "mail 1009")
    assert answer["messages"][-1]["Subject"] == "mail 10"


def test_pages_hear_of_a_new_mail(inbox: Inbox) -> None:
    """The event stream says so at once at the start, then again when something arrives."""
    with inbox.web.stream("GET", "/events") as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        assert next(line for line in lines if line.startswith("data")) == "data: 0"
        inbox.send(welcome(), "ada@example.com")
        assert next(line for line in lines if line.startswith("data")) == "data: 1"


def test_foreign_host_is_refused(inbox: Inbox) -> None:
    """A web page whose name was made to point at this machine must not read the mails."""
    assert inbox.web.get("/api/v1/messages", headers={"Host": "evil.example.com"}).status_code == 400
    assert inbox.web.get("/api/v1/messages", headers={"Host": "localhost:8025"}).status_code == 200
