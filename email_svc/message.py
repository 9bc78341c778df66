"""What the mail says: an event in, the finished bytes out. Pure, once the templates are read.

    event -> name defanged -> templates -> quoted-printable -> skeleton -> check -> Mail

The header block is laid out once, from configuration; the user's address, the event id and the date are the only things
put into it, each matched against a grammar first. The name goes into the bodies only. What comes out is scanned
again as bytes (`check`), so that a hole in any step before ends as a dead letter and not as somebody else's `Bcc:`.

The email package only lays out the static headers: building and flattening an EmailMessage costs about 1.4 ms a mail,
and its folding of hostile values was itself a way in (CVE-2024-6923, CVE-2026-1299).

It does not: dot-stuff (the transport's matter), sign (the relay's), or know SMTPUTF8 (not every relay does, and the API
refuses such addresses).

Source: RFC 5322 (headers), RFC 2045/2046 (quoted-printable, multipart), RFC 3834 (Auto-Submitted).
"""

import re
import unicodedata
from binascii import b2a_qp
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from pathlib import Path

import jinja2
import msgspec
from email_validator import validate_email

HEADERS = (
    b"From",
    b"To",
    b"Subject",
    b"Date",
    b"Message-ID",
    b"MIME-Version",
    b"Auto-Submitted",
    b"Content-Type",
)
"""Every header of the mail, once each and in this order."""

LINE_MAX_BYTES = 998
"""RFC 5322 2.1.1, without the CRLF."""

BOUNDARY = b"=_mailflow"
"""Cannot occur in a quoted-printable body: there `=` is followed by two hex digits or a line's end (RFC 2045 6.7)."""

_CONTENT_TYPE = b'multipart/alternative; boundary="' + BOUNDARY + b'"'
_PART = (
    b"--"
    + BOUNDARY
    + b"\r\nContent-Type: text/%s; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
)
_TEXT_PART, _HTML_PART = _PART % b"plain", _PART % b"html"
_END = b"--" + BOUNDARY + b"--\r\n"

_ATOMS = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"(?P<local>{_ATOMS})@(?P<domain>{_LABEL}(?:\.{_LABEL})*)")
_EVENT_ID = re.compile(r"(?=.{1,128}\Z)[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_SENDER = re.compile(r'(?:(?P<quote>"?)(?P<name>[^<>"]*)(?P=quote)\s*<(?P<address>[^<>]+)>)|(?P<bare>[^<>]+)')

_JOINERS = "\u200c\u200d"
"""Invisible, but part of the spelling in Persian, in Indic scripts and in emoji."""
_DOTS = ".\u2024\u3002\uff0e\uff61"
_DOT_IN_WORD = re.compile(rf"([{_DOTS}])(?=[^\s{_DOTS},;)'\"\u2019\u201d])")
_LINK_SIGNS = re.compile(r"[:@\\\uff1a\uff20]|//")


class UnusableMail(ValueError):
    """No mail can be made of this event, now or later: a dead letter. The text names no address and no name."""


class Mail(msgspec.Struct, frozen=True):
    """One finished mail to one recipient."""

    recipient: str
    """ASCII: the domain as an A-label."""
    message_id: str
    """With its angle brackets; the same for every attempt of an event."""
    content: bytes
    """7-bit, CRLF lines of at most 998 octets, not dot-stuffed."""


class Composer:
    """Makes the welcome mail. Made once: reads the templates and lays out the headers.

    Args:
        sender: `EMAIL_FROM`, as `Name <address>` or `address`; without a name the mail speaks for the address's domain.
        templates_dir: holds welcome.txt.j2 and welcome.html.j2, which may use `name`, `product` (the sender's name)
            and `requested_at` (UTC). None: the packaged ones.

    Raises:
        ValueError: the sender is no address, or the templates are missing or do not render.
    """

    def __init__(self, *, sender: str, templates_dir: Path | None = None) -> None:
        name, self.envelope_from = _parse_sender(sender)
        self._domain = self.envelope_from.rpartition("@")[2]
        self._product = name or self._domain
        self._from = _header_line("From", Address(display_name=name, addr_spec=self.envelope_from))
        self._subject = _header_line("Subject", f"Welcome to {self._product}")
        loader: jinja2.BaseLoader = (
            jinja2.FileSystemLoader(templates_dir) if templates_dir else jinja2.PackageLoader("email_svc")
        )
        environment = jinja2.Environment(
            loader=loader,
            autoescape=jinja2.select_autoescape(["html.j2"]),
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            auto_reload=False,
        )
        try:
            self._text = environment.get_template("welcome.txt.j2")
            self._html = environment.get_template("welcome.html.j2")
            start = datetime.now(UTC)
            # A template that fails for everybody stops the start, instead of making a dead letter of each mail.
            self.compose(event_id="start.1", email=self.envelope_from, name="Ada", requested_at=start, now=start)
        except (jinja2.TemplateError, OSError, ValueError) as exc:
            raise ValueError(
                f"EMAIL_TEMPLATES_DIR={templates_dir}: allowed is a directory with welcome.txt.j2 and welcome.html.j2 "
                f"that use name, product and requested_at only ({exc.__cause__ or exc!r})"
            ) from exc

    def compose(self, *, event_id: str, email: str, name: str, requested_at: datetime, now: datetime) -> Mail:
        """The mail of this event. The same event gives the same mail but for its Date (`now`, aware).

        Raises:
            UnusableMail: address, name or id do not fit into a mail, or a template chokes on them.
            ValueError: `now` is naive.
        """
        if now.tzinfo is None:
            raise ValueError(f"now={now}: allowed is an aware time")
        if requested_at.tzinfo is None:
            raise UnusableMail("requested_at without a time zone")
        if _EVENT_ID.fullmatch(event_id) is None:
            raise UnusableMail("event id that does not fit into a Message-ID")
        recipient = ascii_address(email)
        message_id = f"<{event_id}@{self._domain}>"
        try:
            name.encode()  # a lone surrogate is no text; defang() would hide it
            shown = {"name": defang(name), "product": self._product, "requested_at": requested_at.astimezone(UTC)}
            content = b"".join(
                (
                    self._from,
                    b"To: %s\r\n" % recipient.encode("ascii"),
                    self._subject,
                    b"Date: %s\r\n" % format_datetime(now.astimezone(UTC)).encode("ascii"),
                    b"Message-ID: %s\r\n" % message_id.encode("ascii"),
                    b"MIME-Version: 1.0\r\nAuto-Submitted: auto-generated\r\nContent-Type: %s\r\n\r\n" % _CONTENT_TYPE,
                    _TEXT_PART,
                    _quoted_printable(self._text.render(shown)),
                    _HTML_PART,
                    _quoted_printable(self._html.render(shown)),
                    _END,
                )
            )
        except Exception as exc:  # a template is the operator's code and may raise anything
            raise UnusableMail(f"the mail cannot be built: {type(exc).__name__}") from exc
        check(content, recipient)
        return Mail(recipient=recipient, message_id=message_id, content=content)


def check(content: bytes, recipient: str) -> None:
    """Read the finished bytes as a receiver would, and refuse all that was not meant.

    Exactly HEADERS, one To with this recipient alone, two parts, 7-bit, CRLF and no other line end, no NUL, no line
    over 998 octets.

    Raises:
        UnusableMail: says which of these does not hold.
    """
    crlf = content.count(b"\r\n")
    if not content.endswith(b"\r\n") or content.count(b"\r") != crlf or content.count(b"\n") != crlf:
        raise UnusableMail("bare CR or LF in the mail")
    if b"\0" in content or not content.isascii():
        raise UnusableMail("NUL or an octet over 127 in the mail")
    if max(map(len, content.split(b"\r\n"))) > LINE_MAX_BYTES:
        raise UnusableMail(f"a line over {LINE_MAX_BYTES} octets in the mail")
    lines = content.partition(b"\r\n\r\n")[0].split(b"\r\n")
    if tuple(line.partition(b":")[0] for line in lines if not line.startswith((b" ", b"\t"))) != HEADERS:
        raise UnusableMail("other headers than the expected ones")
    to = next(i for i, line in enumerate(lines) if line.startswith(b"To:"))
    if lines[to] != b"To: " + recipient.encode("ascii") or not lines[to + 1].startswith(b"Subject:"):
        raise UnusableMail("another To than the recipient")
    if content.count(b"--" + BOUNDARY) != 3:
        raise UnusableMail("other parts than text and html")


def defang(name: str) -> str:
    """The name without what a mail client would turn into a link, and in one line.

    Anybody can register anybody's address with the name "Win at http://evil.example", and our domain's good name would
    deliver it. So `:` `@` `\\` and `//` become a space and a dot inside a word gets a space after it: "J.R.R. Tolkien"
    is "J. R. R. Tolkien", "evil.example" is no host any more. Line ends and other controls become a space, invisible
    characters (direction overrides among them) go.
    """
    shown = name if name.isprintable() else "".join(_visible(char) for char in name)
    shown = _DOT_IN_WORD.sub(r"\1 ", _LINK_SIGNS.sub(" ", shown))
    return " ".join(shown.split())


def ascii_address(email: str) -> str:
    """The address as the envelope and the To header need it: a dot-atom at an A-label domain.

    `=?` is refused, though the grammar has it: readers decode it as an encoded word.

    Raises:
        UnusableMail: quoted or non-ASCII local part, no legal domain, too long (64 before the @, 254 in all).
    """
    if not email.isascii():
        try:
            # stdlib's idna codec is IDNA 2003: it would send "straße.example" to "strasse.example"
            valid = validate_email(
                email, allow_smtputf8=False, check_deliverability=False, globally_deliverable=False, strict=True
            )
        except ValueError as exc:
            raise UnusableMail("the address cannot be written in ASCII") from exc
        email = valid.ascii_email or ""
    match = _ADDRESS.fullmatch(email)
    if match is None or len(match["local"]) > 64 or len(email) > 254 or "=?" in email:
        raise UnusableMail("the address does not fit into a mail")
    return email


def _visible(char: str) -> str:
    if char.isprintable() or char in _JOINERS:
        return char
    match unicodedata.category(char):
        case "Cf":
            return ""
        case "Co" | "Cn":  # private use, or newer than this Python's tables
            return char
        case _:
            return " "


def _quoted_printable(text: str) -> bytes:
    """Encoded, with CRLF line ends and one at the end."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n") + "\n"
    return b2a_qp(lines.replace("\n", "\r\n").encode("utf-8"))


def _header_line(name: str, value: object) -> bytes:
    """One header from configuration, encoded and folded by the email package."""
    message = EmailMessage(policy=SMTP)
    message[name] = value
    return message.as_bytes().removesuffix(b"\r\n")


def _parse_sender(sender: str) -> tuple[str, str]:
    """Display name (may be empty) and address of EMAIL_FROM."""
    match = _SENDER.fullmatch(sender.strip())
    try:
        if match is None or not sender.isprintable():
            raise UnusableMail("neither `Name <address>` nor `address`")
        return (match["name"] or "").strip(), ascii_address((match["address"] or match["bare"]).strip())
    except UnusableMail as exc:
        raise ValueError(
            f"EMAIL_FROM={sender!r}: allowed is `Name <address>` or `address`, e.g. MailFlow <welcome@mailflow.local>"
        ) from exc
