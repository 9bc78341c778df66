"""On what a run was made: processor, kernel, versions, how long an fsync takes."""

import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.support.processes import NATS_BINARY

_PACKAGES = ("nats-py", "uvicorn", "uvloop", "fastapi", "faststream", "celery", "redis")
_FSYNCS = 200


def about() -> dict[str, str]:
    """By what it is."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "broker": _version([str(NATS_BINARY), "-v"]),
        "Redis": _version(["redis-server", "--version"]),
        "packages": ", ".join(f"{name} {version}" for name in _PACKAGES if (version := _package(name))),
        "fsync of 4 KB": f"{_fsync_ms():.2f} ms, the median of {_FSYNCS}",
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.machine()


def _version(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return "none"
    said = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return said.partition(" sha=")[0]


def _package(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fsync_ms() -> float:
    took = []
    with tempfile.NamedTemporaryFile(prefix="mailflow-bench-") as file:
        for _ in range(_FSYNCS):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)
