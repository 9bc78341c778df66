"""Makes the broker's streams, buckets and durables what contracts.streams says, or checks that they are.

Whoever needs a thing that is missing creates it; only its owner changes what may be changed;
where something that exists contradicts the design, nobody touches it and the start is refused.

    python -m contracts.topology      makes all of it, once (for PROVISION=verify)
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Literal

import msgspec
import structlog

from contracts import subjects as s
from contracts.control import BREAKER, paused_until
from contracts.runtime.broker import NO_CONSUMER, NO_STREAM, ApiError, Broker, Denied, Unavailable
from contracts.runtime.durability import check_durability
from contracts.runtime.lifecycle import Stop
from contracts.runtime.process import BadStart, CommonSettings, Count, connect_as, run
from contracts.streams import Consumer, Service, Stream, topology

log = structlog.get_logger()

_MAKE = "run `python -m contracts.topology` (as the user provisioner, where the broker has users)"
_DELETED_S = 0.5
"""A consumer that is being deleted is not found any more before its files are gone: one that is made in that moment
loses its own with them, can never be paused or let go on again, and is forgotten at the broker's next start."""
_NEW_S = 10.0
"""So young a stream's consumers are missing because nobody made them yet."""
_DAMAGED = (
    " because what the broker kept of it is damaged: stop the broker, remove obs/<consumer> from the stream's folder, "
    "and start it; nothing is lost by that"
)
_PASSING = frozenset({10004, 10005, 10008, 10009, 10023})
"""err_codes of a cluster on its way: incomplete, no peers, temporarily unavailable, no leader, no resources."""


async def provision(
    broker: Broker,
    *,
    service: Service | None,
    mode: Literal["auto", "verify"],
    replicas: int,
    queue_max_size: int | None = None,
) -> None:
    """Makes what `service` (None: all) needs, or only checks it. Idempotent; any number may run it at once.

    In either mode user_svc makes the queue's consumer anew, and email_svc waits for that: else whoever starts while it
    is gone would not, and in the end nobody would be there to make it.

    Raises:
        BadStart: something is missing (verify) or contradicts the design. Unavailable: the broker does not answer.
    """
    for stream in topology(queue_max_size or 100_000):
        if service is None or service in stream.used_by:
            owner = service is None or stream.owner == service
            await _stream(broker, stream, owner=owner, mode=mode, replicas=replicas, service=service)


async def remake_queue_consumer(broker: Broker, queue_max_size: int) -> None:
    """Makes the queue's consumer if it is gone, in either mode of PROVISION: without it no mail moves."""
    for stream in topology(queue_max_size):
        if stream.name == s.WELCOME_EMAILS:
            await _consumer(broker, stream.name, stream.consumers[0], owner=True, mode="auto", of_new=False)


async def until_answered(work: Callable[[], Awaitable[None]]) -> None:
    """Does something at the start of a process, again and again while the broker gives no answer or is not ready.

    Raises:
        BadStart: the broker does not allow it.
    """
    while True:
        try:
            return await work()
        except Denied as exc:
            raise BadStart(f"{exc}: contracts/README.md says who may do what") from exc
        except (Unavailable, ApiError) as exc:
            log.warning("topology.waiting", reason=str(exc))
            await asyncio.sleep(0.5)


async def missing(broker: Broker, service: Service) -> list[str]:
    """What of the topology that a service uses is not there now; `["broker"]` if nobody answers."""
    absent = []
    try:
        for stream in topology():
            if service in stream.used_by:
                if await _info(broker, f"STREAM.INFO.{stream.name}") is None:
                    absent.append(f"stream {stream.name}")
                    continue
                absent += [
                    f"consumer {consumer.name} of {stream.name}"
                    for consumer in stream.consumers
                    if await _info(broker, f"CONSUMER.INFO.{stream.name}.{consumer.name}") is None
                ]
    except (Unavailable, ApiError):  # ApiError: a cluster without a leader
        return ["broker"]
    return absent


async def _info(broker: Broker, call: str) -> dict[str, Any] | None:
    try:
        info: dict[str, Any] = await broker.api(call)
    except ApiError as exc:
        if exc.err_code in (NO_STREAM, NO_CONSUMER):
            return None
        raise
    return info


async def _stream(
    broker: Broker, stream: Stream, *, owner: bool, mode: str, replicas: int, service: Service | None
) -> None:
    info = await _info(broker, f"STREAM.INFO.{stream.name}")
    if info is None:
        if mode == "verify":
            raise BadStart(f"stream {stream.name} is missing: {_MAKE} or set PROVISION=auto")
        config = {"name": stream.name, **stream.fixed, **stream.config, "num_replicas": replicas}
        try:
            info = await broker.api(f"STREAM.CREATE.{stream.name}", config, timeout_s=10)
            log.info("topology.stream_created", stream=stream.name, replicas=replicas)
            if info["state"]["last_seq"]:
                # What was there is back, but not known after the next restart: its description is damaged on the
                # broker's disk, where only a change writes it anew.
                await broker.api(f"STREAM.UPDATE.{stream.name}", info["config"], timeout_s=10)
        except ApiError as exc:
            info = await _info(broker, f"STREAM.INFO.{stream.name}")  # another service was faster
            if info is None:
                raise _for_good(exc, f"stream {stream.name} cannot be created") from exc
    found = info["config"]
    for name, wanted in stream.fixed.items():
        if _differs(found.get(name), wanted):
            raise BadStart(
                f"stream {stream.name} has {name}={found.get(name)!r}, MailFlow needs {wanted!r}. "
                "Nothing was changed: move what it holds elsewhere, delete it, and start again."
            )
    changes = {name: wanted for name, wanted in stream.config.items() if _differs(found.get(name), wanted)}
    if found["num_replicas"] < replicas:
        changes["num_replicas"] = replicas  # only ever raised
    if changes and owner and mode == "auto":
        await _change(broker, f"STREAM.UPDATE.{stream.name}", {**found, **changes})
        log.info("topology.stream_changed", stream=stream.name, changes=changes)
    for consumer in stream.consumers:
        if consumer.name == s.EMAIL_SVC and mode == "verify" and service is not None:
            await _remade(broker, stream.name, consumer, owner=owner)
        await _consumer(broker, stream.name, consumer, owner=owner, mode=mode, of_new=_age_s(info) < _NEW_S)


async def _remade(broker: Broker, stream: str, consumer: Consumer, *, owner: bool) -> None:
    if await _info(broker, f"CONSUMER.INFO.{stream}.{consumer.name}") is not None:
        return
    if not owner:
        raise Unavailable(f"consumer {consumer.name} of {stream} is missing: user_svc makes it anew", sent=False)
    await _consumer(broker, stream, consumer, owner=True, mode="auto", of_new=False)


async def _consumer(broker: Broker, stream: str, consumer: Consumer, *, owner: bool, mode: str, of_new: bool) -> None:
    """`of_new`: of a stream that was made just now."""
    name = consumer.name
    info = await _info(broker, f"CONSUMER.INFO.{stream}.{name}")
    if info is None and mode == "verify":
        raise BadStart(f"consumer {name} of {stream} is missing: {_MAKE} or set PROVISION=auto")
    if info is None and not of_new:
        await asyncio.sleep(_DELETED_S)
        info = await _info(broker, f"CONSUMER.INFO.{stream}.{name}")  # another was faster
    if info is None:
        config = {"durable_name": name, "name": name, **consumer.config, **await _paused_at_birth(broker, name)}
        call = f"CONSUMER.CREATE.{stream}.{name}"
        if "filter_subject" in config:
            call += f".{config['filter_subject']}"
        try:
            info = await broker.api(call, {"stream_name": stream, "action": "create", "config": config}, timeout_s=10)
        except ApiError as exc:
            info = await _info(broker, f"CONSUMER.INFO.{stream}.{name}")  # another service was faster
            if info is None:
                damaged = "creating store" in exc.description
                raise _for_good(exc, f"consumer {name} of {stream} cannot be created{_DAMAGED * damaged}") from exc
    found = info["config"]
    for key, wanted in consumer.config.items():
        if key not in consumer.changes and key != "pause_until" and _differs(found.get(key), wanted):
            raise BadStart(f"consumer {name} of {stream} has {key}={found.get(key)!r}, MailFlow needs {wanted!r}")
    changes = {key: consumer.config[key] for key in consumer.changes if found.get(key) != consumer.config[key]}
    if changes and owner and mode == "auto":
        config = {key: value for key, value in found.items() if key != "pause_until"} | changes
        await _change(
            broker, f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "action": "update", "config": config}
        )
        log.info("topology.consumer_changed", stream=stream, consumer=name, changes=changes)


async def _paused_at_birth(broker: Broker, consumer: str) -> dict[str, str]:
    """A queue's consumer that is made while the breaker is open must not hand out a single mail."""
    if consumer != s.EMAIL_SVC:
        return {}
    stored = await broker.last(s.CONTROL, s.BREAKER_KEY)
    try:
        until = None if stored is None or not stored.data else paused_until(BREAKER.decode(stored.data))
    except msgspec.DecodeError:
        until = None  # no record of ours: it begins anew, closed
    return {} if until is None else {"pause_until": until.isoformat()}


async def _change(broker: Broker, call: str, body: dict[str, Any]) -> None:
    try:
        await broker.api(call, body, timeout_s=10)
    except ApiError as exc:
        raise _for_good(exc, f"the broker refuses {call}") from exc


def _for_good(exc: ApiError, what: str) -> Exception:
    """A refusal as BadStart, unless it is one that passes: a cluster that has not met yet, or has no leader."""
    if isinstance(exc, Denied):
        return BadStart(f"{what}: {exc}. For that, {_MAKE}, and the services with PROVISION=verify.")
    return exc if exc.err_code in _PASSING else BadStart(f"{what}: {exc}")


def _age_s(info: dict[str, Any]) -> float:
    """Of a stream, by the broker's clock."""
    made, now = (msgspec.convert(info[name], datetime) for name in ("created", "ts"))
    return (now - made).total_seconds()


def _differs(found: Any, wanted: Any) -> bool:
    """The broker leaves out what is false, zero or empty."""
    if isinstance(wanted, dict):
        return any(_differs((found or {}).get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return sorted(found or []) != sorted(wanted)
    return (found or 0) != (wanted or 0)


class TopologySettings(CommonSettings, frozen=True, kw_only=True):
    """Of the one-shot command: where the broker is, how many replicas, how long the queue."""

    queue_max_size: Count = 100_000


async def _main(config: TopologySettings) -> int:
    stop = Stop()

    async def make() -> bool:
        broker = await connect_as("provisioner", config, stop.fail)
        try:
            await check_durability(config.nats_monitoring_url, config.nats_durability)
            await until_answered(
                lambda: provision(
                    broker,
                    service=None,
                    mode=config.provision,
                    replicas=config.stream_replicas,
                    queue_max_size=config.queue_max_size,
                )
            )
        finally:
            await broker.close()
        return True

    if await stop.unless(make()) is None:
        return 1  # told to stop before all was there
    log.info("topology.ready")
    return 0


if __name__ == "__main__":
    sys.exit(run("topology", TopologySettings, _main, known=("ADMIN_TOKEN",)))
