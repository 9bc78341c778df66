"""An HTTP connection whose client may not take as long, nor send as much, as it likes.

uvicorn waits for a request for ever, keeps as much of its head as comes, and waits for ever for a client that does not
read its answer. Each would let a handful of clients hold connections, memory and places in flight for nothing.

    first byte of a request ── message_s ──► its last byte        else cut off
    head and other framing, without the body: 64 KiB              else 400
    an answer that is not read: some of it each message_s         else cut off

The application has its own limits, which are to come first: those answer properly.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_HEAD_MAX_BYTES = 65_536


def impatient(message_s: float) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with these limits."""
    return type("Impatient", (_Impatient,), {"message_s": message_s})


class _Impatient(HttpToolsProtocol):
    message_s: float
    _complete = False
    """Whether what was received ends with a message."""
    _head_bytes = 0
    """Received of a message that is not complete, its body not counted."""
    _asked: tuple[RequestResponseCycle, ...] = ()
    """Requests that were not answered yet when the last one came."""
    _receiving: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # A connection may idle as long as between two requests. The first byte ends it.
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        self._complete = False
        self._head_bytes += len(data)
        super().data_received(data)
        if self._complete:
            self._head_bytes = 0
            self._received()
        elif self._head_bytes > _HEAD_MAX_BYTES and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.send_400_response("The head of the request is too large.")
            else:
                self.transport.abort()
        elif self._receiving is None:  # mostly a request comes in one piece, and costs no timer
            self._receiving = self.loop.call_later(self.message_s, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """In the shape of all other errors."""
        body = b'{"type":"about:blank","title":"Bad Request","status":400,"detail":"%s"}' % msg.encode()
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(body), body)
        )
        self.transport.close()

    def on_message_begin(self) -> None:
        self._complete = False
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._asked = (*(one for one in self._asked if not one.response_complete), self.cycle)

    def on_body(self, body: bytes) -> None:
        self._head_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._complete = True
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending = self.loop.call_later(self.message_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._sent()

    def connection_lost(self, exc: Exception | None) -> None:
        self._received()
        self._sent()
        self._unset_keepalive_if_required()
        for one in self._asked:  # uvicorn tells the last one only, and what another writes would be a 500 of ours
            one.disconnected = True
            one.message_event.set()
        super().connection_lost(exc)

    def _received(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None

    def _sent(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
