"""What email_svc tells apart beyond the verdicts.

NotAnEvent      a message of the queue without a trustworthy id: quarantined
(UnusableMail   an event that no mail can be made of: email_svc.message)
"""


class NotAnEvent(Exception):
    """The message is no event of ours."""
