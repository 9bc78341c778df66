"""What every `python -m <service>` does first and last: settings, logs, uvloop, exit status."""

import asyncio
import os
import re
import sys
from collections.abc import Callable, Collection, Coroutine
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import structlog
import uvloop

from contracts.runtime import crash, logs, settings, traces
from contracts.runtime.broker import Broker, connect
from contracts.runtime.lifecycle import PortTaken
from contracts.runtime.login import Refused

log = structlog.get_logger()

BAD_START = 78
"""Exit status of a start that no restart mends (EX_CONFIG of sysexits.h)."""

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=365 * 86_400)]
"""A duration: above 0, at most a year, so that no sum of times overflows."""
Count = Annotated[int, msgspec.Meta(ge=1)]


_PREFIXES = ("NATS_", "LOG_", "STREAM_", "METRICS_", "ADMIN_", "CRASH_")
_OTHERS = (
    *("NATS_PORT", "NATS_MONITORING_PORT", "NATS_STORE_DIR"),  # the local runner's
    *("NATS_USER_SVC_PASSWORD", "NATS_EMAIL_SVC_PASSWORD", "NATS_PROVISIONER_PASSWORD", "NATS_OPERATOR_PASSWORD"),
)


class CommonSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service reads from the environment."""

    nats_url: str = "nats://127.0.0.1:4222"
    nats_user: str | None = None
    nats_password: str | None = None
    nats_creds: str | None = None
    nats_tls_ca: str | None = None
    nats_monitoring_url: str | None = None
    """None: only the monitoring port tells how the broker syncs, so the start warns that it could not check."""
    nats_durability: Literal["always", "interval"] = "always"
    stream_replicas: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    provision: Literal["auto", "verify"] = "auto"
    http_host: str = "127.0.0.1"
    """Where the listeners bind; containers set 0.0.0.0."""
    environment: Literal["development", "production"] = "development"
    """No other word: a misspelt `production` would start with the development key."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["console", "json"] | None = None
    crash_at: str | None = None
    """Where the process is to die (contracts.runtime.crash); for tests."""

    @property
    def production(self) -> bool:
        return self.environment == "production"


_URL = re.compile(r"(?:([a-z]+)://)?(?:[^@/\s]*@)?(\[[0-9a-fA-F:]+\]|[^\s:/@\[\]]+)(?::([0-9]{1,5}))?/?")


def check_urls(config: CommonSettings) -> None:
    """That the broker's addresses can be addresses; without their passwords in what is said.

    Raises:
        SettingsError: one cannot.
    """
    for variable, value, schemes, like in (
        ("NATS_URL", config.nats_url, ("nats", "tls", "ws", "wss"), "nats://host:4222"),
        ("NATS_MONITORING_URL", config.nats_monitoring_url or "", ("http", "https"), "http://host:8222"),
    ):
        for url in filter(None, (part.strip() for part in value.split(","))):
            found = _URL.fullmatch(url)
            good = found and (found[1] or schemes[0]) in schemes and 1 <= int(found[3] or 1) <= 65535
            if not good:
                shown = re.sub(r"[^/@]*@", "…@", url)
                raise settings.SettingsError(f"{variable}={shown!r}: expected {like}, or several with commas between")


class BadStart(Exception):
    """The service cannot start as things are; the text says what to change. No restart mends it."""


S = TypeVar("S", bound=CommonSettings)


def run(
    service: str,
    kind: type[S],
    main: Callable[[S], Coroutine[Any, Any, int]],
    *,
    prefixes: tuple[str, ...] = (),
    known: Collection[str] = (),
    crash_points: Collection[str] = (),
) -> int:
    """Reads the settings, runs `main` on uvloop and returns its exit status; 78 for a start that no restart mends.

    Variables that begin with one of `prefixes` and are neither the service's nor `known` are warned about.
    `crash_points` are those that CRASH_AT may name.
    """
    try:
        config = settings.read(kind, os.environ)
        check_urls(config)
        crash.arm(config.crash_at, crash_points, production=config.production)
    except settings.SettingsError as exc:
        print(f"{service} cannot start:\n{exc}", file=sys.stderr)
        return BAD_START
    logs.configure(service=service, level=config.log_level, form=config.log_format)
    for name in settings.unknown(kind, os.environ, prefixes=(*_PREFIXES, *prefixes), known=(*_OTHERS, *known)):
        log.warning("settings.unknown_variable", variable=name)
    if config.crash_at is not None:
        log.warning("crash.armed", at=config.crash_at)
    try:
        with traces.exporting(service), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main(config))
    except (BadStart, PortTaken, settings.SettingsError) as exc:
        # Not through the log, which would take what looks like an address out of the hint.
        print(f"{service} cannot start:\n{exc}", file=sys.stderr)
        return BAD_START


async def connect_as(service: str, config: CommonSettings, on_closed: Callable[[str], None]) -> Broker:
    """The service's connection to the broker; waits for the broker as long as it takes.

    Raises:
        BadStart: the broker is there, and will not have us or must not be trusted.
    """
    try:
        return await connect(
            name=service,
            url=config.nats_url,
            user=config.nats_user,
            password=config.nats_password,
            credentials=config.nats_creds,
            tls_ca=config.nats_tls_ca,
            on_closed=on_closed,
        )
    except Refused as exc:
        raise BadStart(f"{exc}.\n{_login(config)}") from exc


def _login(config: CommonSettings) -> str:
    """What was tried, without its secrets."""
    where = ", ".join(part.strip().rpartition("@")[2] for part in config.nats_url.split(","))
    if config.nats_creds is not None:
        login = f"NATS_CREDS={config.nats_creds}"
    elif config.nats_user is not None:
        login = f"NATS_USER={config.nats_user}, NATS_PASSWORD {'(hidden)' if config.nats_password else 'not set'}"
    elif "@" in config.nats_url:
        login = "the login in NATS_URL"
    else:
        login = "no login (NATS_USER and NATS_PASSWORD, or NATS_CREDS, give one)"
    ca = f"NATS_TLS_CA={config.nats_tls_ca}" if config.nats_tls_ca is not None else "NATS_TLS_CA not set"
    return f"Tried: {where} with {login}, {ca}."
