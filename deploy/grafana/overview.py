"""The dashboard `overview`. Does sign-up work, does mail flow, and if not, where is it held."""

from typing import Any

from panels import GREEN, RED, YELLOW, dashboard, figure, graph, quantiles, rate, row, target, timeline

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
