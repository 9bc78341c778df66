"""What a process has used of its machine, as Linux counts it."""

import os
from pathlib import Path

from tests.support.processes import Process


def peak_mb(process: Process) -> float:
    """The most memory that it ever had, resident."""
    return int(_of(process, "status").partition("VmHWM:")[2].split()[0]) / 1024


def cpu_ms(process: Process) -> float:
    """Its processor time since its start, all threads."""
    user, system = _of(process, "stat").rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) * 1000 / os.sysconf("SC_CLK_TCK")


def _of(process: Process, what: str) -> str:
    assert process.child is not None
    return Path(f"/proc/{process.child.pid}/{what}").read_text()
