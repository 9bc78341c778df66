"""`just monitor-metrics`: the figures of both services that tell how MailFlow is, readably, without Prometheus.

    python deploy/local/figures.py [/metrics of user_svc] [/metrics of email_svc]

Rates need two looks: only totals since the start of each process are here.
"""

import re
import sys
import urllib.request
from collections.abc import Mapping

from tasks import HOST, port

STATES = {0.0: "closed", 1.0: "half-open", 2.0: "open"}

# Heading, then rows: what it says, the metric, and the unit.
FIGURES: dict[str, list[tuple[str, str, str]]] = {
    "API": [
        ("requests", "user_service_requests_total", ""),
        ("answered with a 5xx", "user_service_errors_total", ""),
        ("mean duration", "user_service_request_duration_seconds", "mean"),
        ("under way", "user_service_requests_in_flight", ""),
    ],
    "circuit breaker": [
        ("state", "user_service_circuit_breaker_state", "state"),
        ("path failures heard", "user_service_circuit_breaker_failures_total", ""),
        ("successes heard", "user_service_circuit_breaker_successes_total", ""),
        ("permits of this round", "user_service_circuit_breaker_half_open_requests", ""),
    ],
    "queue": [
        ("events", "user_service_queue_size", ""),
        ("of them handed out", "user_service_queue_processing", ""),
        ("oldest", "user_service_queue_oldest_age_seconds", "s"),
        ("oldest not tried yet", "user_service_queue_waiting_age_seconds", "s"),
        ("relayed so far", "user_service_queue_total", ""),
        ("outbox", "user_service_outbox_pending", ""),
    ],
    "ledger": [
        ("events by place", "user_service_ledger_events", ""),
        ("gap", "user_service_ledger_gap", ""),
        ("open dead letters", "user_service_dead_letters", ""),
    ],
    "mail": [
        ("attempts", "email_service_requests_total", ""),
        ("mean duration", "email_service_request_duration_seconds", "mean"),
        ("mean time to send", "email_service_time_to_send_seconds", "mean"),
        ("ended", "email_service_outcomes_total", ""),
        ("unknown outcomes", "email_service_unknown_outcomes_total", ""),
        ("SMTP connections", "email_service_smtp_connections", ""),
    ],
    "rate limit": [
        ("tokens", "email_service_rate_limit_tokens", ""),
        ("mails a second", "email_service_rate_limit_per_second", ""),
        ("throttled to", "email_service_rate_limit_factor", ""),
        ("waiting for a token", "email_service_rate_limit_waiting", ""),
    ],
}

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Samples = Mapping[str, list[tuple[dict[str, str], float]]]


def parsed(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """The samples of an exposition, by name."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for line in text.splitlines():
        if match := _SAMPLE.match(line):
            name, labels, value = match.groups()
            found.setdefault(name, []).append((dict(_LABEL.findall(labels or "")), float(value)))
    return found


def shown(samples: Samples) -> list[str]:
    """The lines to print. What a service that is down would have shown is a dash."""
    lines = []
    for heading, rows in FIGURES.items():
        lines.append(heading)
        lines += [f"  {label:<22} {_value(samples, name, unit)}" for label, name, unit in rows]
    return lines


def _value(samples: Samples, name: str, unit: str) -> str:
    if unit == "mean":
        count, total = (sum(v for _, v in samples.get(f"{name}_{part}", [])) for part in ("count", "sum"))
        return f"{total / count * 1000:.1f} ms" if count else "-"
    found = samples.get(name, [])
    if not found:
        return "-"
    if unit == "state":
        return STATES[found[0][1]]
    total = sum(value for _, value in found)
    text = f"{total:.10g}{' s' if unit == 's' else ''}"
    parts: dict[str, float] = {}
    for labels, value in found:
        if labels and value:
            key = labels.get("status") or next(iter(labels.values()))
            parts[key] = parts.get(key, 0) + value
    if "live" in parts or len(found) > 1:
        listed = ", ".join(f"{key} {value:.10g}" for key, value in sorted(parts.items()))
        return listed if "live" in parts else f"{text}{f'  ({listed})' if listed else ''}"
    return text


def main(arguments: list[str]) -> int:
    """Prints them; 1 if a service does not answer."""
    urls = arguments or [
        f"http://{HOST}:{port('USER_METRICS_PORT', 9101)}/metrics",
        f"http://{HOST}:{port('EMAIL_METRICS_PORT', 9102)}/metrics",
    ]
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    status = 0
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  an http URL of ours
                samples |= parsed(answer.read().decode())
        except OSError as exc:
            print(f"nobody answers at {url} ({getattr(exc, 'reason', exc)}). `just up` starts it.", file=sys.stderr)
            status = 1
    print("\n".join(shown(samples)))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
