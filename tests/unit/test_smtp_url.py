"""SMTP_URL: what it may say, and that a refusal never shows the password."""

import traceback
from pathlib import Path

import pytest

from email_svc.smtp_url import SmtpEndpoint, parse_smtp_url


@pytest.mark.parametrize(
    ("url", "host", "port", "mode", "username", "password"),
    [
        ("smtp://127.0.0.1:1025", "127.0.0.1", 1025, "plain", None, None),
        ("smtp://mail", "mail", 25, "plain", None, None),
        ("smtp://[::1]:1025/", "::1", 1025, "plain", None, None),
        ("smtp://user:pw@localhost:1025", "localhost", 1025, "plain", "user", "pw"),
        ("smtp://user:pw@[::1]", "::1", 25, "plain", "user", "pw"),
        ("smtp+starttls://mail.example.org", "mail.example.org", 587, "starttls", None, None),
        ("smtp+starttls://u%40x.org:p%3A%2F%40@example.org:2587", "example.org", 2587, "starttls", "u@x.org", "p:/@"),
        ("smtps://user:p%C3%A9@mail.example.org", "mail.example.org", 465, "tls", "user", "pé"),
        ("SMTPS://Mail.Example.org", "mail.example.org", 465, "tls", None, None),
    ],
)
def test_what_a_url_says(url: str, host: str, port: int, mode: str, username: str | None, password: str | None) -> None:
    got = parse_smtp_url(url)
    assert (got.host, got.port, got.mode, got.username, got.password) == (host, port, mode, username, password)
    assert got.ca is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mail.example.org",
        "mail.example.org:25",
        "http://mail.example.org",
        "smtp://",
        "smtp://:25",
        "smtp://host:0",
        "smtp://host:65536",
        "smtp://host:port",
        "smtp://host/path",
        "smtp://host#fragment",
        "smtp://host?timeout=3",
        "smtp://host name",
        "smtp://host\r\nQUIT",
        "smtp://höst",
        "smtp://a..b",
        "smtp://[::1",
        "smtps://host?ca=a&ca=b",
        "smtps://host?ca=",
        "smtps://host?ca=/does/not/exist.pem",
        "smtp://host?ca=/etc/hosts",
        "smtps://user@host",
        "smtps://:secret@host",
        "smtps://user:@host",
        "smtps://us%00er:secret@host",
        "smtps://user:sec%0D%0Aret@host",
        "smtp://user:secret@mail.example.org",
        "smtp://user:secret@10.0.0.1:1025",
        "smtp://user:secret@localhost.example.org",
        "user:secret@host:25",
        "smtps://user:secret@host:port",
        "smtps://user:sec/ret@host",
        "smtps://user:25/secret@host",
        "smtps://user:sec?ret@host",
        "smtps://user:sec#ret@host",
        "smtps://user:sec@ret@ho st",
        "smtps:/user:secret@host",
    ],
)
def test_what_is_refused_is_named_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="SMTP_URL") as caught:
        parse_smtp_url(url)
    shown = "".join(traceback.format_exception(caught.value, chain=True)[-1:])
    assert "allowed" in shown
    for part in ("secret", "sec/", "/ret", "sec?", "sec#", "sec@", "sec%"):
        assert part not in shown


def test_a_private_ca_is_read_at_the_start(tmp_path: Path) -> None:
    nonsense = tmp_path / "ca.pem"
    nonsense.write_text("no certificate\n")
    with pytest.raises(ValueError, match=r"ca=.*ca\.pem.*readable file of PEM certificates"):
        parse_smtp_url(f"smtps://host?ca={nonsense}")


def test_an_endpoint_does_not_show_its_password() -> None:
    endpoint = parse_smtp_url("smtps://user:hunter2@host")
    assert "hunter2" not in f"{endpoint!r} {endpoint} {list(endpoint.__rich_repr__())}"
    assert "user:***@host:465" in repr(endpoint)


def test_only_plain_has_no_tls() -> None:
    assert SmtpEndpoint(host="h", port=25, mode="plain").tls_context() is None
    context = SmtpEndpoint(host="h", port=465, mode="tls").tls_context()
    assert context is not None
    assert context.check_hostname
