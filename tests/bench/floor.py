"""The floor of a registration: a bare ASGI app on the same server, one durable create on JetStream for each request.

No validation, no framework, no log line, no metrics, no limit: what is left is what cannot be saved. Its outbox, queue
and ledger are served by tests.bench.raw_loop, in a process beside it, with the same number of durable writes.
"""

import asyncio
import hashlib
import os
from typing import Any

import msgspec
import nats
import uvloop

from contracts.runtime.lifecycle import serving

STREAMS: dict[str, dict[str, Any]] = {
    "FLOOR_USERS": {"subjects": ["floor.user.*"], "max_msgs_per_subject": 1, "discard": "new"},
    "FLOOR_QUEUE": {"subjects": ["floor.mail.*"], "retention": "workqueue", "discard": "new"},
    "FLOOR_SENT": {"subjects": ["floor.sent.*"], "max_msgs_per_subject": 1},
}
NONE_BEFORE = {"Nats-Expected-Last-Subject-Sequence": "0"}
_HEADERS = [(b"content-type", b"application/json")]


class NewUser(msgspec.Struct):
    email: str
    name: str


_decode = msgspec.json.Decoder(NewUser).decode
_encode = msgspec.json.Encoder().encode


async def main() -> None:
    client = await nats.connect(os.environ["NATS_URL"])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            part = await receive()
            body += part.get("body", b"")
            if not part.get("more_body"):
                break
        user = _decode(body)
        user_id = hashlib.sha256(user.email.encode()).hexdigest()[:26]
        stored = await client.request(f"floor.user.{user_id}", body, timeout=10, headers=NONE_BEFORE)
        status = 409 if b'"error"' in stored.data else 201
        answer = _encode({"id": user_id, "email": user.email, "name": user.name})
        length = (b"content-length", str(len(answer)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [*_HEADERS, length]})
        await send({"type": "http.response.body", "body": answer})

    async with serving(app, host="127.0.0.1", port=int(os.environ["HTTP_PORT"]), variable="HTTP_PORT"):
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
