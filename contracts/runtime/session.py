"""Who may act on an admin listener: whoever sends the token, or the cookie of a login with it.

    cookie = <seconds since 1970>.<nonce>.<HMAC-SHA256(key, what is before)>        key = PBKDF2(token)

Nothing is kept of a session, so all replicas that have the token take it, and it ends by itself; a new token ends all.
A logout only takes the cookie from its browser. It holds no token, and to try tokens against a stolen one is slow.
Browsers send it to every port of this host, so it may act only together with an Origin of its own
(contracts.runtime.admin).
"""

import functools
import hashlib
import hmac
import secrets
import time
from typing import Final, Literal

from starlette.requests import Request

COOKIE: Final = "mailflow_session"
LASTS_S: Final = 43_200
"""12 h."""
_ROUNDS = 100_000
"""Some 50 ms, once a process."""


def authorized(authorization: str, token: str | None) -> bool:
    """Whether an Authorization header carries the bearer token; without a token set everybody may."""
    if token is None:
        return True
    scheme, _, given = authorization.partition(" ")
    # As it came over the wire: the server reads bytes as Latin-1.
    return scheme.lower() == "bearer" and hmac.compare_digest(given.encode("latin-1", "replace"), _bytes(token))


def is_token(given: str, token: str) -> bool:
    """Whether what somebody typed is the token."""
    return hmac.compare_digest(_bytes(given.strip()), _bytes(token))


def issue(token: str, now: float) -> str:
    """A cookie that is good for `LASTS_S` from now on, seconds since 1970."""
    head = f"{int(now) + LASTS_S}.{secrets.token_hex(16)}"
    return f"{head}.{_mac(head, token)}"


def valid(cookie: str, token: str, now: float) -> bool:
    """Whether a cookie was issued under this token and has not expired."""
    head, _, mac = cookie.rpartition(".")
    if not hmac.compare_digest(_bytes(mac), _bytes(_mac(head, token))):
        return False
    return now < int(head.partition(".")[0])  # ours, so it is a number


def has_session(request: Request, token: str | None) -> bool:
    """Whether the request brings the cookie of a login."""
    return token is not None and valid(request.cookies.get(COOKIE, ""), token, time.time())


def logged_in(request: Request, token: str | None) -> bool:
    """Whether the request may read what is about persons: by the token, by a login, or because no token is set."""
    return authorized(request.headers.get("authorization", ""), token) or has_session(request, token)


def by(request: Request, token: str | None) -> Literal["token", "login", "anyone"]:
    """What the request shows of who makes it."""
    if token is not None and authorized(request.headers.get("authorization", ""), token):
        return "token"
    return "login" if has_session(request, token) else "anyone"


def set_cookie(value: str) -> str:
    """The header that gives the cookie to a browser; an empty value takes it away."""
    return f"{COOKIE}={value}; HttpOnly; SameSite=Strict; Path=/; Max-Age={LASTS_S if value else 0}"


def _mac(head: str, token: str) -> str:
    return hmac.new(_key(token), _bytes(head), "sha256").hexdigest()


@functools.lru_cache(maxsize=4)
def _key(token: str) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", _bytes(token), b"mailflow admin session v1", _ROUNDS)


def _bytes(text: str) -> bytes:
    """Also of what no text has: comparing text outside of ASCII would raise, and an environment may hold any bytes."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
