"""One connection to NATS, and the few JetStream calls that both services make over it.

Raw requests instead of nats-py's JetStream context: each answer is told apart by its err_code, and an answer that did
not come is never taken for a refusal. The laws:

- Reads that something is decided on ask the stream's leader (STREAM.MSG.GET): a follower may not know yet.
- A write whose answer did not come may have happened (`Unavailable.sent`): the caller reads back.
- Nothing is buffered while disconnected: what was reported as failed must not be sent later.

Source: JetStream's API (ADR-1 and following); behaviour tried against nats-server 2.15.
"""

import asyncio
import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec
import nats
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from contracts.runtime.login import CarefulClient, Refused, login_options, refusal

log = structlog.get_logger()

NO_MESSAGE = 10037
NO_STREAM = 10059
NO_CONSUMER = 10014
WRONG_LAST_SEQUENCE = 10071
WRITE_IN_FLIGHT = 10164
STREAM_FULL = 10077

_DENIED = re.compile(r'permissions violation for (\w+)[^"]*"([^"]*)"', re.IGNORECASE)
_REFUSED_FOR_S = 3.0
"""So long a refused login is tried again: of several brokers one may not know the user yet."""


class Unavailable(Exception):
    """The broker gave no answer.

    Attributes:
        sent: the request may have been carried out; False means that it cannot have been.
    """

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


class ApiError(Exception):
    """JetStream refused; `err_code` says why (nats-server's errors.json)."""

    def __init__(self, err_code: int, description: str) -> None:
        super().__init__(f"{description} ({err_code})")
        self.err_code = err_code
        self.description = description


class Conflict(ApiError):
    """The subject's last sequence is not the expected one.

    Attributes:
        in_flight: somebody else's write is proposed but not stored yet (clusters only): read back before believing it.
    """

    @property
    def in_flight(self) -> bool:
        return self.err_code == WRITE_IN_FLIGHT


class StreamFull(ApiError):
    """The stream takes no more messages for now."""


class Denied(ApiError):
    """The broker does not allow its user to do this; nothing was done."""

    def __init__(self, user: str, verb: str, subject: str) -> None:
        super().__init__(0, f"the broker does not allow {user} to {verb} {subject}")

    def __str__(self) -> str:
        return self.description


class Stored(msgspec.Struct, frozen=True):
    """A message as a stream keeps it."""

    subject: str
    seq: int
    time: datetime
    data: bytes = b""
    hdrs: bytes = b""

    @property
    def headers(self) -> dict[str, str]:
        """Its headers; of a name that is there twice the last."""
        lines = self.hdrs.decode("utf-8", "replace").split("\r\n")[1:]
        return {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _PubAck(msgspec.Struct):
    seq: int = 0
    error: _Error | None = None


class _Got(msgspec.Struct):
    message: Stored | None = None
    error: _Error | None = None


_PUB_ACK = msgspec.json.Decoder(_PubAck)
_GOT = msgspec.json.Decoder(_Got)
_ERRORS: dict[int, type[ApiError]] = {
    WRONG_LAST_SEQUENCE: Conflict,
    WRITE_IN_FLIGHT: Conflict,
    STREAM_FULL: StreamFull,
}


def _refused(error: _Error) -> ApiError:
    return _ERRORS.get(error.err_code, ApiError)(error.err_code, error.description)


def _settle(answer: asyncio.Future[Msg | Exception], got: Msg | Exception) -> None:
    """An exception as a result, for nobody may be there to retrieve one."""
    if not answer.done():
        answer.set_result(got)


class Broker:
    """A connected client. `timeout_s` bounds each call that names no time of its own."""

    def __init__(self, client: Client, *, name: str = "", timeout_s: float = 2.0) -> None:
        self.client = client
        self.name = name
        self.timeout_s = timeout_s
        self._inbox, self._count = "", 0
        """Where answers arrive: the inbox and the number of the request."""
        self._asked: dict[str, tuple[str, asyncio.Future[Msg | Exception]]] = {}
        """The requests under way by their number: to which subject, and who waits for the answer."""
        self.closing = False
        self.reconnected: list[Callable[[], None]] = []
        """Called after each reconnect, for what was asked before may be lost."""

    async def request(
        self, subject: str, data: bytes = b"", *, headers: dict[str, str] | None = None, timeout_s: float | None = None
    ) -> Msg:
        """One request, one answer.

        Raises:
            Denied: not allowed. Unavailable: no answer; nobody listens; not connected.
        """
        if not self.client.is_connected:
            raise Unavailable("not connected to the broker", sent=False)
        loop = asyncio.get_running_loop()
        self._count += 1
        number, answer = f"{self._count:x}", loop.create_future()
        self._asked[number] = (subject, answer)
        after_s = self.timeout_s if timeout_s is None else timeout_s
        timer = loop.call_later(after_s, _settle, answer, TimeoutError())
        try:
            await self.client.publish(subject, data, reply=self._inbox + number, headers=headers)
            got = await answer
        except nats.errors.OutboundBufferLimitError as exc:
            raise Unavailable("not connected to the broker", sent=False) from exc
        except (nats.errors.Error, OSError) as exc:
            raise Unavailable(f"{type(exc).__name__} during {subject}", sent=True) from exc
        finally:
            timer.cancel()
            del self._asked[number]
        if isinstance(got, TimeoutError):
            raise Unavailable(f"no answer in time to {subject}", sent=True)
        if isinstance(got, Exception):
            raise got
        raw: Msg = got
        if not raw.data and (raw.headers or {}).get("Status") == "503":
            raise Unavailable(f"nobody answers {subject}", sent=False)
        return raw

    async def listen(self) -> None:
        """Once connected, before the first request. Answers could be nats-py's matter (`Client.request`); by hand they
        take half of its time, which is most of a registration's."""
        self._inbox = f"{self.client.new_inbox()}."
        await self.client.subscribe(f"{self._inbox}*", cb=self._answered)

    async def _answered(self, raw: Msg) -> None:
        asked = self._asked.get(raw.subject.rpartition(".")[2])
        if asked is not None:  # else nobody waits any more
            _settle(asked[1], raw)

    def denied(self, subject: str) -> None:
        """The broker has denied a publish: whoever waits for an answer from there need not wait for the time-out."""
        for asked, answer in self._asked.values():
            if asked.lower() == subject.lower():  # nats-py names it in lower case
                _settle(answer, Denied(self.name, "publish to", asked))

    async def api(self, call: str, body: Mapping[str, Any] | None = None, *, timeout_s: float | None = None) -> Any:
        """One call of JetStream's API, e.g. `STREAM.INFO.USERS`; returns the decoded answer.

        Raises:
            ApiError: JetStream refused. Unavailable: no answer.
        """
        payload = msgspec.json.encode(body) if body else b""
        answer = msgspec.json.decode((await self.request(f"$JS.API.{call}", payload, timeout_s=timeout_s)).data)
        if "error" in answer:
            raise _refused(msgspec.convert(answer["error"], _Error))
        return answer

    async def store(
        self,
        subject: str,
        data: bytes,
        *,
        expect_last: int | None = None,
        expect_on: str | None = None,
        ttl_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Stores a message durably and returns its sequence.

        Args:
            expect_last: the sequence that the subject's last message must have; 0 means that there must be none.
            expect_on: another subject (wildcards allowed) on which `expect_last` is checked.
            ttl_s: the message goes after so many whole seconds, at least 1.

        Raises:
            Conflict: `expect_last` does not hold. StreamFull: no room. Unavailable: no answer. ApiError: else.
        """
        all_headers = dict(headers) if headers else {}
        if expect_last is not None:
            all_headers["Nats-Expected-Last-Subject-Sequence"] = str(expect_last)
        if expect_on is not None:
            all_headers["Nats-Expected-Last-Subject-Sequence-Subject"] = expect_on
        if ttl_s is not None:
            all_headers["Nats-TTL"] = f"{max(1, int(ttl_s))}s"
        answer = await self.request(subject, data, headers=all_headers or None, timeout_s=timeout_s)
        ack = _PUB_ACK.decode(answer.data)
        if ack.error is not None:
            raise _refused(ack.error)
        return ack.seq

    async def last(self, stream: str, subject: str, *, timeout_s: float | None = None) -> Stored | None:
        """The newest message on a subject (wildcards allowed), from the leader. None: there is none."""
        return await self._get(stream, {"last_by_subj": subject}, timeout_s)

    async def at(self, stream: str, seq: int) -> Stored | None:
        """The message with that sequence, from the leader. None: there is none."""
        return await self._get(stream, {"seq": seq}, None)

    async def next(self, stream: str, seq: int, subject: str) -> Stored | None:
        """The first message from `seq` on that matches the subject, from the leader. None: there is none."""
        return await self._get(stream, {"seq": seq, "next_by_subj": subject}, None)

    async def _get(self, stream: str, what: dict[str, Any], timeout_s: float | None) -> Stored | None:
        answer = await self.request(f"$JS.API.STREAM.MSG.GET.{stream}", msgspec.json.encode(what), timeout_s=timeout_s)
        got = _GOT.decode(answer.data)
        if got.error is None:
            return got.message
        if got.error.err_code == NO_MESSAGE:
            return None
        raise _refused(got.error)

    async def delete(self, stream: str, seq: int) -> bool:
        """Deletes one message and overwrites its bytes on disk. False: it was gone already."""
        try:
            await self.api(f"STREAM.MSG.DELETE.{stream}", {"seq": seq})
        except ApiError:
            # The refusal's code and text depend on where in the stream the gap is; whether it is there does not.
            if await self.at(stream, seq) is None:
                return False
            raise
        return True

    async def purge(self, stream: str, subject: str) -> None:
        """Removes what is on one exact subject; the bytes stay on disk until their block goes (see `delete`)."""
        await self.api(f"STREAM.PURGE.{stream}", {"filter": subject})

    async def subjects(self, stream: str, pattern: str) -> list[str]:
        """The subjects in a stream that match a pattern, from the leader. For narrow patterns: one page of names."""
        info = await self.api(f"STREAM.INFO.{stream}", {"subjects_filter": pattern})
        return list(info["state"].get("subjects") or ())

    async def close(self) -> None:
        """Sends what is on its way and closes."""
        self.closing = True
        if self.client.is_connected:
            try:
                await self.client.flush(timeout=1)
            except (TimeoutError, nats.errors.Error):
                log.warning("broker.flush_failed")
        _forget_unsent(self.client)  # nats-py would write it to a transport that may be closed, which raises
        await self.client.close()


def _forget_unsent(client: Client) -> None:
    client._pending.clear()
    client._pending_data_size = 0


async def connect(
    *,
    name: str,
    url: str,
    on_closed: Callable[[str], None],
    user: str | None = None,
    password: str | None = None,
    credentials: str | None = None,
    tls_ca: str | None = None,
) -> Broker:
    """Connects, waiting for the broker as long as it takes, and stays connected: reconnects for ever and fast.

    A dead peer is noticed within about 6 s (a ping every 2 s, two may be missing). `on_closed` is called with a reason
    when the client has given up for good, which nothing but a restart of the process mends.

    Raises:
        Refused: the login, the broker's certificate or a file for them is no good, and did not become so within 3 s.
    """
    options = login_options(user=user, password=password, credentials=credentials, tls_ca=tls_ca)
    client = CarefulClient()
    broker = Broker(client, name=name)
    said: dict[str, float] = {}
    refused_at: float | None = None
    once_connected = False

    async def failed(exc: Exception) -> None:
        nonlocal refused_at
        text, now = str(exc) or type(exc).__name__, asyncio.get_running_loop().time()
        denied = _DENIED.search(text)
        if denied is not None and denied[1].lower() == "publish":
            broker.denied(denied[2])
        about = text
        if denied is not None and denied[2].lower().startswith("_inbox"):
            about = f"{denied[1]} {denied[2].partition('.')[0]}"  # the rest is of its owner's invention
        if now - said.get(about, -math.inf) >= 5:  # it tries ten times a second
            if len(said) >= 1000:
                said.clear()
            said[about] = now
            if denied is not None:
                log.error("broker.denied", operation=denied[1].lower(), subject=denied[2], user=name)
            else:
                log.warning("broker.error", error=text)
        why = None if once_connected else refusal(exc)
        if why is not None:
            refused_at = now if refused_at is None else refused_at
            if now - refused_at >= _REFUSED_FOR_S:
                raise Refused(why) from exc

    async def disconnected() -> None:
        _forget_unsent(client)  # it would be sent after the reconnect, long after it was reported failed
        if not client.is_closed:
            log.warning("broker.disconnected")

    async def reconnected() -> None:
        log.info("broker.reconnected")
        for call in broker.reconnected:
            call()

    async def closed() -> None:
        if not broker.closing:
            on_closed("the connection to the broker was closed for good")

    log.info("broker.connecting")
    try:
        await client.connect(
            servers=[part.strip() for part in url.split(",")],
            name=name,
            inbox_prefix=f"_INBOX_{name}",  # nobody else's rights let him listen there
            connect_timeout=2,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.1,  # type: ignore[arg-type]
            ping_interval=2,
            max_outstanding_pings=2,
            pending_size=-1,
            error_cb=failed,
            disconnected_cb=disconnected,
            reconnected_cb=reconnected,
            closed_cb=closed,
            **options,
        )
    except Refused:
        broker.closing = True
        await client.close()
        raise
    await broker.listen()
    once_connected = True
    log.info("broker.connected")
    return broker
