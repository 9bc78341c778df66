"""The dashboard `delivery`. What became of the attempts, and how the mail server answers."""

from typing import Any

from panels import dashboard, graph, heat, quantiles, rate, row, target


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
