"""What email_svc reads from the environment."""

from typing import Annotated

import msgspec

from contracts.runtime.process import CommonSettings, Count, Port, Positive
from email_svc.decision import Rules
from email_svc.limiter import Limit
from email_svc.policies.downtime import Schedule
from email_svc.policies.limit import Algorithm

PREFIXES = ("SMTP_", "RATE_LIMIT_", "DOWNTIME_", "WORKER_", "MESSAGE_", "EMAIL_", "QUEUE_MAX_")
OTHERS = ("QUEUE_MAX_SIZE", "EMAIL_DEADLINE", "EMAIL_METRICS_PORT")
"""The other service's and the runner's variables that begin like ours."""


class Settings(CommonSettings, frozen=True, kw_only=True):
    """Defaults are the ones of the README."""

    metrics_port: Port = 9102
    admin_token: str | None = None
    smtp_url: str = "smtp://127.0.0.1:1025"
    smtp_timeout_s: Positive = 30.0
    """Of one command; the reply to the final dot has 10 minutes (RFC 5321 §4.5.3.2.6)."""
    email_from: str = "MailFlow <welcome@mailflow.local>"
    email_templates_dir: str | None = None
    rate_limit_rpm: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    """Mails a minute; 0 is no limit."""
    rate_limit_burst: Count = 10
    rate_limit_algorithm: Algorithm = "token_bucket"
    rate_limit_per_day: Count | None = None
    downtime_enabled: bool = False
    downtime_interval_s: Positive = 300.0
    downtime_duration_s: Positive = 30.0
    worker_concurrency: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 16
    queue_max_retries: Annotated[int, msgspec.Meta(ge=0, le=100)] = 3
    message_retry_delays_s: tuple[float, ...] = (60.0, 600.0, 3600.0)

    def __post_init__(self) -> None:
        if self.production and self.admin_token is None:
            raise ValueError("ADMIN_TOKEN: required when ENVIRONMENT=production")
        if min(self.message_retry_delays_s, default=0) <= 0:
            raise ValueError("MESSAGE_RETRY_DELAYS: expected durations above 0, like 1m,10m,1h")

        for variables, made in (("RATE_LIMIT_*", lambda: self.limit), ("DOWNTIME_*", lambda: self.downtime)):
            try:
                made()
            except ValueError as exc:
                raise ValueError(f"{variables}: {exc}") from exc

    @property
    def limit(self) -> Limit:
        return Limit(
            algorithm=self.rate_limit_algorithm,
            rpm=self.rate_limit_rpm,
            burst=self.rate_limit_burst,
            per_day=self.rate_limit_per_day,
        )

    @property
    def downtime(self) -> Schedule:
        return Schedule(
            enabled=self.downtime_enabled, interval_s=self.downtime_interval_s, duration_s=self.downtime_duration_s
        )

    @property
    def rules(self) -> Rules:
        return Rules(retries=self.queue_max_retries, delays_s=self.message_retry_delays_s)
