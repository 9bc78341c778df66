"""Where answers may go. A message without an inbox to reply to is no request.

The broker does not ask whether the asker may publish on the reply subject that he names: an answer of ours on
`$JS.API.STREAM.PURGE.…` would purge.
"""

from nats.aio.msg import Msg


def has_inbox(raw: Msg) -> bool:
    """Of any user: private prefixes (`_INBOX_email_svc`) begin like the common one."""
    return bool(raw.reply.startswith("_INBOX"))
