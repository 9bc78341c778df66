"""Who a user is: the pure rules for addresses, names, ids and keys.

    user_id = the first 26 characters of base32(HMAC-SHA256(USER_ID_KEY, canonical address)), lower case, 130 bits

One address, one id: uniqueness needs no index. The canonical address is what email-validator makes of it (NFC, the
domain as IDNA) with the local part lower-cased too and nothing else folded. The id cannot be guessed without the key.
"""

import base64
import functools
import hmac
import re
import secrets
import unicodedata
from datetime import datetime

import msgspec
from email_validator import EmailNotValidError, validate_email

from user_svc.errors import InvalidRequest

NAME_MAX = 100
RESENDS_A_DAY = 3

# Characters of category Cf reorder text or hide it. The joiners are the exception: Persian and Indic names need them.
_NO_NAME = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"


class Address(msgspec.Struct, frozen=True):
    """An address: `mailbox` is where the mail goes (ASCII), `canonical` is what it is known by."""

    mailbox: str
    canonical: str


def address(text: str) -> Address:
    """The address that a person typed.

    Raises:
        InvalidRequest: not an address that mail can be sent to (syntax, length, quoted or non-ASCII local part).
    """
    local, _, domain = text.partition("@")
    if _PLAIN_LOCAL.fullmatch(local) and len(text) <= _PLAIN_MAX and (mailbox_domain := _plain_domain(domain)):
        plain = f"{local}@{mailbox_domain}"
        return Address(mailbox=plain, canonical=plain)
    try:
        found = validate_email(text, check_deliverability=False, allow_smtputf8=False, strict=True)
    except (EmailNotValidError, UnicodeError, ValueError) as exc:
        # The library's message may quote the input: no address goes back into an answer that might be logged.
        detail = str(exc) if isinstance(exc, EmailNotValidError) else _AT
        raise InvalidRequest(errors={"email": detail if "@" not in detail.replace("@-sign", "") else _AT}) from exc
    domain = (found.ascii_domain or found.domain).lower()
    local = found.ascii_local_part or found.local_part
    return Address(mailbox=f"{local}@{domain}", canonical=f"{local.lower()}@{domain}")


_PLAIN_LOCAL = re.compile(r"[a-z0-9]+(?:[._+-][a-z0-9]+)*")
_PLAIN_MAX = 64
"""Characters of a whole address that no limit of any of its parts can meet."""


@functools.lru_cache(maxsize=4096)
def _plain_domain(domain: str) -> str | None:
    """A domain of ASCII as the library writes it, for it takes a quarter of the time of a registration; None: its word
    is needed on the whole address. Most people share few domains, and what it says of one does not hang on who is
    before the @, if that is plain.
    """
    if not domain.isascii() or domain != domain.strip():
        return None
    try:
        found = validate_email(f"a@{domain}", check_deliverability=False, allow_smtputf8=False, strict=True)
    except (EmailNotValidError, UnicodeError, ValueError):
        return None
    return (found.ascii_domain or found.domain).lower()


_AT = "It is not a valid email address."


def name(text: str) -> str:
    """A person's name in NFC, outer spaces dropped.

    Raises:
        InvalidRequest: empty, longer than 100 characters, or with characters that no name needs and attacks do.
    """
    found = unicodedata.normalize("NFC", text).strip()
    problem = None
    if not found:
        problem = "It must not be empty."
    elif len(found) > NAME_MAX:
        problem = f"It must have at most {NAME_MAX} characters."
    elif not found.isprintable() and any(unicodedata.category(c) in _NO_NAME and c not in _JOINERS for c in found):
        problem = "It must not contain control, invisible, direction-changing, private or unassigned characters."
    elif "=?" in found:
        problem = "It must not contain '=?'."
    if problem:
        raise InvalidRequest(errors={"name": problem})
    return found


class Ids:
    """What is derived from the secret key."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    @property
    def fingerprint(self) -> str:
        """Tells keys apart without giving them away; kept with the bucket."""
        return self._mac("fingerprint", "mailflow")

    def user_id(self, canonical: str) -> str:
        """26 characters of lower-case base32."""
        return self._mac("user_id", canonical)

    def key_hash(self, idempotency_key: str) -> str:
        """A legal key of a bucket for any Idempotency-Key."""
        return self._mac("idempotency_key", idempotency_key)

    def payload(self, canonical: str, name: str) -> str:
        """Fingerprint of a registration's payload."""
        return self._mac("payload", f"{canonical}\0{name}")

    def _mac(self, purpose: str, text: str) -> str:
        digest = hmac.digest(self._key, f"{purpose}\0{text}".encode(), "sha256")
        return base64.b32encode(digest[:20])[:26].decode().lower()


def nonce() -> str:
    """Tells one create from another's."""
    return secrets.token_hex(13)


def idempotency_key(header: str) -> str:
    """The key in an Idempotency-Key header, quoted (as the draft says) or bare.

    Raises:
        InvalidRequest: empty, longer than 255 characters, or not printable ASCII.
    """
    key = header.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not (1 <= len(key) <= 255 and key.isascii() and key.isprintable() and '"' not in key):
        raise InvalidRequest(errors={"Idempotency-Key": "It must be 1 to 255 printable ASCII characters."})
    return key


def resend_nonces(now: datetime) -> list[str]:
    """The names of today's resends (UTC): the first free one is taken, none is free beyond the limit."""
    return [f"{now:%Y-%m-%d}-{n}" for n in range(1, RESENDS_A_DAY + 1)]
