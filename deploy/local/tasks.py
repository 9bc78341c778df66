"""What the justfile's recipes do when it does not fit into two lines: python deploy/local/tasks.py TASK [ARG …].

Standard library only, so that it also says something useful in a half-installed tree.
"""

import http.client
import json
import os
import secrets
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from passwords import Unusable, as_operator

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
LIMIT_S = 5.0
NATS_CLI = "github.com/nats-io/natscli/nats@v0.5.0"


def port(variable: str, default: int) -> str:
    text = os.environ.get(variable) or str(default)
    digits = text.removeprefix(":")
    if not (digits.isascii() and digits.isdigit() and 1 <= int(digits) <= 65535):
        sys.exit(f"{variable}={text!r} is not a port: 1 to 65535, written as 8080 or :8080")
    return digits


def create_user(email: str = "", name: str = "Ada Lovelace") -> int:
    """Register somebody and print the answer; without an address a fresh one is made up."""
    return _call("API", port("HTTP_PORT", 8080), "/v1/users", _somebody(email, name))


def rpc_create(email: str = "", name: str = "Ada Lovelace") -> int:
    """The same over the bus, with the nats CLI."""
    return nats("request", "--no-templates", "users.create", json.dumps(_somebody(email, name)))


def _somebody(email: str, name: str) -> dict[str, str]:
    return {"email": email or f"ada.{secrets.token_hex(4)}@example.com", "name": name}


def admin(service: str, path: str, body: str = "") -> int:
    """Ask an admin listener, or act there with a JSON body, and print the answer."""
    variable, default = {"user": ("USER_METRICS_PORT", 9101), "email": ("EMAIL_METRICS_PORT", 9102)}[service]
    try:
        asked = json.loads(body) if body else None
    except ValueError:
        return complain(f"not JSON: {body}\nA filter is written like '{{\"code\": 550}}'.")
    return _call(f"{service}_svc", port(variable, default), path, asked)


def _call(what: str, port: str, path: str, body: object = None) -> int:
    asked = request(port, path, body)
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310  an http URL of ours
            print(f"{answer.status} {answer.reason}\n{_readable(answer.read())}")
    except urllib.error.HTTPError as exc:
        print(f"{exc.code} {exc.reason}\n{_readable(exc.read())}")
        return 1
    except (OSError, http.client.HTTPException) as exc:
        return complain(
            f"no {what} at {asked.full_url} ({getattr(exc, 'reason', exc)}). Is it running? `just up` starts it."
        )
    return 0


def request(port: str, path: str, body: object = None) -> urllib.request.Request:
    """A GET, or a POST of a JSON body, as the operator where ADMIN_TOKEN is set."""
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("ADMIN_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.Request(f"http://{HOST}:{port}{path}", data, headers)


def health_check() -> int:
    """One line for each thing that has to be well; 1 when something is not."""
    monitoring = os.environ.get("NATS_MONITORING_URL") or f"http://{HOST}:{port('NATS_MONITORING_PORT', 8222)}"
    checks = {"broker": f"{monitoring.rstrip('/')}/healthz"}
    for service, variable, default in (
        ("user_svc", "USER_METRICS_PORT", 9101),
        ("email_svc", "EMAIL_METRICS_PORT", 9102),
    ):
        for path in ("healthz", "readyz"):
            checks[f"{service} {path}"] = f"http://{HOST}:{port(variable, default)}/{path}"
    answers = {name: _down(url) for name, url in checks.items()}
    for name, reason in answers.items():
        print(f"{'down' if reason else 'ok':<5} {name:<18} {checks[name]}{f'  {reason}' if reason else ''}")
    return 1 if any(answers.values()) else 0


def nats(*arguments: str) -> int:
    """Run the nats CLI against our broker, wherever `go install` has put it."""
    go = Path(os.environ.get("GOPATH") or Path.home() / "go") / "bin"
    places = (str(ROOT / ".tools" / "bin"), os.environ.get("PATH", ""), os.environ.get("GOBIN", ""), str(go))
    cli = shutil.which("nats", path=os.pathsep.join(places))
    if cli is None:
        missing = f"this needs the nats CLI, which is not installed (looked on PATH and in {go}):"
        return complain(f"{missing}\n  just tools, or: go install {NATS_CLI}")
    try:
        login = as_operator(os.environ.get("NATS_URL") or None, os.environ)
    except Unusable as exc:
        return complain(str(exc))
    if login.get("NATS_USER") == "operator":
        arguments = ("--inbox-prefix=_INBOX_operator", *arguments)
    return subprocess.run([cli, *arguments], env=os.environ | login, check=False).returncode


def _down(url: str) -> str:
    """Why the URL does not answer 200; empty when it does."""
    try:
        with urllib.request.urlopen(url, timeout=LIMIT_S):  # noqa: S310  an http URL of ours
            return ""
    except urllib.error.HTTPError as exc:
        return f"{exc.code} {exc.read(200).decode(errors='replace').strip()}"
    except OSError as exc:
        return str(getattr(exc, "reason", exc))


def _readable(body: bytes) -> str:
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:
        return body.decode(errors="replace")


def complain(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


def run(tasks: Mapping[str, Callable[..., int]]) -> NoReturn:
    """Do what the command line names, and end with its status."""
    match sys.argv[1:]:
        case [name, *arguments] if name in tasks:
            sys.exit(tasks[name](*arguments))
    sys.exit(f"usage: {Path(sys.argv[0]).name} {{{','.join(tasks)}}} [ARG …]")


if __name__ == "__main__":
    run(
        {
            "create-user": create_user,
            "rpc-create": rpc_create,
            "admin": admin,
            "health-check": health_check,
            "nats": nats,
        }
    )
