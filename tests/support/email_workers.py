"""Many email_svc processes, quickly: forked from one that has imported everything already, and killed as really.

    python -m tests.support.email_workers       forks one for each line of JSON (its environment), and says its pid

They are the whole service. Only its long constants are short here: ack_wait and what goes with it, the patience after
the final dot, the rest between probes of an empty queue. The broker's consumer must be made with the same `ACK_WAIT_S`.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from contracts import streams
from contracts.runtime import pull
from contracts.runtime.process import run
from email_svc import lease, worker
from email_svc.main import main
from email_svc.settings import OTHERS, PREFIXES, Settings
from email_svc.smtp_pool import SmtpPool
from tests.support.processes import ROOT, free_port
from tests.support.waiting import eventually

ACK_WAIT_S = 4
AFTER_DOT_S = 1.5
_LEASE_MARGIN_S = 1.0
_RENEW_EVERY_S = 0.8
_IDLE_S = (0.1, 0.4)
_PR_SET_PDEATHSIG = 1


class EmailWorkers:
    """Context manager; leaving kills all."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "email_workers.log"

    def __enter__(self) -> "EmailWorkers":
        with self.log.open("ab") as log:
            self._mother = subprocess.Popen(
                [sys.executable, "-m", "tests.support.email_workers"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._mother.communicate(timeout=10)  # the end of its input; its children end with it

    def start(self, env: dict[str, str]) -> int:
        """One more; its pid."""
        assert self._mother.stdin is not None
        assert self._mother.stdout is not None
        own = {"LOG_FORMAT": "json", "METRICS_PORT": str(free_port()), "PATH": os.environ["PATH"]}
        self._mother.stdin.write(json.dumps(own | env) + "\n")
        self._mother.stdin.flush()
        return int(self._mother.stdout.readline())

    def send(self, pid: int, number: signal.Signals) -> None:
        os.kill(pid, number)

    async def end(self, pid: int, number: signal.Signals, *, within_s: float = 20.0) -> None:
        """Signals one, and waits until it is gone."""
        self.send(pid, number)
        await eventually(lambda: not _there(pid), within_s=within_s, what=f"end of {pid} by {number.name}")


def _there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _child(env: dict[str, str]) -> int:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.environ.clear()
    os.environ.update(env)
    return run("email_svc", Settings, main, prefixes=PREFIXES, known=OTHERS)


def _forks_on_demand() -> None:
    pull.ACK_WAIT_S = streams.ACK_WAIT_S = ACK_WAIT_S  # type: ignore[attr-defined]
    pull._LEASE_MARGIN_S = _LEASE_MARGIN_S
    lease.RENEW_EVERY_S = _RENEW_EVERY_S
    worker._IDLE_S = _IDLE_S
    SmtpPool.__init__.__kwdefaults__["after_dot_timeout_s"] = AFTER_DOT_S
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            os._exit(_child(json.loads(line)))
        print(pid, flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    _forks_on_demand()
