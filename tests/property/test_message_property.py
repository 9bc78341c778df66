"""For every name and address: exactly the expected headers, one To, legal lines; read back by the stdlib's parser."""

import re
import string
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default

from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import escape

from email_svc.message import HEADERS, LINE_MAX_BYTES, Composer, UnusableMail, check, defang

NOW = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
COMPOSER = Composer(sender="Bücher, Inc. <welcome@mailflow.local>")
ATOM = string.ascii_letters + string.digits + "!#$%&'*+/=?^_`{|}~-."

hostile = st.text(
    alphabet=st.sampled_from(":/\\@.=?_-<>&\"'\r\n\0\t \u3002\uff0e\u200d\u202e\u2028éA1{%}"), max_size=60
)
names = st.one_of(st.text(max_size=120), hostile, st.lists(st.one_of(st.text(max_size=8), hostile)).map("".join))
breaking = st.sampled_from([b"\r", b"\n", b"\r\n", b"\0", b":", b"\r\n\r\n", b"\r\nBcc: x@y.z", b"\r\nBcc: x@y.z\r\n"])
addresses = st.one_of(st.emails(), st.text(ATOM, min_size=1, max_size=70).map("{}@example.org".format), hostile)


def read(content: bytes) -> EmailMessage:
    return message_from_bytes(content, policy=default)


@given(name=names, email=addresses)
@example(name="=?UTF-8?Q?=0A?=Bcc: inj@example.com", email="ada@example.org")
@example(name="é" * 5000, email="a" * 64 + "@example.org")
@example(name="--=_mailflow--\r\n\r\nBcc: x@y.z", email="--=_mailflow@example.org")
def test_a_mail_has_the_expected_shape_or_there_is_none(name: str, email: str) -> None:
    try:
        mail = COMPOSER.compose(event_id="abc.1", email=email, name=name, requested_at=NOW, now=NOW)
    except UnusableMail:
        return
    got = read(mail.content)
    assert got.keys() == [header.decode() for header in HEADERS]
    to = got["To"]
    (address,) = to.addresses
    assert (address.addr_spec, address.display_name) == (mail.recipient, "")
    assert got["Message-ID"] == "<abc.1@mailflow.local>"
    assert got["Subject"] == "Welcome to Bücher, Inc."
    assert not got.defects
    assert not to.defects
    text, html = got.iter_parts()
    assert (text.get_content_type(), html.get_content_type()) == ("text/plain", "text/html")
    greeting = " ".join(["Hello", *([defang(name)] if defang(name) else [])])
    assert text.get_content().partition("\r\n")[0] == f"{greeting},"
    assert f"<p>{escape(greeting)},</p>\r\n" in html.get_content()
    lines = mail.content.split(b"\r\n")
    assert max(map(len, lines)) <= LINE_MAX_BYTES
    assert not re.search(rb"[\x00\r\n\x80-\xff]", b"".join(lines))


@given(names)
def test_no_name_is_a_link(name: str) -> None:
    shown = defang(name)
    assert not re.search(
        r"[:@\\]|//|\w[.\u3002\uff0e\uff61\u2024]\w|[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", shown
    )
    assert shown == shown.strip()
    assert defang(shown) == shown


@given(st.text(st.characters(categories=["L", "M"]), min_size=1, max_size=50))
def test_letters_stay_as_they_are(name: str) -> None:
    assert defang(name) == name


@given(at=st.integers(min_value=0), junk=st.one_of(breaking, st.binary(min_size=1)))
def test_whatever_passes_the_check_is_read_as_expected(at: int, junk: bytes) -> None:
    """The check is our own scanner: it may refuse too much, but never pass what a parser reads otherwise."""
    mail = COMPOSER.compose(event_id="abc.1", email="ada@example.org", name="Ada", requested_at=NOW, now=NOW)
    at %= len(mail.content)
    content = mail.content[:at] + junk + mail.content[at:]
    try:
        check(content, mail.recipient)
    except UnusableMail:
        return
    got = read(content)
    assert got.keys() == [header.decode() for header in HEADERS]
    assert got["To"] == mail.recipient
