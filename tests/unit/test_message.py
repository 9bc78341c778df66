"""What the welcome mail looks like, and that nobody's name or address can make it look otherwise."""

from datetime import UTC, datetime, timedelta, timezone
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any, cast

import pytest

from email_svc.message import HEADERS, Composer, Mail, UnusableMail, ascii_address, check, defang

NOW = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
EVENT_ID = "abcdefghijklmnopqrstuvwxyz.17"
COMPOSER = Composer(sender="MailFlow <welcome@mailflow.local>")


def compose(composer: Composer = COMPOSER, **changes: Any) -> Mail:
    event: dict[str, Any] = {
        "event_id": EVENT_ID,
        "email": "ada@example.org",
        "name": "Ada Lovelace",
        "requested_at": NOW - timedelta(minutes=2),
        "now": NOW,
    }
    return composer.compose(**(event | changes))


def parsed(mail: Mail) -> EmailMessage:
    return message_from_bytes(mail.content, policy=default)


def body(mail: Mail, kind: str) -> str:
    part = parsed(mail).get_body((kind,))
    assert part is not None
    return cast(str, part.get_content()).replace("\r\n", "\n")


def test_the_headers_are_these_and_no_others() -> None:
    mail = compose()
    got = parsed(mail)
    assert got.keys() == [name.decode() for name in HEADERS]
    assert got["From"] == "MailFlow <welcome@mailflow.local>"
    assert got["To"] == "ada@example.org"
    assert got["Subject"] == "Welcome to MailFlow"
    assert got["Date"].datetime == NOW
    assert got["Message-ID"] == mail.message_id == f"<{EVENT_ID}@mailflow.local>"
    assert got["Auto-Submitted"] == "auto-generated"
    assert got.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in got.iter_parts()] == ["text/plain", "text/html"]
    assert not got.defects
    assert mail.recipient == "ada@example.org"
    assert COMPOSER.envelope_from == "welcome@mailflow.local"


def test_every_attempt_of_an_event_has_the_same_message_id_and_body() -> None:
    first, later = compose(), compose(now=NOW + timedelta(hours=3))
    assert first.message_id == later.message_id
    assert first.content.replace(b"12:30:00", b"15:30:00", 1) == later.content


def test_times_are_given_in_utc() -> None:
    tokyo = timezone(timedelta(hours=9))
    mail = compose(now=NOW.astimezone(tokyo), requested_at=NOW.astimezone(tokyo))
    assert mail.content == compose(requested_at=NOW).content
    assert "24 November 2026, 12:30 UTC" in body(mail, "plain")


def test_the_name_is_in_both_bodies_and_escaped_in_html() -> None:
    mail = compose(name='Zoë <b>"O\'Hara"</b> & 李')
    assert body(mail, "plain").startswith('Hello Zoë <b>"O\'Hara"</b> & 李,\n')
    assert "<p>Hello Zoë &lt;b&gt;&#34;O&#39;Hara&#34;&lt;/b&gt; &amp; 李,</p>" in body(mail, "html")


def test_a_name_of_which_nothing_is_left_is_left_out() -> None:
    assert body(compose(name=" :// \n"), "plain").startswith("Hello,\n")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Ada Lovelace", "Ada Lovelace"),
        ("J.R.R. Tolkien", "J. R. R. Tolkien"),
        ("Martin Luther King Jr.", "Martin Luther King Jr."),
        ("(Sammy Davis Jr.)", "(Sammy Davis Jr.)"),
        ("Rajan A/L Muthu", "Rajan A/L Muthu"),
        ("O'Neill-Smith, Dr.", "O'Neill-Smith, Dr."),
        ("Wait...", "Wait..."),
        ("علی\u200cرضا", "علی\u200cرضا"),  # noqa: RUF001
        ("👩\u200d🔬 Eve", "👩\u200d🔬 Eve"),
        ("Win at http://evil.example", "Win at http evil. example"),
        ("www.evil.example/login?a=b", "www. evil. example/login?a=b"),
        ("evil\u3002example", "evil\u3002 example"),
        ("evil\uff0eexample", "evil\uff0e example"),
        ("evil\u00ad.\u200bexample", "evil. example"),
        ("mallory@evil.example", "mallory evil. example"),
        ("mailto:m", "mailto m"),
        (r"\\server\share", "server share"),
        ("192.168.0.1", "192. 168. 0. 1"),
        ("moc.\u202elive", "moc. live"),
        ("one\r\n\r\ntwo\u2028three\0four", "one two three four"),
        ("", ""),
    ],
)
def test_a_name_is_no_link(name: str, shown: str) -> None:
    assert defang(name) == shown
    assert defang(shown) == shown


@pytest.mark.parametrize(
    "name",
    [
        "=?UTF-8?Q?=0A?=Bcc: inj@example.com",
        "x\r\nBcc: inj@example.com",
        "x\nBcc: inj@example.com\n\n.\nMAIL FROM:<x@y>",
        "--=_mailflow\r\nContent-Type: text/html",
        "\n.\n",
        "x" * 20_000,
        "é" * 2_000,
        "{{ 7 * 7 }}{% raw %}",
    ],
)
def test_a_hostile_name_changes_nothing_but_the_greeting(name: str) -> None:
    mail = compose(name=name)
    got = parsed(mail)
    assert got.keys() == [name.decode() for name in HEADERS]
    assert [part.get_content_type() for part in got.iter_parts()] == ["text/plain", "text/html"]
    assert body(mail, "plain").partition(",\n")[0] == f"Hello {defang(name)}"
    assert max(map(len, mail.content.split(b"\r\n"))) <= 78


@pytest.mark.parametrize(
    ("email", "recipient"),
    [
        ("ada@example.org", "ada@example.org"),
        ("ada+tag=x/y@sub.example.org", "ada+tag=x/y@sub.example.org"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ("ada@straße.example", "ada@xn--strae-oqa.example"),
        ("ada@localhost", "ada@localhost"),
        ("a" * 64 + "@example.org", "a" * 64 + "@example.org"),
    ],
)
def test_an_address_is_sent_to_its_ascii_form(email: str, recipient: str) -> None:
    mail = compose(email=email)
    assert mail.recipient == recipient
    (address,) = parsed(mail)["To"].addresses
    assert (address.addr_spec, address.display_name) == (recipient, "")


@pytest.mark.parametrize(
    "email",
    [
        "",
        "ada",
        "ada@",
        "@example.org",
        "ada@@example.org",
        "ada@example.org, bob@example.org",
        "Ada <ada@example.org>",
        "ada@example.org\r\nBcc: inj@example.com",
        "ada@example.org\n",
        "ada@example.org> SIZE=1",
        '"a b"@example.org',
        "ada@[127.0.0.1]",
        "ada@exa mple.org",
        "ada@-x.example",
        "ada..b@example.org",
        "ad\0a@example.org",
        "=?utf-8?q?x?=@example.org",
        "a" * 65 + "@example.org",
        "a@" + "b." * 130 + "org",
        "ädä@example.org",
        "\ud800@example.org",
        "ada@\ud800.example",
        "ada@xn--\u00fc.example",
    ],
)
def test_an_address_that_does_not_fit_is_unusable_and_not_repeated(email: str) -> None:
    with pytest.raises(UnusableMail) as caught:
        compose(email=email)
    assert not email or email not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "lone \ud800 surrogate"},
        {"event_id": ""},
        {"event_id": "a b"},
        {"event_id": "a..b"},
        {"event_id": "a>\r\nBcc: x@y.z"},
        {"event_id": "a\n"},
        {"event_id": "a" * 129},
        {"requested_at": datetime(2026, 11, 24)},  # noqa: DTZ001
        {"requested_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))},
    ],
)
def test_what_no_mail_can_be_made_of_is_unusable(changes: dict[str, Any]) -> None:
    with pytest.raises(UnusableMail):
        compose(**changes)


def test_a_naive_now_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="aware") as caught:
        compose(now=datetime(2026, 11, 24))  # noqa: DTZ001
    assert not isinstance(caught.value, UnusableMail)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\r\nSubject:", b"\r\nBcc: inj@example.com\r\nSubject:"),
        (b"\r\nSubject:", b"\nSubject:"),
        (b"\r\nSubject:", b"\rX: y\r\nSubject:"),
        (b"To: ada@example.org\r\n", b""),
        (b"To: ada@example.org\r\n", b"To: ada@example.org\r\nTo: ada@example.org\r\n"),
        (b"To: ada@example.org", b"To: ada@example.org, bob@example.org"),
        (b"To: ada@example.org", b"To: ada@example.org,\r\n bob@example.org"),
        (b"To: ada@example.org", b"To: bob@example.org"),
        (b"From:", b"from:"),
        (b"\r\nSubject:", b"\r\n\r\nSubject:"),
        (b"Hello", b"Hel\0lo"),
        (b"Hello", b"Hell\xc3\xb6"),
        (b"Hello", b"Hello" * 200),
        (b"Hello", b"\r\n--=_mailflow\r\nHello"),
        (b"--=_mailflow--\r\n", b"--=_mailflow--"),
    ],
)
def test_the_check_of_the_finished_bytes_sees_it(old: bytes, new: bytes) -> None:
    content = compose().content
    check(content, "ada@example.org")
    assert old in content
    with pytest.raises(UnusableMail):
        check(content.replace(old, new, 1), "ada@example.org")


@pytest.mark.parametrize(
    ("sender", "name", "address"),
    [
        ("welcome@mailflow.local", "", "welcome@mailflow.local"),
        ("MailFlow <welcome@mailflow.local>", "MailFlow", "welcome@mailflow.local"),
        ('"Books, Inc." <hi@books.example>', "Books, Inc.", "hi@books.example"),
        ("Bücher für Ölmützer <hi@bücher.example>", "Bücher für Ölmützer", "hi@xn--bcher-kva.example"),
        ("x" * 300 + " <hi@books.example>", "x" * 300, "hi@books.example"),
    ],
)
def test_the_sender_is_the_configured_one(sender: str, name: str, address: str) -> None:
    composer = Composer(sender=sender)
    mail = compose(composer)
    (got,) = parsed(mail)["From"].addresses
    assert (got.display_name, got.addr_spec, composer.envelope_from) == (name, address, address)
    assert parsed(mail)["Subject"] == f"Welcome to {name or 'mailflow.local'}"
    assert mail.message_id.endswith(f"@{address.partition('@')[2]}>")


@pytest.mark.parametrize(
    "sender",
    ["", "MailFlow", "MailFlow a@b.c", "a@b.c, d@e.f", "A <a@b.c> B", "A <a@b.c>\r\nBcc: x@y.z", "ä@b.c"],
)
def test_a_sender_that_is_none_stops_the_start(sender: str) -> None:
    with pytest.raises(ValueError, match=r"EMAIL_FROM=.*allowed is"):
        Composer(sender=sender)


def test_templates_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "welcome.txt.j2").write_text("Salut {{ name }}\r\nde {{ product }}\r")
    (tmp_path / "welcome.html.j2").write_text("<p>{{ name }} {{ requested_at.year }}</p>")
    mail = compose(Composer(sender="A <a@b.example>", templates_dir=tmp_path), name="<i>")
    assert body(mail, "plain") == "Salut <i>\nde A"
    assert body(mail, "html") == "<p>&lt;i&gt; 2026</p>"


@pytest.mark.parametrize("text", [None, "{{ surname }}", "{% if %}", "{{ name.nothing.at_all }}", "{{ 1 // 0 }}"])
def test_templates_that_do_not_work_stop_the_start(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "welcome.html.j2").write_text("<p>")
    if text is not None:
        (tmp_path / "welcome.txt.j2").write_text(text)
    with pytest.raises(ValueError, match=r"EMAIL_TEMPLATES_DIR=.*allowed is"):
        Composer(sender="a@b.example", templates_dir=tmp_path)


def test_a_template_that_chokes_on_one_name_is_that_mails_end(tmp_path: Path) -> None:
    (tmp_path / "welcome.txt.j2").write_text("{{ 1 // (name | length - 1) }}")
    (tmp_path / "welcome.html.j2").write_text("<p>")
    composer = Composer(sender="a@b.example", templates_dir=tmp_path)
    compose(composer, name="Ada")
    with pytest.raises(UnusableMail):
        compose(composer, name="A")


def test_ascii_address_leaves_an_ascii_address_alone() -> None:
    assert ascii_address("Ada@Example.org") == "Ada@Example.org"
