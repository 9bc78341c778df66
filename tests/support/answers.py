"""An HTTP answer as its client got it, and what is different about another one."""

import contextlib
import http.client
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

HOP = frozenset({"connection", "date", "keep-alive", "transfer-encoding"})
"""Of one connection, not of the answer."""
ADDED = frozenset(
    {
        "content-security-policy",
        "referrer-policy",
        "vary",
        "x-content-type-options",
        "x-frame-options",
        "x-krakend",
        "x-krakend-completed",
    }
)
"""What the gateway may add to an answer."""


@dataclass(frozen=True)
class Answer:
    """Header names are in lower case; `chunked` is how it came."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    chunked: bool = False

    def header(self, name: str) -> str | None:
        """The first of this name."""
        return next((value for key, value in self.headers if key == name), None)

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Request:
    """`body`: bytes are sent with their length, pieces of them chunked. `promised`: a Content-Length that is not
    kept, to see what is answered before the rest comes."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | tuple[bytes, ...] | None = None
    promised: int | None = None


def ask(port: int, request: Request, *, source: str = "127.0.0.1", within_s: float = 20.0) -> Answer:
    """One request on a connection of its own, its path sent as it is written."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=within_s, source_address=(source, 0))
    try:
        return exchange(connection, request)
    finally:
        connection.close()


def exchange(connection: http.client.HTTPConnection, request: Request) -> Answer:
    """One request on this connection."""
    connection.putrequest(request.method, request.path, skip_accept_encoding=True)
    for name, value in request.headers.items():
        connection.putheader(name, value)
    # Who is refused early may find the connection closed while it is still sending; the answer is there all the same.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        _send_body(connection, request)
    answer = connection.getresponse()
    headers = tuple((name.lower(), value) for name, value in answer.getheaders())
    return Answer(answer.status, headers, answer.read(), chunked=bool(answer.chunked))


def _send_body(connection: http.client.HTTPConnection, request: Request) -> None:
    body = request.body
    if request.promised is not None:
        connection.putheader("Content-Length", str(request.promised))
        connection.endheaders(body)
    elif isinstance(body, tuple):
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders(_pieces(body), encode_chunked=True)
    elif body is not None or request.method == "POST":
        connection.putheader("Content-Length", str(len(body or b"")))
        connection.endheaders(body)
    else:
        connection.endheaders()


def _pieces(body: Iterable[bytes]) -> Iterator[bytes]:
    yield from (piece for piece in body if piece)


def differences(direct: Answer, through: Answer, varying: Collection[str] = ()) -> list[str]:
    """What a client of the gateway sees otherwise than one without it; nothing if all is well.

    varying: headers and members of the JSON body that are made anew for each request; they must be there in both.
    """
    found = []
    if direct.status != through.status:
        found.append(f"status {direct.status} became {through.status}")
    names = {name for name, _ in (*direct.headers, *through.headers)} - HOP
    for name in sorted(names):
        before = [value for key, value in direct.headers if key == name]
        after = [value for key, value in through.headers if key == name]
        same = len(before) == len(after) if name in varying else before == after
        if not same and not (name in ADDED and not before):
            found.append(f"header {name}: {before} became {after}")
    if through.chunked:
        found.append("chunked: one that breaks off would look complete")
    if _without(direct.body, varying) != _without(through.body, varying):
        found.append(f"body {direct.body!r} became {through.body!r}")
    return found


def _without(body: bytes, varying: Collection[str]) -> Any:
    try:
        document = json.loads(body)
    except ValueError:
        return body
    if isinstance(document, dict) and set(varying) & set(document):
        return {key: None if key in varying else value for key, value in document.items()}
    return body
