"""The same job with FastStream on NATS: FastAPI publishes the user, a pull subscriber sends the mail.

    python -m tests.bench.faststream_app front | worker

The user's record is the queue entry as well, so a mail costs one durable write less than MailFlow's. A mail is looked
up in the ledger before, noted there after, and acked last.
"""

import hashlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiosmtplib
import uvicorn
import uvloop
from fastapi import FastAPI, HTTPException
from faststream import AckPolicy, FastStream
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from faststream.nats.annotations import JsClient
from nats.js.api import ConsumerConfig
from nats.js.errors import BadRequestError, NotFoundError
from pydantic import BaseModel, EmailStr, Field

from tests.bench.raw_loop import AT_ONCE, MAIL

STREAMS: dict[str, dict[str, Any]] = {
    "PEER_USERS": {"subjects": ["peer.user.*"], "max_msgs_per_subject": 1, "discard": "new"},
    "PEER_SENT": {"subjects": ["peer.sent.*"], "max_msgs_per_subject": 1},
}
DURABLE = "mail"
_WRONG_LAST_SEQUENCE = 10071

broker = NatsBroker(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"), logger=None)


def _durably() -> dict[str, Any]:
    """Made anew each time, for nats-py writes into the headers."""
    return {"headers": {"Nats-Expected-Last-Subject-Sequence": "0"}, "timeout": 10}


class NewUser(BaseModel):
    email: EmailStr
    name: str = Field(min_length=1, max_length=100)


class Registered(NewUser):
    id: str


@asynccontextmanager
async def _connected(_: FastAPI) -> AsyncIterator[None]:
    await broker.connect()
    yield
    await broker.stop()


front = FastAPI(lifespan=_connected)


@front.post("/v1/users", status_code=201)
async def register(user: NewUser) -> Registered:
    """One durable write: the user, and what is to be sent."""
    user_id = hashlib.sha256(user.email.lower().encode()).hexdigest()[:26]
    try:
        await broker.publish(user, f"peer.user.{user_id}", stream="PEER_USERS", **_durably())
    except BadRequestError as exc:
        if exc.err_code == _WRONG_LAST_SEQUENCE:
            raise HTTPException(409, "taken") from exc
        raise
    return Registered(id=user_id, email=user.email, name=user.name)


_idle: list[aiosmtplib.SMTP] = []


@broker.subscriber(
    "peer.user.*",
    stream=JStream("PEER_USERS", declare=False),
    durable=DURABLE,
    pull_sub=PullSub(batch_size=AT_ONCE, timeout=1),
    config=ConsumerConfig(ack_wait=30, max_ack_pending=20_000),
    max_workers=AT_ONCE,
    ack_policy=AckPolicy.NACK_ON_ERROR,
)
async def deliver(user: NewUser, message: NatsMessage, jetstream: JsClient) -> None:
    """Looked up, sent, noted; acked when this returns."""
    sent = f"peer.sent.{message.raw_message.subject.rpartition('.')[2]}"
    try:
        await jetstream.get_last_msg("PEER_SENT", sent)
        return
    except NotFoundError:
        pass
    if _idle:
        smtp = _idle.pop()
    else:
        smtp = aiosmtplib.SMTP(hostname="127.0.0.1", port=int(os.environ["SMTP_PORT"]))
        await smtp.connect()
    await smtp.sendmail("welcome@mailflow.local", [user.email], MAIL)
    _idle.append(smtp)
    await broker.publish({"state": "sent"}, sent, stream="PEER_SENT", **_durably())


if __name__ == "__main__":
    if sys.argv[1] == "front":
        uvicorn.run(front, port=int(os.environ["HTTP_PORT"]), loop="uvloop", http="httptools", access_log=False)
    else:
        uvloop.run(FastStream(broker).run())
