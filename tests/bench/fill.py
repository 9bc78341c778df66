"""Fills a stream as fast as the broker takes it: many messages in flight, one answer for each thousand of them."""

import asyncio
import itertools
from collections.abc import Iterable
from urllib.parse import urlsplit

_BATCH = 2000
"""Below what a stream keeps waiting for its writes, by the broker's defaults: it refuses what is beyond."""


async def fill(url: str, messages: Iterable[tuple[str, bytes]]) -> None:
    """Publishes (subject, payload) after payload; they are in order, so that the last one's answer is everybody's."""
    at = urlsplit(url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    await reader.readline()  # INFO
    writer.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\nSUB fill.answer 1\r\n')
    rest = iter(messages)
    while batch := list(itertools.islice(rest, _BATCH)):
        lines = [b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(data), data) for subject, data in batch[:-1]]
        subject, data = batch[-1]
        lines.append(b"PUB %b fill.answer %d\r\n%b\r\n" % (subject.encode(), len(data), data))
        writer.write(b"".join(lines))
        await writer.drain()
        while not (said := await reader.readline()).startswith(b"MSG"):
            assert not said.startswith(b"-ERR"), said
            if said.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        answer = await reader.readline()
        assert b'"error"' not in answer, answer
    writer.close()
