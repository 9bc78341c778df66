"""SMTP_URL: where the mail server is, and how the way to it is protected."""

import ipaddress
import re
import ssl
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

Mode = Literal["plain", "starttls", "tls"]

_SCHEMES: dict[str, tuple[Mode, int]] = {
    "smtp": ("plain", 25),
    "smtp+starttls": ("starttls", 587),
    "smtps": ("tls", 465),
}
_ALLOWED = (
    "allowed is smtp://host:port, smtp+starttls://user:password@host:port or smtps://…, the last two with ?ca=file"
)
HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")


class SmtpEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where the mail goes and how it is protected on the way. Shown without its password."""

    host: str
    port: int
    mode: Mode
    username: str | None = None
    password: str | None = None
    ca: str | None = None
    """A file of CA certificates to trust instead of the system's."""

    def __repr__(self) -> str:
        user = f"{self.username}:***@" if self.username else ""
        return f"SmtpEndpoint({self.mode} {user}{self.host}:{self.port})"

    def __rich_repr__(self) -> Any:
        """A traceback drawn by rich asks here, and msgspec's own answer would hold the password."""
        yield repr(self)

    def tls_context(self) -> ssl.SSLContext | None:
        """Certificates and host names are always verified. None in mode plain.

        Raises:
            ValueError: the CA file cannot be read.
        """
        if self.mode == "plain":
            return None
        try:
            return ssl.create_default_context(cafile=self.ca)
        except OSError as exc:  # ssl.SSLError is one
            raise ValueError(f"SMTP_URL: ca={self.ca!r}: allowed is a readable file of PEM certificates") from exc


def parse_smtp_url(url: str) -> SmtpEndpoint:
    """`smtp://host:1025` | `smtp+starttls://user:password@host:587` | `smtps://user:password@host:465`.

    The last two take `?ca=file`. User and password are percent-decoded. STARTTLS is required where it is named, and
    never tried where it is not.

    Raises:
        ValueError: names the value, without its password, and what is allowed.
    """
    shown = _without_password(url)
    try:
        parts, options = urlsplit(url), parse_qs(urlsplit(url).query, keep_blank_values=True)
        port = parts.port
    except ValueError:
        raise ValueError(f"SMTP_URL={shown}: {_ALLOWED}") from None
    host, ca = parts.hostname or "", options.pop("ca", [None])
    user = unquote(parts.username) if parts.username is not None else None
    password = unquote(parts.password) if parts.password is not None else None
    legal = (
        url.isprintable()
        and " " not in url
        and parts.scheme in _SCHEMES
        and (_is_ip(host) or HOST.fullmatch(host))
        and port != 0
        and parts.path in ("", "/")
        and not parts.fragment
        and not options
        and len(ca) == 1
        and ca[0] != ""
    )
    if not legal:
        raise ValueError(f"SMTP_URL={shown}: {_ALLOWED}")
    if (not user) != (not password) or not (user or "").isprintable() or not (password or "").isprintable():
        raise ValueError(f"SMTP_URL={shown}: allowed is a user with a password, both printable, or neither")
    mode, default_port = _SCHEMES[parts.scheme]
    if mode == "plain" and user and not _is_loopback(host):
        raise ValueError(f"SMTP_URL={shown}: credentials are allowed over smtp+starttls:// and smtps:// only")
    if mode == "plain" and ca[0] is not None:
        raise ValueError(f"SMTP_URL={shown}: ca is allowed with smtp+starttls:// and smtps:// only")
    endpoint = SmtpEndpoint(
        host=host,
        port=port or default_port,
        mode=mode,
        username=user or None,
        password=password or None,
        ca=ca[0],
    )
    endpoint.tls_context()  # a CA file that cannot be read stops the start
    return endpoint


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)


def _without_password(url: str) -> str:
    """For any string: whatever stands between the first colon of the credentials and the last @ is hidden."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    credentials, at, place = rest.rpartition("@")
    shown = f"{credentials.partition(':')[0]}:***@{place}" if at else rest
    return repr(f"{scheme}{separator}{shown}")
