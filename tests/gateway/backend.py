"""A backend that keeps what reaches it and answers as it is told. It stands in for an OTLP collector too."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.processes import free_port


@dataclass(frozen=True)
class Received:
    """One request. Header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Backend:
    """`requests`: all so far. `status`: of the answers from now on; None hangs up instead."""

    port: int = field(default_factory=free_port)
    requests: list[Received] = field(default_factory=list)
    status: int | None = 200

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Serves on `port`, each request in a thread."""
        server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        backend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                if headers.get("transfer-encoding") == "chunked":
                    body = b"".join(iter(self._chunk, b""))
                else:
                    body = self.rfile.read(int(headers.get("content-length", "0")))
                backend.requests.append(Received(self.command, self.path, headers, body))
                if backend.status is None:
                    self.close_connection = True
                    return
                self.send_response(backend.status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def _chunk(self) -> bytes:
                data = self.rfile.read(int(self.rfile.readline(), 16))
                self.rfile.readline()
                return data

            do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the server calls them so

            def log_message(self, *args: object) -> None:
                """Silent."""

        return Handler
