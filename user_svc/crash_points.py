"""Where user_svc can be made to die (CRASH_AT): each point, and what has come about by then and what has not."""

from typing import Final

POINTS: Final = {
    "registration.key_claimed": "the Idempotency-Key is taken; nobody is registered",
    "registration.written": "registered; the client has not been told",
    "resend.written": "another mail is asked for; the client has not been told",
    "relay.taken": "an entry of the outbox is in hand; nothing is done",
    "relay.user_read": "the user of a resend or replay is known; nothing is in the queue",
    "relay.key_removed": "a key whose user is gone is deleted; its entry is not acked",
    "relay.done": "what the entry asks for is done; not acked",
    "relay.acked": "the ack is said, and perhaps not on its way",
    "replay.asked": "the mail is asked for again; its dead letter is still there",
    "replay.letter_removed": "the dead letter is gone too; the next one's turn",
    "reconciler.found": "a lost event is known; not published again",
    "reconciler.republished": "published again; the next one's turn",
    "erasure.asked": "the erase key is written; nothing is erased",
    "erasure.listed": "what there is to erase is known",
    "erasure.marker_written": "an outcome is `erased`; the one that it replaces is still there",
    "erasure.marked": "all outcomes are `erased`; everything else is still there",
    "erasure.row_removed": "a queue entry, dead letter or row is gone; others are there",
    "erasure.key_removed": "a key of the user is gone; the erase key is there",
    "erasure.done": "all is gone; nobody has been told",
    "breaker.record_made": "the first record is written; the pause has not been looked at",
    "breaker.opening": "it is to open; the record does not say so",
    "breaker.record_written": "a change is in the record; neither pause nor worker know",
    "breaker.before_pause": "the record says open; the broker does not pause",
    "breaker.paused": "the broker pauses; not looked at again",
    "breaker.before_end": "the record says that mail flows; the broker pauses",
    "breaker.end_set": "the pause is about to end by itself",
}
