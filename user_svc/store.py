"""The users as the broker keeps them: bucket USERS, and what is known of their mails.

    POST   -> one write to u.<user_id> that expects none before it: uniqueness, record and outbox entry at once
    resend -> one write to again.<user_id>.<date>-<n>
    erase  -> one write to erase.<user_id>; user_svc.erasure does the rest

The answer to a write may be lost (time-out, connection, another write in flight): then the truth is read back from
the stream's leader until it is known or the time is up.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime

import msgspec
import structlog

from contracts import messages as m
from contracts import subjects as s
from contracts.runtime import crash, traces
from contracts.runtime.broker import ApiError, Broker, Conflict, Stored, Unavailable
from contracts.runtime.process import BadStart
from user_svc.errors import EmailTaken, InvalidRequest, NotFound, TooManyResends, TryLater, Unreadable
from user_svc.users import Address, Ids, nonce, resend_nonces

log = structlog.get_logger()

_TRY_AGAIN_S = 0.05
_RECORD_MAX_BYTES = 16_384
"""None of ours is as large as the request that it was made of may be. The event made of one must fit into a message."""
_MAILS_MAX = 100
"""Of one user that are shown: years of resends, unless somebody asks for three each day."""
_UNREACHABLE = "The message broker does not answer. Repeat the request, with the same Idempotency-Key."


class User(msgspec.Struct, frozen=True):
    """A registered user; `revision` is the sequence of the registration."""

    record: m.UserRegistered
    revision: int


class Mail(msgspec.Struct, frozen=True):
    """One mail that was asked for, and the newest row of the ledger about it (None: not tried yet)."""

    event_id: str
    requested_at: datetime
    row: m.Attempts | m.Outcome | None
    why: m.Why = m.Why.REGISTRATION

    @property
    def status(self) -> str:
        """queued, retrying, or how it ended: sent, dead, expired, erased."""
        if isinstance(self.row, m.Outcome):
            return str(self.row.state)
        return "queued" if self.row is None else "retrying"

    @property
    def attempts(self) -> tuple[m.Attempt, ...]:
        return self.row.history.attempts if self.row is not None else ()


def asked_in(subject: str, data: bytes) -> m.UserRegistered | m.WelcomeAgain:
    """What a key `u` or `again` asks for.

    Raises:
        Unreadable: no version of ours has written it, or it tells of another user than its key.
    """
    kind, user_id = subject.split(".")[2:4]
    codec: m.Codec[m.UserRegistered] | m.Codec[m.WelcomeAgain] = m.USER_REGISTERED if kind == "u" else m.WELCOME_AGAIN
    try:
        record = codec.decode(data)
    except msgspec.DecodeError as exc:
        raise Unreadable(str(exc)) from exc
    if record.user_id != user_id or not s.is_user_id(user_id) or len(data) > _RECORD_MAX_BYTES:
        raise Unreadable("its user is not its key's, or it is too large")
    return record


def user_in(stored: Stored) -> m.UserRegistered:
    """The user whose registration a key `u` holds. Raises `Unreadable`, which the log then knows."""
    try:
        record = asked_in(stored.subject, stored.data)
        assert isinstance(record, m.UserRegistered)
    except Unreadable as exc:
        log.error("user.unreadable", sequence=stored.seq, reason=exc.detail)
        raise Unreadable("The user's record cannot be read: somebody has to look at it. It can be erased.") from exc
    return record


class Store:
    """Reads and writes of one request each. `deadline` is a time of the event loop's clock.

    Every method raises `TryLater` when the broker does not answer in time.
    """

    def __init__(self, broker: Broker, ids: Ids) -> None:
        self._broker = broker
        self._ids = ids

    async def check_key(self) -> None:
        """Keeps the fingerprint of USER_ID_KEY with the bucket, and compares.

        Raises:
            BadStart: the bucket was filled under another key, so the same address would get another id.
        """
        mine = self._ids.fingerprint.encode()
        try:
            await self._broker.store(s.USER_ID_KEY_FINGERPRINT, mine, expect_last=0)
        except Conflict:
            kept = await self._broker.last(s.USERS, s.USER_ID_KEY_FINGERPRINT)
            if kept is None:
                raise Unavailable("another replica is writing the fingerprint just now", sent=False) from None
            if kept.data != mine:
                raise BadStart(
                    "USER_ID_KEY is not the key that the users in this broker were registered with: ids and "
                    "uniqueness would break. Start with that key again."
                ) from None

    async def create(self, address: Address, name: str, key: str | None, deadline: float) -> User:
        """Registers a user with one durable write.

        Args:
            key: the Idempotency-Key, if there was one.

        Raises:
            EmailTaken: somebody else's registration has the address.
            InvalidRequest: the key came with another payload.
            EraseUnderWay: the address is being erased: finish that and call again.
            TryLater: not known to have happened.
        """
        key_hash = None if key is None else self._ids.key_hash(key)
        if key_hash is not None:
            await self._claim(key_hash, self._ids.payload(address.canonical, name), deadline)
        user_id = self._ids.user_id(address.canonical)
        record = m.UserRegistered(
            user_id=user_id,
            email=address.mailbox,
            name=name,
            nonce=key_hash or nonce(),
            created_at=datetime.now(UTC),
        )
        stored = await self._create(s.USERS, s.user_key(user_id), m.USER_REGISTERED.encode(record), deadline)
        if isinstance(stored, int):
            crash.point("registration.written")
            return User(record, stored)
        if await self._erased(user_id, stored.seq, deadline):
            raise EraseUnderWay(user_id)
        try:
            kept = user_in(stored)
        except Unreadable as exc:
            raise EmailTaken from exc
        if kept.nonce != record.nonce:
            raise EmailTaken
        return User(kept, stored.seq)

    async def _claim(self, key_hash: str, payload: str, deadline: float) -> None:
        stored = await self._create(s.IDEMPOTENCY, s.idempotency_key(key_hash), payload.encode(), deadline)
        crash.point("registration.key_claimed")
        if not isinstance(stored, int) and stored.data != payload.encode():
            raise InvalidRequest("The Idempotency-Key was used with another payload.")

    async def _create(self, stream: str, subject: str, data: bytes, deadline: float) -> int | Stored:
        """Stores the first message of a subject: its sequence, or the message that is there instead.

        A write whose answer was lost is simply made again, for it expects none before it: if the first one went
        through after all, what is there is our own, and the caller tells by its nonce.
        """
        loop = asyncio.get_running_loop()
        while (left_s := deadline - loop.time()) > 0:
            try:
                # With its trace, which the relay goes on with, and whoever sends the mail.
                return await self._broker.store(
                    subject, data, expect_last=0, headers=traces.headers(), timeout_s=left_s / 2
                )
            except Conflict:
                # None: it is in flight (clusters), or was deleted just now.
                if (found := await self._last(stream, subject, deadline)) is not None:
                    return found
            except Unavailable as exc:
                if not self._broker.client.is_connected:
                    raise TryLater(_UNREACHABLE) from exc
            except ApiError as exc:
                raise TryLater("The message broker cannot store anything just now.", retry_after_s=5) from exc
            await asyncio.sleep(_TRY_AGAIN_S)
        raise TryLater(_UNREACHABLE)

    async def user(self, user_id: str, deadline: float) -> User:
        """A user by id.

        Raises:
            NotFound: no such user, or erased. Unreadable: there is one, but what.
        """
        stored = await self.record(user_id, deadline)
        return User(user_in(stored), stored.seq)

    def user_id(self, address: Address) -> str:
        """The id that somebody with this address has, whether there is one or not."""
        return self._ids.user_id(address.canonical)

    async def record(self, user_id: str, deadline: float) -> Stored:
        """A user's record, whatever is in it. Raises `NotFound`."""
        stored = await self._last(s.USERS, s.user_key(user_id), deadline)
        if stored is None or await self._erased(user_id, stored.seq, deadline):
            raise NotFound("There is no user with this id.")
        return stored

    async def _erased(self, user_id: str, revision: int, deadline: float) -> bool:
        erase = await self._last(s.USERS, s.erase_key(user_id), deadline)
        return erase is not None and erase.seq > revision

    async def mail(self, user: User, deadline: float) -> Mail:
        """The newest mail that was asked for this user: the last resend or replay, else the registration's."""
        user_id = user.record.user_id
        again = await self._last(s.USERS, s.again_key(user_id, "*"), deadline)
        if again is not None and again.seq > user.revision:
            return await self._again(user_id, again, deadline)
        return await self._first(user, deadline)

    async def mails(self, user: User, deadline: float) -> list[Mail]:
        """The mails that were asked for this user, the newest first: at most the newest 100."""
        user_id = user.record.user_id
        try:
            async with asyncio.timeout_at(deadline):
                names = await self._broker.subjects(s.USERS, s.again_key(user_id, "*"))
        except (Unavailable, ApiError, TimeoutError) as exc:
            raise TryLater(_UNREACHABLE) from exc
        keys = await asyncio.gather(*(self._last(s.USERS, name, deadline) for name in names))
        newer = sorted((k for k in keys if k is not None and k.seq > user.revision), key=lambda k: -k.seq)
        mails = await asyncio.gather(*(self._again(user_id, key, deadline) for key in newer[:_MAILS_MAX]))
        if len(mails) < _MAILS_MAX:
            mails.append(await self._first(user, deadline))
        return mails

    async def _first(self, user: User, deadline: float) -> Mail:
        """The mail of the registration."""
        event = s.event_id(user.record.user_id, user.revision)
        return Mail(event, user.record.created_at, await self._row(event, deadline))

    async def _again(self, user_id: str, key: Stored, deadline: float) -> Mail:
        """The mail that a key `again` asks for; its name says why, whatever is in it."""
        event, name = s.event_id(user_id, key.seq), key.subject.rpartition(".")[2]
        why = m.Why.REPLAY if name.startswith("r") else m.Why.RESEND
        return Mail(event, key.time, await self._row(event, deadline), why)

    async def _row(self, event: str, deadline: float) -> m.Attempts | m.Outcome | None:
        """The newest row of the ledger about an event."""
        stored = await self._last(s.DELIVERIES, s.delivery_rows(event), deadline)
        if stored is None:
            return None
        row, readable = m.ledger_row(stored.subject, stored.data, stored.time)
        if not readable:
            log.error("ledger.unreadable_row", sequence=stored.seq, event_id=event)
        return row

    async def resend(self, user: User, now: datetime, deadline: float) -> str:
        """Asks for another mail and returns its event id.

        Raises:
            TooManyResends: three were asked for today (UTC).
        """
        user_id = user.record.user_id
        mine = m.WelcomeAgain(
            user_id=user_id,
            repeats=s.event_id(user_id, user.revision),
            why=m.Why.RESEND,
            nonce=nonce(),
            asked_at=now,
        )
        for name in resend_nonces(now):
            stored = await self._create(s.USERS, s.again_key(user_id, name), m.WELCOME_AGAIN.encode(mine), deadline)
            if isinstance(stored, int):
                crash.point("resend.written")
                return s.event_id(user_id, stored)
            with contextlib.suppress(msgspec.DecodeError):
                if m.WELCOME_AGAIN.decode(stored.data).nonce == mine.nonce:
                    return s.event_id(user_id, stored.seq)
        raise TooManyResends

    async def page(self, cursor: int, limit: int, deadline: float) -> list[User]:
        """Up to `limit` users with sequences above `cursor`, in the order of registration; without unreadable ones."""
        found: list[User] = []
        try:
            async with asyncio.timeout_at(deadline):
                async for rows in walk(self._broker, pattern=s.USER_KEYS, after=cursor, window=limit + 4):
                    for row in rows:
                        if row.subject.startswith("$KV.USERS.u."):
                            with contextlib.suppress(Unreadable):
                                found.append(User(user_in(row), row.seq))
                    if len(found) >= limit:
                        break
        except (Unavailable, ApiError, TimeoutError) as exc:
            raise TryLater(_UNREACHABLE) from exc
        return found[:limit]

    async def _last(self, stream: str, subject: str, deadline: float) -> Stored | None:
        try:
            return await self._broker.last(stream, subject, timeout_s=deadline - asyncio.get_running_loop().time())
        except (Unavailable, ApiError) as exc:
            raise TryLater(_UNREACHABLE) from exc

    async def ask_erase(self, user_id: str, now: datetime, deadline: float) -> None:
        """Writes the key that asks for the erasure. One that is there already does as well."""
        record = m.EraseUser(user_id=user_id, asked_at=now)
        await self._create(s.USERS, s.erase_key(user_id), m.ERASE_USER.encode(record), deadline)
        crash.point("erasure.asked")


class EraseUnderWay(Exception):
    """The address belongs to a user who is being erased.

    Attributes:
        user_id: whose erasure is to be finished first.
    """

    def __init__(self, user_id: str) -> None:
        super().__init__(user_id)
        self.user_id = user_id


async def living(broker: Broker, user_id: str, *, before: int) -> Stored | None:
    """A user's record, if it was there before that sequence and is not being erased."""
    kept = await broker.last(s.USERS, s.user_key(user_id))
    if kept is None or kept.seq > before:
        return None
    erasing = await broker.last(s.USERS, s.erase_key(user_id))
    return None if erasing is not None and erasing.seq > kept.seq else kept


async def walk(
    broker: Broker, *, stream: str = s.USERS, pattern: str, after: int, window: int = 128
) -> AsyncIterator[list[Stored]]:
    """The rows of a stream with sequences above `after`, in windows of single gets made at once.

    A page costs the same with a million users, where the broker's own batches count all keys first: 4-7 ms against
    300 ms for 100 rows. Only where a whole window is a hole does a leap look for the next row that matches `pattern`.
    Nothing is passed over, though rows are written meanwhile: the leader is asked, and a hole before a row that was
    found is looked at again, for what is older than that row is either there by now or never will be.
    """

    async def look(sequences: Iterable[int]) -> list[Stored]:
        return [row for row in await asyncio.gather(*(broker.at(stream, i) for i in sequences)) if row is not None]

    at = after + 1
    while True:
        rows = await look(range(at, at + window))
        if rows:
            seen = {row.seq for row in rows}
            rows += await look(i for i in range(at, rows[-1].seq) if i not in seen)
            rows.sort(key=lambda row: row.seq)
            yield rows
            at = rows[-1].seq + 1
            continue
        found = await broker.next(stream, at, pattern)
        if found is None:
            return
        at = found.seq
