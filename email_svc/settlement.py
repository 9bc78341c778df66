"""How a message of the queue is settled: `Done` (ack), `Later` (nak), `Erase` (the entry with its bytes), or None.

The only place that answers the broker. None says nothing: the message is another's by now, or comes again by itself.
"""

import msgspec

from contracts import semconv
from contracts.runtime.pull import Message
from email_svc.ledger import Ledger


class Done(msgspec.Struct, frozen=True):
    """Acked: it ended, now or earlier."""


class Later(msgspec.Struct, frozen=True):
    """Given back, to come again after `delay_s`."""

    delay_s: float


class Erase(msgspec.Struct, frozen=True):
    """Deleted by sequence: acking would leave the address on the disk."""


Settlement = Done | Later | Erase | None


async def settle(message: Message, settlement: Settlement, ledger: Ledger) -> None:
    """Answers the broker. Raises `Unavailable` or `ApiError` when an entry could not be erased."""
    match settlement:
        case Done():
            with semconv.settling("ack"):
                await message.ack()  # may be lost: then it comes again and is known
        case Later(delay_s):
            with semconv.settling("nak"):
                await message.nak(delay_s)  # unsaid if it may be another's by now
        case Erase():
            with semconv.settling("delete"):
                await ledger.erase_entry(message.sequence)
        case None:
            pass
