"""Whether the broker has on disk what it acknowledges."""

import asyncio
import urllib.error
import urllib.request
from typing import Any, Literal

import msgspec
import structlog

from contracts.runtime.process import BadStart

log = structlog.get_logger()

_MONITORING_WITHIN_S = 5.0


async def check_durability(monitoring_url: str | None, wanted: Literal["always", "interval"]) -> None:
    """Refuses a broker that acknowledges before its disk has the message, where `always` is wanted.

    Only the monitoring port tells; of several (comma-separated) one has to answer. Where none does they are asked again
    for 5 s, for the broker may be starting. Raises BadStart.
    """
    if wanted == "interval":
        return
    if monitoring_url is None:
        log.warning("broker.durability_unchecked", hint="set NATS_MONITORING_URL to have the broker's fsync checked")
        return
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _MONITORING_WITHIN_S
    configs: list[dict[str, Any]] = []
    while not configs:
        silent: OSError | None = None
        for url in monitoring_url.split(","):
            try:
                configs.append(await asyncio.to_thread(_jetstream_config, url.strip()))
            except (urllib.error.HTTPError, ValueError) as exc:
                raise BadStart(f"NATS_MONITORING_URL={url}: cannot ask how the broker syncs: {exc}") from exc
            except OSError as exc:
                silent = exc
                log.warning("broker.monitoring_silent", url=url)
        if not configs:
            if loop.time() > deadline:
                raise BadStart(f"NATS_MONITORING_URL={monitoring_url}: nobody answers: {silent}") from silent
            await asyncio.sleep(0.5)
    if not all(config.get("sync_always") for config in configs):
        raise BadStart(
            "the broker does not fsync what it acknowledges: a power cut would lose accepted registrations. "
            "Set `jetstream { sync_interval: always }` on the broker, or NATS_DURABILITY=interval to accept that."
        )


def _jetstream_config(monitoring_url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{monitoring_url.rstrip('/')}/varz", timeout=5) as answer:  # noqa: S310 - operator's
        config: dict[str, Any] = msgspec.json.decode(answer.read()).get("jetstream", {}).get("config") or {}
    return config
