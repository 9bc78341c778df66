"""The users of the local broker and their passwords: made once, kept in the data directory for its owner's eyes only.

Who talks to the local broker from a recipe, and has no login of his own, is its operator. Standard library only, like
tasks.py.
"""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
USERS = ("user_svc", "email_svc", "provisioner", "operator")
FILE = "nats-passwords.env"
_HOSTS = ("127.0.0.1", "localhost", "::1")


class Unusable(Exception):
    """The settings or this machine do not allow a start; the message says what to change."""


def variable(user: str) -> str:
    """The environment variable of a user's password."""
    return f"NATS_{user.upper()}_PASSWORD"


def data_directory(env: Mapping[str, str]) -> Path:
    """Where the local run keeps what it keeps."""
    return ROOT / (env.get("MAILFLOW_DATA") or ".mailflow")


def passwords(data: Path, env: Mapping[str, str]) -> dict[str, str]:
    """The password of each user: the environment's, else the file's, else a random one that is written there.

    Raises:
        Unusable: one cannot be used, or the file.
    """
    kept = _read(data / FILE)
    known = dict(kept)
    for user in USERS:
        text = env.get(variable(user))
        if text is not None:
            if not text or not text.isprintable():
                raise Unusable(f"{variable(user)} must not be empty, nor hold line breaks or other control characters")
            known[user] = text
        elif user not in known:
            known[user] = kept[user] = secrets.token_hex(16)
    if kept != _read(data / FILE):
        _write(data / FILE, kept)
    return known


def quoted(text: str) -> str:
    """A value as nats-server reads it from its environment: as configuration, where 123 would be a number."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def as_operator(url: str | None, env: Mapping[str, str]) -> dict[str, str]:
    """NATS_URL, and the operator's login where it is the local broker's and there is no other one.

    `url`: None is the local broker.
    """
    port = (env.get("NATS_PORT") or "4222").removeprefix(":")
    if url is None:
        url = f"nats://127.0.0.1:{port}"
    if env.get("NATS_USER") or env.get("NATS_CREDS") or not _is_local(url, port):
        return {"NATS_URL": url}
    password = env.get(variable("operator")) or _read(data_directory(env) / FILE).get("operator")
    if password is None:
        return {"NATS_URL": url}
    return {"NATS_URL": url, "NATS_USER": "operator", "NATS_PASSWORD": password}


def _is_local(url: str, port: str) -> bool:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        return parts.hostname in _HOSTS and str(parts.port or 4222) == port and "@" not in parts.netloc
    except ValueError:
        return False


def _read(file: Path) -> dict[str, str]:
    """By user; nothing if there is no file."""
    names = {variable(user): user for user in USERS}
    try:
        lines = [line.partition("=") for line in file.read_text().splitlines()]
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise Unusable(f"{file} cannot be read: {exc.strerror}") from exc
    return {names[name]: value for name, _, value in lines if name in names and value}


def _write(file: Path, known: Mapping[str, str]) -> None:
    part = file.with_suffix(".part")
    try:
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.writelines(f"{variable(user)}={known[user]}\n" for user in USERS if user in known)
        part.replace(file)
    except OSError as exc:
        raise Unusable(f"{file} cannot be written: {exc.strerror}") from exc
