"""The dashboard `broker`. What the broker says of itself."""

from typing import Any

from panels import Target, dashboard, graph, rate, row, target


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
