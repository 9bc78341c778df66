"""A development inbox: takes every mail by SMTP, keeps it in memory, shows it on a web page as it arrives.

    SMTP :1025 ─► Mailbox (newest 1,000 mails, 256 MB at most) ─► JSON in Mailpit's shape, page, events :8025

A mail is only stored when it arrives; it is parsed (mail.py) when somebody looks at it, and in a thread, so neither
side waits for the other. The event stream says "something changed", not what: the page then asks for the list, so a
reconnect cannot miss anything. Mail content is hostile: it leaves here as JSON or plain text, and its HTML part only
under a policy of its own that runs nothing and loads nothing.

Deliberately not here: no storage (a development inbox may forget), no TLS, no login, no address but loopback.
Source: the JSON is that of Mailpit, https://mailpit.axllent.org/docs/api-v1/ (the parts of it that are here).
"""

import asyncio
import os
import secrets
import sys
import types
from collections import OrderedDict
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import uvicorn
from mail import Mail
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

try:
    from aiosmtpd.smtp import SMTP, Envelope, Session
except ModuleNotFoundError:
    sys.exit("inbox: aiosmtpd is missing; `uv sync` installs it (dependency group dev)")

HOST = "127.0.0.1"
MAX_MAILS = 1_000
MAX_MAIL_BYTES = 10 * 1024 * 1024
MAX_TOTAL_BYTES = 256 * 1024 * 1024
MAX_LIMIT = 1_000

EVENT_INTERVAL_S = 0.2
"""Least time between two events to one page: a thousand mails a second become five reloads of the list."""
KEEP_ALIVE_S = 3.0
"""A page that hears nothing for twice as long says that it is not connected."""

HERE = Path(__file__).resolve().parent
PAGE = HERE / "inbox_page"
CONSOLE = HERE.parents[1] / "user_svc" / "console" / "static"
FILES = {
    "/": PAGE / "index.html",
    **{f"/{name}": PAGE / name for name in ("inbox.css", "inbox.js")},
    **{f"/{name}": CONSOLE / name for name in ("console.css", "dom.js", "live.js", "icon.svg")},
}

COMMON_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'"
PAGE_HEADERS = COMMON_HEADERS | {
    "Content-Security-Policy": (
        f"{NOTHING}; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self';"
        " frame-ancestors 'none'"
    )
}
DATA_HEADERS = COMMON_HEADERS | {"Content-Security-Policy": f"{NOTHING}; frame-ancestors 'none'; sandbox"}
MAIL_HTML_HEADERS = COMMON_HEADERS | {
    "Content-Security-Policy": f"{NOTHING}; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; sandbox"
}


class Mailbox:
    """The newest mails, oldest first, and the pages that want to know of a change. Used from the event loop only."""

    def __init__(self, *, max_mails: int = MAX_MAILS, max_bytes: int = MAX_TOTAL_BYTES) -> None:
        self.max_mails, self.max_bytes = max_mails, max_bytes
        self.mails: OrderedDict[str, Mail] = OrderedDict()
        self.size_bytes = 0
        self.listeners: set[asyncio.Event] = set()
        self.closed = False

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802  aiosmtpd's name
        """Take one mail; called by aiosmtpd after the final dot."""
        content = envelope.content
        raw = content if isinstance(content, bytes) else (content or "").encode()
        mail = Mail(secrets.token_hex(11), raw, envelope.mail_from or "", list(envelope.rcpt_tos), datetime.now(UTC))
        self.add(mail)
        return f"250 2.0.0 Ok: {mail.id}"

    def add(self, mail: Mail) -> None:
        self.mails[mail.id] = mail
        self.size_bytes += len(mail.raw)
        while len(self.mails) > self.max_mails or self.size_bytes > self.max_bytes:
            _, oldest = self.mails.popitem(last=False)
            self.size_bytes -= len(oldest.raw)
        self.tell()

    def remove(self, ids: list[str]) -> None:
        """Remove these mails; no ids means all of them."""
        for mail_id in ids or list(self.mails):
            if mail := self.mails.pop(mail_id, None):
                self.size_bytes -= len(mail.raw)
        self.tell()

    def find(self, mail_id: str) -> Mail | None:
        """By id; `latest` is the newest, as in Mailpit."""
        if mail_id == "latest":
            return next(reversed(self.mails.values()), None)
        return self.mails.get(mail_id)

    def tell(self) -> None:
        for listener in self.listeners:
            listener.set()

    def close(self) -> None:
        """End all event streams; the web server would wait for them for ever."""
        self.closed = True
        self.tell()

    async def changes(self) -> AsyncIterator[str]:
        """Server-sent events: one at once, then one after each change (or several), another when nothing happens."""
        changed = asyncio.Event()
        self.listeners.add(changed)
        try:
            yield "retry: 1000\n\n"
            while not self.closed:
                yield f"event: change\ndata: {len(self.mails)}\n\n"
                await asyncio.sleep(EVENT_INTERVAL_S)
                while not await _is_set(changed, KEEP_ALIVE_S):
                    yield "event: still\ndata: 0\n\n"
                changed.clear()
        finally:
            self.listeners.discard(changed)


async def _is_set(event: asyncio.Event, limit_s: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), limit_s)
    except TimeoutError:
        return False
    return True


def application(mailbox: Mailbox) -> Starlette:
    """The web side. Only for a Host of this machine: a page elsewhere may not reach in by a name that points here."""

    async def list_messages(request: Request) -> Response:
        try:
            limit, start = (
                int(request.query_params.get(name, default)) for name, default in (("limit", 50), ("start", 0))
            )
        except ValueError:
            return PlainTextResponse("limit and start are numbers", 400, headers=DATA_HEADERS)
        newest_first = list(reversed(mailbox.mails.values()))
        start = max(start, 0)
        wanted = newest_first[start : start + min(max(limit, 0), MAX_LIMIT)]
        messages = await asyncio.to_thread(lambda: [mail.summary() for mail in wanted])
        unread = sum(not mail.read for mail in newest_first)
        answer = {
            "total": len(newest_first),
            "unread": unread,
            "count": len(messages),
            "messages_count": len(newest_first),
            "messages_unread": unread,
            "start": start,
            "tags": [],
            "messages": messages,
        }
        return JSONResponse(answer, headers=DATA_HEADERS)

    async def delete_messages(request: Request) -> Response:
        try:
            body = await request.json() if await request.body() else {}
            ids = body.get("IDs") or []
            mailbox.remove([str(mail_id) for mail_id in ids])
        except (ValueError, AttributeError, TypeError):
            return PlainTextResponse('the body is {"IDs": [...]} or empty', 400, headers=DATA_HEADERS)
        return PlainTextResponse("ok", headers=DATA_HEADERS)

    async def one(request: Request) -> Response:
        """Everything that shows one mail: its parts differ, finding it does not."""
        mail = mailbox.find(request.path_params["id"])
        if mail is None:
            return PlainTextResponse("no such mail", 404, headers=DATA_HEADERS)
        match request.path_params.get("part"):
            case None:
                if not mail.read:
                    mail.read = True
                    mailbox.tell()
                return JSONResponse(await asyncio.to_thread(mail.detail), headers=DATA_HEADERS)
            case "headers":
                return JSONResponse((await asyncio.to_thread(lambda: mail.parsed)).headers, headers=DATA_HEADERS)
            case "raw":
                return Response(mail.raw, media_type="text/plain; charset=utf-8", headers=DATA_HEADERS)
            case "html":
                html = (await asyncio.to_thread(lambda: mail.parsed)).html
                return Response(html, media_type="text/html; charset=utf-8", headers=MAIL_HTML_HEADERS)
            case _:
                return PlainTextResponse("headers, raw or html", 404, headers=DATA_HEADERS)

    async def events(request: Request) -> Response:
        return StreamingResponse(mailbox.changes(), media_type="text/event-stream", headers=DATA_HEADERS)

    async def fine(request: Request) -> Response:
        return PlainTextResponse("ok", headers=DATA_HEADERS)

    async def page(request: Request) -> Response:
        return FileResponse(FILES[request.url.path], headers=PAGE_HEADERS)

    return Starlette(
        routes=[
            *(Route(path, page) for path in FILES),
            Route("/api/v1/messages", list_messages),
            Route("/api/v1/messages", delete_messages, methods=["DELETE"]),
            Route("/api/v1/message/{id}", one),
            Route("/api/v1/message/{id}/{part}", one),
            Route("/events", events),
            Route("/livez", fine),
            Route("/readyz", fine),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False)],
    )


class WebServer(uvicorn.Server):
    """uvicorn that ends the event streams when it is told to stop."""

    def __init__(self, config: uvicorn.Config, mailbox: Mailbox) -> None:
        super().__init__(config)
        self.mailbox = mailbox

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self.mailbox.close()


async def serve(smtp_port: int, http_port: int) -> None:
    """Run both sides until SIGINT or SIGTERM.

    Raises:
        OSError: the SMTP port cannot be had.
    """
    mailbox = Mailbox()
    loop = asyncio.get_running_loop()

    def connection() -> SMTP:
        return SMTP(
            mailbox,
            data_size_limit=MAX_MAIL_BYTES,
            enable_SMTPUTF8=False,
            hostname="inbox.mailflow.local",  # not given, each connection would ask DNS for it
            ident="MailFlow inbox",
            loop=loop,
        )

    smtp = await loop.create_server(connection, HOST, smtp_port)
    config = uvicorn.Config(
        application(mailbox),
        host=HOST,
        port=http_port,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=3,
    )
    print(f"SMTP on {HOST}:{smtp_port}, page on http://{HOST}:{http_port}", flush=True)
    try:
        await WebServer(config, mailbox).serve()
    finally:
        smtp.close()


def main() -> None:
    ports = [
        int(os.environ.get(name) or default) for name, default in (("INBOX_SMTP_PORT", 1025), ("INBOX_HTTP_PORT", 8025))
    ]
    try:
        asyncio.run(serve(*ports))
    except KeyboardInterrupt:
        pass
    except OSError as exc:
        sys.exit(f"inbox: {exc}")


if __name__ == "__main__":
    main()
