"""What recipes do to this tree rather than to a running system: python deploy/local/workshop.py TASK [ARG …].

Standard library only, so that it also says something useful in a half-installed tree.
"""

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from tasks import NATS_CLI, ROOT, complain, run

TOOLS = ROOT / ".tools" / "bin"
SERVICES = {"user": "user_svc", "email": "email_svc"}
SIDE_BY_SIDE = {"unit", "property", "gateway", "browser"}
"""Folders of tests that leave each other time enough, so that a worker a processor runs them in half of it."""
CACHES = (".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".coverage", "htmlcov", "dist")
EXTRAS = {
    "docker": "https://docs.docker.com/engine/install/ (with the compose plugin)",
    "krakend": "https://www.krakend.io/docs/overview/installing/, or Docker",
    "chromium": "apt-get install chromium, for tests/browser",
    "promtool": "apt-get install prometheus, or https://prometheus.io/download/",
}


def build(service: str = "") -> int:
    """Build the wheel and check that the services, or the named one, load from it alone, outside of this tree."""
    wanted = _services(service)
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    if status := _run("uv", "build", "--quiet", "--out-dir", "dist"):
        return status
    wheel = next((ROOT / "dist").glob("*.whl"))
    for module in wanted:
        loads = f"import {module}.__main__, sys; sys.exit('site-packages' not in {module}.__main__.__file__)"
        isolated = ("uv", "run", "--quiet", "--isolated", "--no-project", "--with", str(wheel), "python", "-c", loads)
        if status := _run(*isolated, cwd=wheel.parent):
            return complain(f"{module} does not load from {wheel.name}") or status
        print(f"{module:<10} loads from dist/{wheel.name}")
    return 0


def test(*arguments: str) -> int:
    """Run all tests, or pytest with the arguments; `user` or `email` first: the tests that name that service."""
    pytest = (sys.executable, "-m", "pytest")
    own_broker_each = "://" not in os.environ.get("MAILFLOW_TEST_NATS", "")
    if not arguments and own_broker_each:
        folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
        alone = sorted(folders - SIDE_BY_SIDE)  # those that measure, or look closely at times
        each_file_to_a_worker = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder")
        first = _run(*pytest, *each_file_to_a_worker, *(f"tests/{name}" for name in sorted(SIDE_BY_SIDE)))
        return _run(*pytest, *(f"tests/{name}" for name in alone)) or first
    selected: list[str] = []
    if arguments and arguments[0] in SERVICES:
        module, arguments = SERVICES[arguments[0]], arguments[1:]
        files = sorted((ROOT / "tests").rglob("test_*.py"))
        selected = [str(path.relative_to(ROOT)) for path in files if module in path.read_text()]
    return _run(*pytest, *selected, *arguments)


def tools() -> int:
    """Install what recipes need beyond Python, where Go is there to do it; say where the rest comes from."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        return complain(f"this needs Go (https://go.dev/dl/); without it: any way to get {NATS_CLI}")
    TOOLS.mkdir(parents=True, exist_ok=True)
    os.environ["GOBIN"] = str(TOOLS)
    if status := _run(go, "install", NATS_CLI):
        return status
    print(f"{'nats':<10} installed in {TOOLS.relative_to(ROOT)}")
    for tool, source in EXTRAS.items():
        print(f"{tool:<10} {shutil.which(tool) or f'not installed: {source}'}")
    return 0


def versions() -> int:
    """What is installed, one line each."""
    print(f"{'python':<12} {platform.python_version()}")
    for tool in ("uv", "just", "nats-server", "nats", "docker"):
        places = (Path(sys.executable).parent, TOOLS)
        path = next((str(place / tool) for place in places if (place / tool).exists()), shutil.which(tool))
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False) if path else None
        print(f"{tool:<12} {answer.stdout.strip() if answer else 'not installed'}")
    for package in ("nats-py", "fastapi", "uvicorn", "aiosmtplib", "opentelemetry-sdk"):
        print(f"{package:<12} {metadata.version(package)}")
    return 0


def clean() -> int:
    """Remove the local run's data and all caches, unless a local run is using them."""
    data = ROOT / ".mailflow"
    if data.exists():
        descriptor = os.open(data, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return complain("MailFlow is running on this data; stop `just up` first")
        finally:
            os.close(descriptor)
    caches = (path for path in ROOT.rglob("__pycache__") if ".venv" not in path.parts)
    return _remove([data, *(ROOT / name for name in CACHES), *caches])


def clean_tools() -> int:
    """Remove what `just tools` installed."""
    return _remove([TOOLS.parent])


def clean_all() -> int:
    """Remove everything that this tree did not come with: data, caches, tools, and the virtual environment last."""
    return clean() or clean_tools() or _remove([ROOT / ".venv"])


def _remove(doomed: Iterable[Path]) -> int:
    for path in filter(Path.exists, doomed):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        print(f"removed {path.relative_to(ROOT)}")
    return 0


def _services(name: str) -> list[str]:
    if name and name not in SERVICES:
        sys.exit(f"no service {name!r}: {' or '.join(SERVICES)}")
    return [SERVICES[name]] if name else list(SERVICES.values())


def _run(*command: str, cwd: Path = ROOT) -> int:
    return subprocess.run(command, cwd=cwd, check=False).returncode


if __name__ == "__main__":
    run(
        {
            "build": build,
            "test": test,
            "tools": tools,
            "versions": versions,
            "clean": clean,
            "clean-tools": clean_tools,
            "clean-all": clean_all,
        }
    )
