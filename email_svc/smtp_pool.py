"""A few SMTP connections kept for reuse.

    acquire -> [open: only on a new connection] -> send on it -> release: kept if clean, young and not used up

Trouble of the network is data here as in `smtp`: `acquire` answers with an SmtpResult where there is no connection.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable

from email_svc.decision import Fault, Phase, SmtpResult
from email_svc.smtp import SmtpConnection
from email_svc.smtp_url import HOST, SmtpEndpoint


class SmtpPool:
    """At most `size` connections at a time, kept for reuse.

    A connection serves `max_mails` mails or `max_age_s` seconds at most, for relays count and time them out themselves
    (SES: some 350 mails); counting first spares a 421. Both are looked at when it is taken and when it is given back.

    Args:
        timeout_s: for each reply. RFC 5321 would have 5 minutes; a path that slow counts as broken here.
        after_dot_timeout_s: for the reply to the final dot. RFC 5321 4.5.3.2.6 says 10 minutes: giving up sooner makes
            duplicates, since the server has the mail by then.
        connect_timeout_s: for DNS, TCP and, with smtps, TLS together.
        local_hostname: said in EHLO. None: this host's name if it has a domain, else the address of our end.
        clock: monotonic seconds.

    Raises:
        ValueError: local_hostname is no host name, or the endpoint's CA file cannot be read.
    """

    def __init__(
        self,
        endpoint: SmtpEndpoint,
        *,
        size: int,
        timeout_s: float = 30,
        after_dot_timeout_s: float = 600,
        connect_timeout_s: float = 10,
        max_mails: int = 100,
        max_age_s: float = 60,
        local_hostname: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        name = local_hostname or socket.gethostname()
        usable = HOST.fullmatch(name) is not None
        if local_hostname and not usable:
            raise ValueError(f"local_hostname={local_hostname!r}: allowed is a host name")
        self._local_hostname = name if usable and (local_hostname or "." in name) else None
        self._endpoint = endpoint
        self._tls = endpoint.tls_context()
        self._timeout_s = timeout_s
        self._after_dot_timeout_s = after_dot_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._max_mails = max_mails
        self._max_age_s = max_age_s
        self._clock = clock
        self._slots = asyncio.Semaphore(size)
        self._idle: list[SmtpConnection] = []
        self._taken: set[SmtpConnection] = set()
        self._closing = False

    @property
    def idle(self) -> int:
        """Connections that are kept for reuse."""
        return len(self._idle)

    @property
    def in_use(self) -> int:
        """Connections that are taken, those being opened included."""
        return len(self._taken)

    async def acquire(self) -> SmtpConnection | SmtpResult:
        """A connection ready for MAIL, or why there is none; `release` gives it back. Waits while `size` are taken."""
        await self._slots.acquire()
        conn: SmtpConnection | None = None
        try:
            while self._idle:
                conn = self._idle.pop()  # the newest: the others may grow old and be closed
                self._taken.add(conn)
                if self.serves(conn) and await conn.reset():
                    return conn
                self._drop(conn)
            conn = SmtpConnection(
                timeout_s=self._timeout_s, after_dot_timeout_s=self._after_dot_timeout_s, made_at=self._clock()
            )
            self._taken.add(conn)
            failure = await conn.open(self._endpoint, self._tls, self._local_hostname, self._connect_timeout_s)
        except BaseException:  # a cancel too: its place must not be lost
            if conn is not None:
                self._drop(conn)
            self._slots.release()
            raise
        if failure is None and self._closing:
            failure = SmtpResult(phase=Phase.CONNECT, fault=Fault.CANCELLED)
        if failure is None:
            return conn
        self._drop(conn)
        self._slots.release()
        return failure

    def release(self, conn: SmtpConnection) -> None:
        """Give it back; it is kept only if it is clean. A second time does nothing."""
        if conn not in self._taken:
            return
        if self.serves(conn) and not self._closing:
            self._taken.remove(conn)
            conn.fresh = False
            self._idle.append(conn)
        else:
            self._drop(conn)
        self._slots.release()

    def refresh(self) -> None:
        """Close what lies idle: what ended one of them (a restart, a firewall) has mostly ended all."""
        while self._idle:
            self._drop(self._idle.pop())

    def serves(self, conn: SmtpConnection) -> bool:
        """Whether it is clean and neither too old nor used up."""
        return conn.clean and conn.mails < self._max_mails and self._clock() - conn.made_at < self._max_age_s

    async def close(self) -> None:
        """Close all, those in use as well: who awaits the reply to a dot is to be waited for before."""
        self._closing = True
        conns = [*self._idle, *self._taken]
        for conn in self._idle:
            conn.leave()
        for conn in self._taken:
            conn.abort()
        self._idle.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):  # TLS wants to say goodbye too, and a dead peer never answers
                for conn in conns:
                    await conn.closed()
        for conn in conns:
            conn.abort()

    def _drop(self, conn: SmtpConnection) -> None:
        self._taken.discard(conn)
        conn.leave()
