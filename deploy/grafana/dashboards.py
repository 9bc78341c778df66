"""Writes the dashboards: python deploy/grafana/dashboards.py [--check]

    row(title, panel, …)   panels side by side      panel = kind(title, description, unit, target, …)

`dashboards/*.json` is what Grafana reads, and is committed; running this again changes nothing (tests see to it). Plain
dicts of Grafana's classic JSON: a library for it would be another version to pin, and longer than this.
Conventions (tests lint them): each panel says what it shows and in which unit, rates use $__rate_interval, every
selector has job and instance, nothing is editable.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
Panel = dict[str, Any]
Target = dict[str, Any]

GREEN, YELLOW, ORANGE, RED, BLUE = "green", "yellow", "orange", "red", "blue"


# --- the parts -------------------------------------------------------------------------------------------------------


def target(expr: str, legend: str = "__auto", *, exemplars: bool = False, heatmap: bool = False) -> Target:
    """A query. Each bare `name{labels}` or `name[` gets the variables' selectors; see `_selected`."""
    made: Target = {"datasource": SOURCE, "editorMode": "code", "expr": _selected(expr), "legendFormat": legend}
    made["range"] = True
    if exemplars:
        made["exemplar"] = True
    if heatmap:
        made["format"] = "heatmap"
    return made


_OURS = re.compile(
    r"(?<![:\w])((?:user_service|email_service|jetstream|gnatsd|http|process|python)_\w+|up)\b(\{([^}]*)\})?"
)


def _selected(expr: str) -> str:
    """Every scraped metric is narrowed by the variables. Recorded ones (api:…, mail:…) and ALERTS are the fleet's."""

    def narrow(match: re.Match[str]) -> str:
        own = f", {match[3]}" if match[3] else ""
        return f'{match[1]}{{job=~"$job", instance=~"$instance"{own}}}'

    return _OURS.sub(narrow, expr)


def rate(metric: str, by: str = "") -> str:
    """A counter's rate, summed, by labels."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval]))"


def quantile(q: float, metric: str) -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({q}, {rate(metric + '_bucket', 'le')})"


def quantiles(metric: str) -> list[Target]:
    """p50, p95 and p99, the last with the exemplars."""
    return [
        target(quantile(0.5, metric), "p50"),
        target(quantile(0.95, metric), "p95"),
        target(quantile(0.99, metric), "p99", exemplars=True),
    ]


def _panel(kind: str, title: str, description: str, unit: str, targets: tuple[Target, ...], width: int) -> Panel:
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "options": {},
        "targets": [{**t, "refId": chr(ord("A") + i)} for i, t in enumerate(targets)],
        "gridPos": {"w": width, "h": 8, "x": 0, "y": 0},
    }


def graph(
    title: str, description: str, unit: str, *targets: Target, width: int = 8, stacked: bool = False, minimum: int = 0
) -> Panel:
    """Lines over time."""
    made = _panel("timeseries", title, description, unit, targets, width)
    custom: dict[str, Any] = {"fillOpacity": 40 if stacked else 8, "lineWidth": 1, "showPoints": "never"}
    if stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    made["fieldConfig"]["defaults"] |= {"custom": custom, "min": minimum}
    made["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return made


def figure(title: str, description: str, unit: str, query: Target, *steps: tuple[float, str], width: int = 4) -> Panel:
    """One number, green, or of the colour of the highest step that it has reached."""
    made = _panel("stat", title, description, unit, (query,), width)
    thresholds: list[dict[str, Any]] = [{"color": GREEN, "value": None}]
    thresholds += [{"color": color, "value": at} for at, color in steps]
    made["fieldConfig"]["defaults"] |= {"thresholds": {"mode": "absolute", "steps": thresholds}}
    made["options"] = {
        "colorMode": "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "value",
    }
    made["gridPos"]["h"] = 4
    return made


def timeline(title: str, description: str, query: Target, states: dict[int, tuple[str, str]], width: int = 24) -> Panel:
    """Which state when: a number's word and colour."""
    made = _panel("state-timeline", title, description, "none", (query,), width)
    options = {str(n): {"text": text, "color": color, "index": n} for n, (text, color) in states.items()}
    made["fieldConfig"]["defaults"] |= {
        "mappings": [{"type": "value", "options": options}],
        "custom": {"fillOpacity": 80, "lineWidth": 0},
        "color": {"mode": "thresholds"},
    }
    made["options"] = {"mergeValues": True, "showValue": "auto", "rowHeight": 0.8, "legend": {"showLegend": False}}
    made["gridPos"]["h"] = 5
    return made


def heat(title: str, description: str, unit: str, metric: str, width: int = 12) -> Panel:
    """How a histogram's buckets fill over time."""
    query = target(f"sum by (le) (increase({metric}_bucket[$__rate_interval]))", "{{le}}", heatmap=True)
    made = _panel("heatmap", title, description, unit, (query,), width)
    made["options"] = {
        "calculate": False,
        "yAxis": {"unit": unit},
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "cellGap": 1,
        "tooltip": {"mode": "single", "yHistogram": True},
    }
    return made


def row(title: str, *panels: Panel) -> list[Panel]:
    """Panels from left to right, into as many lines of 24 as they need; `y` counts from the row's own top."""
    x = y = height = 0
    for panel in panels:
        place = panel["gridPos"]
        if x + place["w"] > 24:
            x, y, height = 0, y + height, 0
        place["x"], place["y"] = x, y + 1
        x, height = x + place["w"], max(height, place["h"])
    head = {
        "type": "row",
        "title": title,
        "collapsed": False,
        "panels": [],
        "gridPos": {"w": 24, "h": 1, "x": 0, "y": 0},
    }
    return [head, *panels]


def dashboard(uid: str, title: str, description: str, *rows: list[Panel]) -> dict[str, Any]:
    """The whole, with its variables; rows one under the other."""
    panels: list[Panel] = []
    top = 0
    for panels_of_row in rows:
        for panel in panels_of_row:
            panel["gridPos"]["y"] += top
            panels.append({"id": len(panels) + 1, **panel})
        top = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels)
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["mailflow"],
        "editable": False,
        "graphTooltip": 1,
        "links": [
            {"type": "dashboards", "title": "MailFlow", "tags": ["mailflow"], "asDropdown": True, "keepTime": True}
        ],
        "panels": panels,
        "refresh": "30s",
        "schemaVersion": 39,
        "templating": {"list": _variables()},
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [_alerts()]},
    }


def _variables() -> list[dict[str, Any]]:
    def labels(name: str, label: str, query: str) -> dict[str, Any]:
        return {
            "type": "query",
            "name": name,
            "label": label,
            "datasource": SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".+",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        }

    source = {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "hide": 0}
    source["current"] = {"selected": True, "text": "Prometheus", "value": "prometheus"}
    return [
        source,
        labels("job", "Job", "label_values(up, job)"),
        labels("instance", "Instance", 'label_values(up{job=~"$job"}, instance)'),
    ]


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "expr": 'ALERTS{alertstate="firing", severity!="none"}',
        "iconColor": RED,
        "titleFormat": "{{alertname}}",
        "step": "60s",
    }


# --- the dashboards --------------------------------------------------------------------------------------------------

BREAKER = {0: ("closed", GREEN), 1: ("half-open", YELLOW), 2: ("open", RED)}


def overview() -> dict[str, Any]:
    """Does sign-up work, does mail flow, and if not, where is it held."""
    return dashboard(
        "mailflow-overview",
        "MailFlow: overview",
        "Does sign-up work, does mail flow, and if not, where is it held.",
        row(
            "Now",
            figure(
                "Registrations",
                "201s a second.",
                "reqps",
                target(rate('user_service_requests_total{method="POST", route="/v1/users", status="201"}')),
            ),
            figure(
                "Requests that fail",
                "Share of 5xx in five minutes. Promised: 0.1 % over 30 days.",
                "percentunit",
                target("api:errors:ratio_rate5m"),
                (0.001, YELLOW),
                (0.0144, RED),
            ),
            figure(
                "Mails sent",
                "A second, all replicas.",
                "ops",
                target(rate('email_service_outcomes_total{state="sent"}')),
            ),
            figure(
                "Longest wait",
                "Age of the oldest mail that was not tried yet: what a user feels.",
                "s",
                target("max(user_service_queue_waiting_age_seconds)"),
                (60, YELLOW),
                (600, RED),
            ),
            figure(
                "Ledger gap",
                "Registrations that are nowhere. Negative for a moment is normal; positive for minutes is not.",
                "none",
                target("min(user_service_ledger_gap)"),
                (1, RED),
            ),
            figure(
                "Alerts",
                "Firing now, Watchdog aside.",
                "none",
                target('count(ALERTS{alertstate="firing", severity!="none"}) or vector(0)'),
                (1, RED),
            ),
            timeline(
                "Circuit breaker",
                "Open: the queue is paused on the broker and no mail is sent; sign-up goes on.",
                target("max(user_service_circuit_breaker_state)", "breaker"),
                BREAKER,
            ),
        ),
        row(
            "API: rate, errors, duration",
            graph(
                "Requests by route",
                "Answered a second.",
                "reqps",
                target(rate("user_service_requests_total", "method, route"), "{{method}} {{route}}"),
            ),
            graph(
                "Answers by status",
                "A second. 5xx is ours, 4xx the client's.",
                "reqps",
                target(rate("user_service_requests_total", "status"), "{{status}}"),
                stacked=True,
            ),
            graph(
                "Duration of requests",
                "From the first byte to the last of the answer; the dots lead to traces.",
                "s",
                *quantiles("user_service_request_duration_seconds"),
            ),
            graph(
                "Error budget: how fast it burns",
                "1 uses it up in 30 days. Pages: 14.4 over an hour, 6 over six hours.",
                "none",
                target("api:errors:ratio_rate5m / 0.001", "5 m"),
                target("api:errors:ratio_rate1h / 0.001", "1 h"),
                target("api:errors:ratio_rate6h / 0.001", "6 h"),
                target("api:errors:ratio_rate3d / 0.001", "3 d"),
            ),
            graph(
                "Under way, and refused",
                "Beyond HTTP_MAX_IN_FLIGHT a request is refused before it costs memory.",
                "none",
                target("sum(user_service_requests_in_flight)", "under way"),
                target(rate("user_service_requests_refused_total"), "refused a second"),
            ),
            graph(
                "Gateway: answers by route",
                "What KrakenD answered a second, its own refusals included. No data without the gateway.",
                "reqps",
                target(
                    rate("http_server_request_duration_seconds_count", "http_route, http_response_status_code"),
                    "{{http_route}} {{http_response_status_code}}",
                ),
            ),
        ),
        row(
            "Queue",
            graph(
                "Where mails wait",
                "Outbox: not in the queue yet. Handed out: being sent, or waiting for a retry.",
                "none",
                target("max(user_service_outbox_pending)", "outbox"),
                target("max(user_service_queue_size)", "queue"),
                target("max(user_service_queue_processing)", "of it handed out"),
                target("max(user_service_queue_redelivered)", "of it handed out before"),
            ),
            graph(
                "For how long",
                "A mail that is retried grows old without anything being wrong; one that was not tried does not.",
                "s",
                target("max(user_service_outbox_oldest_age_seconds)", "in the outbox"),
                target("max(user_service_queue_waiting_age_seconds)", "not tried yet"),
                target("max(user_service_queue_oldest_age_seconds)", "in the queue at all"),
            ),
            graph(
                "Relay",
                "From the outbox into the queue, a second; a full queue pushes back here.",
                "ops",
                target(rate("user_service_queue_total"), "relayed"),
                target(rate("user_service_queue_deduplicated_total"), "queued already"),
                target(rate("user_service_relay_queue_full_total"), "queue full"),
                target(rate("user_service_relay_given_back_total"), "given back"),
                target(rate("user_service_relay_undecodable_total"), "undecodable"),
            ),
        ),
        row(
            "Breaker, limit, verdicts",
            graph(
                "What the breaker hears",
                "Reports a second, as each replica hears all of them.",
                "ops",
                target("max(rate(user_service_circuit_breaker_successes_total[$__rate_interval]))", "path works"),
                target("max(rate(user_service_circuit_breaker_failures_total[$__rate_interval]))", "path failed"),
                target("max(user_service_circuit_breaker_half_open_requests)", "permits of this round"),
                target("max(user_service_circuit_breaker_surge)", "policy surge"),
            ),
            graph(
                "Changes of the breaker",
                "By the new state, within the interval.",
                "none",
                target(
                    "max by (state) (increase(user_service_circuit_breaker_transitions_total[$__rate_interval]))",
                    "{{state}}",
                ),
            ),
            graph(
                "Verdicts",
                "Attempts a second, by what came of them.",
                "ops",
                target(rate("email_service_requests_total", "verdict"), "{{verdict}}"),
                stacked=True,
            ),
            graph(
                "Rate limit",
                "The fleet's. Without a limit there is no line.",
                "ops",
                target("min(email_service_rate_limit_per_second)", "allowed a second"),
                target(rate("email_service_tokens_total"), "tokens taken a second"),
                target("min(email_service_rate_limit_tokens)", "tokens there are"),
            ),
            graph(
                "Throttling",
                "The share of our rate that the mail server's complaints leave us.",
                "percentunit",
                target("min(email_service_rate_limit_factor)", "share"),
            ),
            graph(
                "Simulated downtime",
                "1 while it is on, by schedule or on demand.",
                "none",
                target("max(email_service_downtime)", "downtime"),
            ),
        ),
        row(
            "Ledger",
            graph(
                "Where events are",
                "By the broker's counters; live is the sum of the others.",
                "none",
                target("max by (place) (user_service_ledger_events)", "{{place}}"),
                width=12,
            ),
            graph(
                "Dead letters that are open",
                "What needs a person.",
                "none",
                target("max by (state) (user_service_dead_letters)", "{{state}}"),
                width=6,
            ),
            graph(
                "Put right",
                "Since the processes started: replays asked for, and lost events that the reconciler published again.",
                "none",
                target("sum(increase(user_service_replayed_total[$__range]))", "replayed"),
                target("sum(increase(user_service_reconciled_total[$__range]))", "reconciled"),
                width=6,
            ),
        ),
        row(
            "Processes",
            graph(
                "Replicas that answer",
                "By service.",
                "none",
                target("sum by (job) (up)", "{{job}}"),
            ),
            graph(
                "CPU",
                "Cores used.",
                "none",
                target(
                    "sum by (job, instance) (rate(process_cpu_seconds_total[$__rate_interval]))", "{{job}} {{instance}}"
                ),
            ),
            graph(
                "Memory",
                "Resident.",
                "bytes",
                target("sum by (job, instance) (process_resident_memory_bytes)", "{{job}} {{instance}}"),
            ),
            graph(
                "Versions",
                "Replicas by the version that they run.",
                "none",
                target("count by (version) (user_service_build_info)", "user_svc {{version}}"),
                target("count by (version) (email_service_build_info)", "email_svc {{version}}"),
            ),
            graph(
                "Age of the figures",
                "How long ago each user_svc has read queue, outbox and ledger.",
                "s",
                target("time() - min by (instance) (user_service_books_read_timestamp_seconds)", "{{instance}}"),
            ),
        ),
    )


def delivery() -> dict[str, Any]:
    """What happens between the queue and the mail server."""
    return dashboard(
        "mailflow-delivery",
        "MailFlow: delivery",
        "What happens between the queue and the mail server.",
        row(
            "Mails",
            graph(
                "From registration to mail",
                "What a user waits. Retries included, so one greylisted mail takes minutes.",
                "s",
                *quantiles("email_service_time_to_send_seconds"),
            ),
            graph(
                "Mails that ended",
                "A second, by how.",
                "ops",
                target(rate("email_service_outcomes_total", "state"), "{{state}}"),
                stacked=True,
            ),
            graph(
                "Share of attempts that failed",
                "By verdict. Of those of the path the mail knows nothing: its budget is untouched.",
                "percentunit",
                target(
                    rate("email_service_errors_total", "verdict") + " / ignoring(verdict) group_left () "
                    f"({rate('email_service_requests_total')} > 0)",
                    "{{verdict}}",
                ),
            ),
        ),
        row(
            "Attempts",
            heat(
                "Duration of attempts",
                "From MAIL to the last reply. A second band far above the first is a server that stalls.",
                "s",
                "email_service_request_duration_seconds",
            ),
            graph(
                "Duration of attempts",
                "The dots lead to traces.",
                "s",
                *quantiles("email_service_request_duration_seconds"),
                width=12,
            ),
            graph(
                "Answers of the mail server",
                "Attempts a second, by where they ended and with which code or fault.",
                "ops",
                target(rate("email_service_smtp_answers_total", "phase, answer"), "{{phase}} {{answer}}"),
                width=12,
                stacked=True,
            ),
            graph(
                "Verdicts",
                "Attempts a second, by what came of them.",
                "ops",
                target(rate("email_service_requests_total", "verdict"), "{{verdict}}"),
                width=12,
                stacked=True,
            ),
        ),
        row(
            "Workers",
            graph(
                "In hand",
                "Messages that are being handled.",
                "none",
                target("sum by (instance) (email_service_messages_in_hand)", "{{instance}}"),
            ),
            graph(
                "SMTP connections",
                "All replicas.",
                "none",
                target("sum by (state) (email_service_smtp_connections)", "{{state}}"),
                stacked=True,
            ),
            graph(
                "Connected to the broker",
                "1 for each replica that is.",
                "none",
                target("sum by (instance) (email_service_broker_connected)", "email_svc {{instance}}"),
                target("sum by (instance) (user_service_broker_connected)", "user_svc {{instance}}"),
            ),
        ),
        row(
            "Rate limit",
            graph(
                "Wait for a token",
                "Of messages in hand: how much the limit holds back.",
                "s",
                *quantiles("email_service_token_wait_seconds"),
            ),
            graph(
                "Tokens",
                "A second. A void one came too late to be used, and is lost.",
                "ops",
                target(rate("email_service_tokens_total"), "taken"),
                target(rate("email_service_tokens_void_total"), "void"),
                target(rate("email_service_throttled_total"), "slowed down"),
            ),
            graph(
                "Waiting for a token",
                "Mails, by worker.",
                "none",
                target("sum by (instance) (email_service_rate_limit_waiting)", "{{instance}}"),
            ),
        ),
        row(
            "What should be rare",
            graph(
                "Unknown outcomes and lost leases",
                "Within the interval. Unknown: the final dot was not answered, so the mail may go out twice.",
                "none",
                target("sum(increase(email_service_unknown_outcomes_total[$__rate_interval]))", "unknown outcomes"),
                target("sum(increase(email_service_lease_lost_total[$__rate_interval]))", "leases lost before the dot"),
            ),
            graph(
                "Known as done",
                "Deliveries of the queue within the interval that the ledger knew: what a crash repeats.",
                "none",
                target("sum by (state) (increase(email_service_deduplicated_total[$__rate_interval]))", "{{state}}"),
            ),
            graph(
                "Quarantined, and alone",
                "Messages that were no event of ours; times a worker went on without user_svc.",
                "none",
                target("sum(increase(email_service_quarantined_total[$__rate_interval]))", "quarantined"),
                target("sum(increase(email_service_alone_total[$__rate_interval]))", "alone"),
            ),
        ),
    )


def broker() -> dict[str, Any]:
    """What the broker says of itself, by prometheus-nats-exporter (job nats)."""

    def by_consumer(metric: str) -> Target:
        expr = f'max by (stream_name, consumer_name) ({metric}{{consumer_name!~"count-.*"}})'
        return target(expr, "{{stream_name}} {{consumer_name}}")

    return dashboard(
        "mailflow-broker",
        "MailFlow: broker",
        "What the broker says of itself, by prometheus-nats-exporter (job nats).",
        row(
            "Server",
            graph(
                "Connections",
                "Clients that are connected.",
                "none",
                target("sum by (server_id) (gnatsd_varz_connections)", "{{server_id}}"),
            ),
            graph(
                "Messages",
                "In and out, a second.",
                "ops",
                target(rate("gnatsd_varz_in_msgs"), "in"),
                target(rate("gnatsd_varz_out_msgs"), "out"),
            ),
            graph(
                "Bytes",
                "In and out, a second.",
                "Bps",
                target(rate("gnatsd_varz_in_bytes"), "in"),
                target(rate("gnatsd_varz_out_bytes"), "out"),
            ),
            graph(
                "CPU",
                "Percent of a core.",
                "percent",
                target("sum by (server_id) (gnatsd_varz_cpu)", "{{server_id}}"),
            ),
            graph(
                "Memory",
                "Resident. DELIVERIES takes 0.3 to 0.6 GB a million events.",
                "bytes",
                target("sum by (server_id) (gnatsd_varz_mem)", "{{server_id}}"),
            ),
            graph(
                "Slow consumers",
                "Clients that the server gave up on. Should be none.",
                "none",
                target("sum by (server_id) (gnatsd_varz_slow_consumers)", "{{server_id}}"),
            ),
        ),
        row(
            "JetStream",
            graph(
                "Messages by stream",
                "WELCOME_EMAILS is the queue; USERS and DELIVERIES grow with the users.",
                "none",
                target("max by (stream_name) (jetstream_stream_total_messages)", "{{stream_name}}"),
            ),
            graph(
                "Bytes by stream",
                "On disk.",
                "bytes",
                target("max by (stream_name) (jetstream_stream_total_bytes)", "{{stream_name}}"),
            ),
            graph(
                "Store",
                "What is used, and what there is: when it is full the broker refuses every write.",
                "bytes",
                target("max by (server_name) (jetstream_server_total_message_bytes)", "used {{server_name}}"),
                target("max by (server_name) (jetstream_server_max_storage)", "there is {{server_name}}"),
            ),
            graph(
                "Not handed out",
                "By consumer. The count-… ones are counters that nobody pulls: theirs is the count itself.",
                "none",
                by_consumer("jetstream_consumer_num_pending"),
            ),
            graph(
                "Handed out, not acknowledged",
                "By consumer; mails that wait for a retry included.",
                "none",
                by_consumer("jetstream_consumer_num_ack_pending"),
            ),
            graph(
                "Pulls that wait",
                "0 at email-svc: no worker is asking for mails.",
                "none",
                by_consumer("jetstream_consumer_num_waiting"),
            ),
        ),
    )


def rendered() -> dict[str, str]:
    """File name and content of each dashboard."""
    made = {"overview": overview(), "delivery": delivery(), "broker": broker()}
    return {f"{name}.json": json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in made.items()}


def main(arguments: list[str]) -> int:
    """Writes them, or with --check only says which are not as they should be (1)."""
    stale = [
        name
        for name, text in rendered().items()
        if not (OUT / name).exists() or (OUT / name).read_text(encoding="utf-8") != text
    ]
    for name in stale:
        if "--check" in arguments:
            print(f"{name} is not what dashboards.py makes: run `just dashboards`")
        else:
            OUT.mkdir(exist_ok=True)
            (OUT / name).write_text(rendered()[name], encoding="utf-8")
            print(f"wrote {name}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
