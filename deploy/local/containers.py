"""What the justfile's Docker recipes do: python deploy/local/containers.py TASK [ARG …].

They all go through `compose`, which says what is missing where Docker is. Standard library only, like tasks.py.
"""

import os
import shutil
import subprocess

from tasks import ROOT, complain, create_user, run

IMAGE = "mailflow:local"
INSTALL = """This needs Docker: Docker Desktop, or Docker Engine 25 or newer with its compose plugin
(https://docs.docker.com/engine/install/). Without Docker, `just up` runs MailFlow on this machine."""

ADDRESSES = (
    ("krakend", 8000, "the API, through the gateway", "/v1/users"),
    ("user-svc", 8080, "the API itself", "/v1/users"),
    ("mailpit", 8025, "the mails", ""),
    ("user-svc", 9101, "the console", ""),
    ("email-svc", 9102, "the rate limit", "/rate-limit"),
    ("grafana", 3000, "dashboards (admin, admin)", ""),
    ("jaeger", 16686, "traces", ""),
    ("prometheus", 9090, "metrics and alerts", ""),
)


def compose(*arguments: str) -> int:
    """`docker compose`, in the project's folder; where Jaeger is, services that it makes anew still send it traces."""
    if status := _missing():
        return status
    if "COMPOSE_PROFILES" not in os.environ and _asked("ps", "--all", "--quiet", "jaeger"):
        os.environ["COMPOSE_PROFILES"] = "monitoring"
    return subprocess.run(["docker", "compose", *arguments], cwd=ROOT, check=False).returncode


def quick_start(*services: str) -> int:
    """Build, start everything (or these services), say where it is, and register somebody."""
    if not services:
        os.environ.setdefault("COMPOSE_PROFILES", "monitoring")
    if status := compose("up", "--build", "--detach", "--wait", *services):
        return status
    found = {(service, port): _asked("port", service, str(port)) for service, port, _, _ in ADDRESSES}
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


def _asked(*arguments: str) -> str:
    """What compose says of the project, profiles included; empty if it fails."""
    command = ["docker", "compose", "--profile", "*", *arguments]
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


if __name__ == "__main__":
    run({"compose": compose, "quick-start": quick_start, "clean": clean})
