"""Crash points: named steps between two calls to the outside, at each of which a process can be made to die.

    crash.point("relay.done")      nothing, but in a process that was started with CRASH_AT=relay.done
    CRASH_AT=relay.done:3          dies there the third time, as by kill -9: nothing is closed, sent or flushed

They are how a test proves that a service may die anywhere. What points a service has is one table of its own, which it
hands to `arm`; production refuses the variable. Unarmed, a point costs one look at a global.
"""

import os
import re
import signal
from collections.abc import Collection

from contracts.runtime.settings import SettingsError

_at: str | None = None
_left = 0


def point(name: str) -> None:
    """Dies here, if that is where this process is to die."""
    if _at is not None:
        _reached(name)


def _reached(name: str) -> None:
    global _left
    if name != _at:
        return
    _left -= 1
    if _left == 0:
        os.write(2, f"died at the crash point {name}\n".encode())  # past every buffer, which go down with us
        os.kill(os.getpid(), signal.SIGKILL)


def arm(where: str | None, points: Collection[str], *, production: bool) -> None:
    """Makes this process die at `where`, a point or `<point>:<n>` for the n-th time (from 1); None: nowhere.

    Raises:
        SettingsError: there is no such point, or this is production.
    """
    global _at, _left
    _at = None
    if where is None:
        return
    if production:
        raise SettingsError("CRASH_AT: not allowed when ENVIRONMENT=production: it kills the process")
    found = re.fullmatch(r"([a-z_.]+)(?::([1-9][0-9]{0,8}))?", where)
    if found is None or found[1] not in points:
        known = "\n".join(f"  {name}" for name in sorted(points)) or "  (none: this process has no crash points)"
        raise SettingsError(f"CRASH_AT={where!r}: expected one of these, or with :n for the n-th time\n{known}")
    _at, _left = found[1], int(found[2] or 1)
