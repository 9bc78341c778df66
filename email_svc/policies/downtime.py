"""Simulated downtime: when deliveries are made to fail, on all replicas at the same time.

scheduled: the last `duration` of each `interval` of the broker's clock      on demand: until a time

0            interval - duration     interval
|---- up ----------------|--- down ---|---- up ...
"""

import msgspec


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds; `interval_s` above `duration_s`, both above 0. `enabled` False: never by schedule."""

    enabled: bool
    interval_s: float = 300.0
    duration_s: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.duration_s < self.interval_s:
            raise ValueError(
                f"duration_s={self.duration_s}: expected above 0 and below the interval of {self.interval_s} s"
            )


def down_until(schedule: Schedule, now: float, *, forced_until: float = 0.0, spared_until: float = 0.0) -> float | None:
    """When the downtime that is on at `now` ends; None: it is up. Seconds since 1970 on the broker's clock.

    Args:
        forced_until: down on demand until then. spared_until: the schedule is overruled until then.
    """
    ends = [forced_until] if now < forced_until else []
    if schedule.enabled and now >= spared_until:
        into_s = now % schedule.interval_s
        if into_s >= schedule.interval_s - schedule.duration_s:
            ends.append(now - into_s + schedule.interval_s)
    return max(ends, default=None)


def next_down(schedule: Schedule, now: float) -> float | None:
    """When the next scheduled downtime begins; None: there is none."""
    if not schedule.enabled:
        return None
    begins = now - now % schedule.interval_s + schedule.interval_s - schedule.duration_s
    return begins if begins > now else begins + schedule.interval_s
