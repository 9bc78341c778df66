"""`just secrets`: writes deploy/.env with random secrets for compose.cluster.yaml, once.

An existing file is left as it is: who changes USER_ID_KEY loses the way to the users that are there.
"""

import os
import secrets
import sys
from pathlib import Path

FILE = Path(__file__).resolve().parent / ".env"
NAMES = (
    "USER_ID_KEY",
    "ADMIN_TOKEN",
    "NATS_PROVISIONER_PASSWORD",
    "NATS_USER_SVC_PASSWORD",
    "NATS_EMAIL_SVC_PASSWORD",
    "NATS_OPERATOR_PASSWORD",
    "NATS_ROUTE_PASSWORD",
)


def main(file: Path = FILE) -> int:
    """Writes the file, readable by its owner only; 0 also if it is there."""
    text = "".join(f"{name}={secrets.token_hex(24)}\n" for name in NAMES)
    text += "# Your mail server; without it the mails go to Mailpit, which only shows them:\n"
    text += "# SMTP_URL=smtp+starttls://user:password@mail.example.com:587\n# EMAIL_FROM=Us <welcome@example.com>\n"
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        print(f"{file} is there already; nothing was changed.")
        return 0
    with os.fdopen(descriptor, "w") as out:
        out.write(text)
    print(f"{file} is written. Keep a copy in a safe place: USER_ID_KEY must never change.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
