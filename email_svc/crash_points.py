"""Where email_svc can be made to die (CRASH_AT): each point, and what has come about by then and what has not."""

from typing import Final

POINTS: Final = {
    "worker.taken": "a message is in hand; nothing is known of it",
    "worker.probing": "the same under a permit, or alone",
    "delivery.looked_up": "the ledger was asked",
    "delivery.connected": "a connection is there, or is known not to be; no token",
    "delivery.token_taken": "a token is taken; not used",
    "delivery.cleared": "leave, connection and token are there; MAIL is next",
    "delivery.before_dot": "the server waits for the body and its dot",
    "delivery.answered": "the server has answered; nothing is written down: the window of a second copy",
    "delivery.recorded": "what came of it is written down; the queue entry is there",
    "delivery.settled": "the queue entry is settled, or its ack still on its way; a permit is out",
    "ledger.outcome_written": "the outcome is written; the attempts are there, a dead letter is not",
    "ledger.attempts_removed": "the attempts are gone too",
    "ledger.attempts_written": "the attempts so far are written; the message is not given back",
    "ledger.letter_written": "the dead letter is written; the queue entry is there",
    "ledger.quarantined": "a message that cannot be trusted is kept; the queue entry is there",
    "ledger.entry_erased": "the queue entry of an erased user is gone",
    "limiter.before_write": "tokens are chosen; the record does not know",
    "limiter.written": "tokens are in the record; nobody has them",
    "limiter.throttled": "the rate is lowered; the mail that told is not settled",
    "leave.granted": "a permit is granted; no message is in hand",
    "leave.blamed": "a failure is reported; not written down",
    "leave.told": "user_svc has heard what came of a permit",
}
