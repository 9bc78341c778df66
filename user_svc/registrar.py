"""Registering a user, reading one, and what is done to one: what REST, the bus and the admin API offer, with one set
of rules for all.

    bytes -> NewUser -> address, name, key -> one write -> UserView

How a request arrives and how its answer travels is not known here. Whatever is wrong is a `Problem`.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import msgspec

from contracts import subjects as s
from contracts.runtime.broker import ApiError, Broker, Unavailable
from contracts.runtime.logs import without_addresses
from user_svc import api, users
from user_svc.erasure import erase
from user_svc.errors import BodyTooLarge, InvalidRequest, NotFound, TooManyResends, TryLater
from user_svc.settings import Settings
from user_svc.store import EraseUnderWay, Mail, Store, User

T = TypeVar("T")

_NEW_USER = msgspec.json.Decoder(api.NewUser)


class Registrar:
    """Every method raises `TryLater` when the broker does not answer before `until`, a time of the loop's clock."""

    def __init__(self, store: Store, broker: Broker, settings: Settings) -> None:
        self._store = store
        self._broker = broker
        self._request_timeout_s = settings.http_request_timeout_s
        self._email_deadline_s = settings.email_deadline_s

    def deadline(self) -> float:
        """When a request that begins now must have its answer."""
        return asyncio.get_running_loop().time() + self._request_timeout_s

    async def register(self, body: bytes | bytearray, key: str | None, until: float) -> api.UserView:
        """Registers whom the JSON body names.

        Args:
            key: the Idempotency-Key header as it came, if there was one.

        Raises:
            EmailTaken, InvalidRequest, BodyTooLarge.
        """
        new = decoded(_NEW_USER, body)
        problems: dict[str, str] = {}
        address, name = users.Address("", ""), ""
        try:
            address = users.address(new.email)
        except InvalidRequest as exc:
            problems |= exc.errors
        try:
            name = users.name(new.name)
        except InvalidRequest as exc:
            problems |= exc.errors
        if key is not None:
            key = users.idempotency_key(key)
        if problems:
            raise InvalidRequest(errors=problems)
        while True:
            try:
                user = await self._store.create(address, name, key, until)
                break
            except EraseUnderWay as exc:
                await self.finish_erase(exc.user_id, until)
        return api.user_view(user, Mail(s.event_id(user.record.user_id, user.revision), user.record.created_at, None))

    async def user(self, user_id: str, until: float) -> User:
        """A user by whatever came as an id.

        Raises:
            NotFound: no such user, or erased.
        """
        return await self._store.user(checked_id(user_id), until)

    async def view(self, user_id: str, until: float) -> api.UserView:
        """The user as shown. Raises `NotFound`."""
        user = await self.user(user_id, until)
        return api.user_view(user, await self._store.mail(user, until))

    async def resend(self, user_id: str, until: float) -> str:
        """Asks for another mail for whoever came as an id and returns its event id.

        Raises:
            NotFound. TooManyResends: says when the next may be asked for.
        """
        now = datetime.now(UTC)
        user = await self.user(user_id, until)
        try:
            return await self._store.resend(user, now, until)
        except TooManyResends as exc:
            midnight = datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)
            exc.headers["Retry-After"] = str(int((midnight - now).total_seconds()) + 1)
            raise

    async def ask_erase(self, user_id: str, until: float) -> None:
        """Asks for the erasure of whoever came as an id: it will be carried out. Raises `NotFound`."""
        checked_id(user_id)
        try:
            await self.finish_erase(user_id, until)  # one that was broken off earlier
        except TryLater as exc:  # that there is one is not known
            raise TryLater("The message broker does not answer. Repeat the request.") from exc
        await self._store.record(user_id, until)
        await self._store.ask_erase(user_id, datetime.now(UTC), until)

    async def finish_erase(self, user_id: str, until: float) -> None:
        """Carries out the erasure that was asked for, if one was."""
        try:
            async with asyncio.timeout_at(until):
                await erase(self._broker, user_id, email_deadline_s=self._email_deadline_s)
        except (Unavailable, ApiError, TimeoutError) as exc:
            raise TryLater("The erasure is under way and will be finished. Repeat the request.") from exc


def checked_id(text: str) -> str:
    """What came as an id of a user, if it looks like one; anything may come, `..` and `*` included. Else `NotFound`."""
    if not s.is_user_id(text):
        raise NotFound("There is no user with this id.")
    return text


def check_size(size_bytes: int) -> None:
    """Raises `BodyTooLarge` for a body of more bytes than any request of ours needs."""
    if size_bytes > api.BODY_MAX_BYTES:
        raise BodyTooLarge(f"At most {api.BODY_MAX_BYTES} bytes.")


def decoded(decoder: msgspec.json.Decoder[T], body: bytes | bytearray) -> T:
    """A body as its shape. Raises `InvalidRequest` or `BodyTooLarge`."""
    check_size(len(body))
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        # It may quote a field's name, which may be anything.
        raise InvalidRequest(f"The body is not as documented: {without_addresses(str(exc))[:200]}") from exc
