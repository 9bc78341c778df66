"""A mail as it came, and what it says in Mailpit's words.

Any bytes may arrive. Whatever they are, there is an entry for the list and a page for the mail, with texts that JSON
can carry; what cannot be read is still there as source.
Source: the names are those of Mailpit, https://mailpit.axllent.org/docs/api-v1/.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import getaddresses, parsedate_to_datetime
from functools import cached_property
from typing import Any

SNIPPET_CHARS = 200


@dataclass(frozen=True)
class Parsed:
    """What a mail says, every text fit to be encoded as UTF-8."""

    message_id: str = ""
    sender: dict[str, str] = field(default_factory=lambda: {"Name": "", "Address": ""})
    to: list[dict[str, str]] = field(default_factory=list)
    cc: list[dict[str, str]] = field(default_factory=list)
    reply_to: list[dict[str, str]] = field(default_factory=list)
    subject: str = ""
    date: datetime | None = None
    text: str = ""
    html: str = ""
    headers: dict[str, list[str]] = field(default_factory=dict)
    attachments: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Mail:
    """One mail as it came, and when it was read."""

    id: str
    raw: bytes
    envelope_from: str
    envelope_to: list[str]
    created: datetime
    read: bool = False

    @cached_property
    def parsed(self) -> Parsed:
        """Any bytes may arrive here, and the parser of the standard library stumbles over some in many ways."""
        try:
            return parse(self.raw)
        except Exception as exc:  # noqa: BLE001  see above; the mail stays readable as source
            return Parsed(subject="(unreadable mail)", text=f"{type(exc).__name__} while parsing; see the raw source.")

    @property
    def bcc(self) -> list[dict[str, str]]:
        """Who got the mail without standing in its head."""
        named = {entry["Address"].lower() for entry in self.parsed.to + self.parsed.cc}
        return [{"Name": "", "Address": _clean(to)} for to in self.envelope_to if to.lower() not in named]

    def summary(self) -> dict[str, Any]:
        """One entry of the list."""
        parsed = self.parsed
        return {
            "ID": self.id,
            "MessageID": parsed.message_id,
            "Read": self.read,
            "From": parsed.sender,
            "To": parsed.to,
            "Cc": parsed.cc,
            "Bcc": self.bcc,
            "ReplyTo": parsed.reply_to,
            "Subject": parsed.subject,
            "Created": _iso(self.created),
            "Tags": [],
            "Size": len(self.raw),
            "Attachments": len(parsed.attachments),
            "Snippet": " ".join(parsed.text[: 4 * SNIPPET_CHARS].split())[:SNIPPET_CHARS],
        }

    def detail(self) -> dict[str, Any]:
        """The whole mail but for its headers and source."""
        parsed = self.parsed
        return {
            "ID": self.id,
            "MessageID": parsed.message_id,
            "From": parsed.sender,
            "To": parsed.to,
            "Cc": parsed.cc,
            "Bcc": self.bcc,
            "ReplyTo": parsed.reply_to,
            "ReturnPath": _clean(self.envelope_from),
            "Subject": parsed.subject,
            "Date": _iso(parsed.date or self.created),
            "Tags": [],
            "Text": parsed.text,
            "HTML": parsed.html,
            "Size": len(self.raw),
            "Inline": [],
            "Attachments": parsed.attachments,
        }


def parse(raw: bytes) -> Parsed:
    """Read one mail. Raises whatever the parser raises on bytes that are no mail."""
    message = message_from_bytes(raw, policy=policy.default)
    headers: dict[str, list[str]] = {}
    for name, value in message.items():
        headers.setdefault(_clean(name), []).append(_clean(str(value)))
    text, html = (message.get_body((kind,)) for kind in ("plain", "html"))
    return Parsed(
        message_id=_clean(str(message.get("Message-ID", ""))).strip().strip("<>"),
        sender=next(iter(_addresses(message, "From")), {"Name": "", "Address": ""}),
        to=_addresses(message, "To"),
        cc=_addresses(message, "Cc"),
        reply_to=_addresses(message, "Reply-To"),
        subject=_clean(str(message.get("Subject", ""))),
        date=_date(message),
        text=_content(text),
        html=_content(html),
        headers=headers,
        attachments=[
            {
                "PartID": str(number),
                "FileName": _clean(part.get_filename() or ""),
                "ContentType": part.get_content_type(),
                "Size": len(payload) if isinstance(payload := part.get_payload(decode=True), bytes) else 0,
            }
            for number, part in enumerate(message.iter_attachments(), start=1)
        ],
    )


def _addresses(message: EmailMessage, name: str) -> list[dict[str, str]]:
    values = [str(value) for value in message.get_all(name, [])]
    return [{"Name": _clean(person), "Address": _clean(address)} for person, address in getaddresses(values) if address]


def _date(message: EmailMessage) -> datetime | None:
    try:
        date = parsedate_to_datetime(str(message["Date"]))
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _content(part: Any) -> str:
    """The text of a part; an unknown character set is read as UTF-8."""
    if part is None:
        return ""
    payload = part.get_payload(decode=True) or b""
    try:
        return _clean(payload.decode(part.get_content_charset("utf-8"), errors="replace"))
    except LookupError:
        return _clean(payload.decode(errors="replace"))


def _clean(text: str) -> str:
    """Broken headers arrive as lone surrogates, which no encoder takes."""
    return text.encode(errors="replace").decode()


def _iso(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
