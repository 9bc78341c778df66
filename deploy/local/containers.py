"""What the justfile's Docker recipes do: python deploy/local/containers.py TASK [ARG …].

They all go through `compose`, which says what is missing where Docker is. Standard library only, like tasks.py.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tasks import complain, create_user

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "mailflow:local"
INSTALL = """This needs Docker: Docker Desktop, or Docker Engine 25 or newer with its compose plugin
(https://docs.docker.com/engine/install/). Without Docker, `just up` runs MailFlow on this machine."""

ADDRESSES = (
    ("krakend", 8000, "the API, through the gateway", "/v1/users"),
    ("user-svc", 8080, "the API itself", "/v1/users"),
    ("mailpit", 8025, "the mails", ""),
    ("user-svc", 9101, "the breaker", "/circuit-breaker"),
    ("email-svc", 9102, "the rate limit", "/rate-limit"),
    ("grafana", 3000, "dashboards (admin, admin)", ""),
    ("jaeger", 16686, "traces", ""),
    ("prometheus", 9090, "metrics and alerts", ""),
)


def compose(*arguments: str) -> int:
    """`docker compose`, in the project's folder."""
    return _missing() or subprocess.run(["docker", "compose", *arguments], cwd=ROOT, check=False).returncode


def quick_start(*services: str) -> int:
    """Build, start everything (or these services), say where it is, and register somebody."""
    if not services:
        os.environ.setdefault("COMPOSE_PROFILES", "monitoring")
    if status := compose("up", "--build", "--detach", "--wait", *services):
        return status
    found = {(service, port): _published(service, port) for service, port, _, _ in ADDRESSES}
    print()
    for service, port, what, path in ADDRESSES:
        if at := found[service, port]:
            print(f"  {what:<30} http://{at}{path}")
    print("\nThe first user:")
    api = found["krakend", 8000] or found["user-svc", 8080]
    if not api:
        return complain("user-svc does not run: nobody to register with.")
    os.environ["HTTP_PORT"] = api.rpartition(":")[2]
    return create_user()


def clean() -> int:
    """Remove the containers, their data and the image."""
    if status := compose("--profile", "*", "down", "--volumes", "--remove-orphans"):
        return status
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode:
        return 0
    return subprocess.run(["docker", "image", "rm", IMAGE], check=False).returncode


def _published(service: str, port: int) -> str:
    """Where a port of a running service is to be reached; empty if it does not run."""
    command = ["docker", "compose", "--profile", "*", "port", service, str(port)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _missing() -> int:
    """Says what Docker lacks and gives 1; 0 if all is there."""
    if shutil.which("docker") is None:
        return complain(INSTALL)
    for command in (["docker", "compose", "version"], ["docker", "version"]):
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        if asked.returncode:
            said = (asked.stderr or asked.stdout).strip().splitlines()
            return complain(f"`{' '.join(command)}` fails: {said[-1] if said else 'no answer'}\n{INSTALL}")
    return 0


TASKS: dict[str, Callable[..., int]] = {"compose": compose, "quick-start": quick_start, "clean": clean}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TASKS:
        sys.exit(f"usage: containers.py {{{','.join(TASKS)}}} [ARG …]")
    sys.exit(TASKS[sys.argv[1]](*sys.argv[2:]))
