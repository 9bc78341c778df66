"""What user_svc reads from the environment."""

from contracts.runtime.process import CommonSettings, Count, Port, Positive
from user_svc.breaker import Rules

DEVELOPMENT_KEY = "development-only-user-id-key"  # refused in production
PREFIXES = (
    "CIRCUIT_BREAKER_",
    "CLIENT_EMAIL_SERVICE_",
    "HTTP_",
    "RECONCILE_",
    "USER_",
    "QUEUE_MAX_",
)
OTHERS = ("QUEUE_MAX_RETRIES", "USER_METRICS_PORT")
"""The other service's and the runner's variables that begin like ours."""


class Settings(CommonSettings, frozen=True, kw_only=True):
    """Defaults are the ones of the README."""

    http_port: Port = 8080
    metrics_port: Port = 9101
    http_max_in_flight: Count = 1000
    http_request_timeout_s: Positive = 2.0
    """Of one request, reading its body included; the gateway's is longer, so that our 503 comes first."""
    client_email_service_timeout_s: Positive = 2.0
    client_email_service_retry_attempts: Count = 5
    client_email_service_retry_delay_s: Positive = 0.1
    circuit_breaker_failure_threshold: Count = 5
    circuit_breaker_success_threshold: Count = 2
    circuit_breaker_timeout_s: Positive = 30.0
    circuit_breaker_half_open_requests: Count = 3
    queue_max_size: Count = 100_000
    email_deadline_s: Positive = 86_400.0
    user_id_key: str = DEVELOPMENT_KEY
    admin_token: str | None = None
    jaeger_url: str | None = None
    """Where a browser finds traces."""
    reconcile_after_s: Positive = 60.0
    reconcile_interval_s: Positive = 86_400.0

    @property
    def breaker_rules(self) -> Rules:
        return Rules(
            failure_threshold=self.circuit_breaker_failure_threshold,
            success_threshold=self.circuit_breaker_success_threshold,
            open_s=self.circuit_breaker_timeout_s,
            half_open_permits=self.circuit_breaker_half_open_requests,
        )

    def __post_init__(self) -> None:
        if self.jaeger_url is not None and not self.jaeger_url.startswith(("http://", "https://")):
            raise ValueError(f"JAEGER_URL: expected http://… or https://…, not {self.jaeger_url!r}")
        if self.production:
            if self.user_id_key == DEVELOPMENT_KEY:
                raise ValueError("USER_ID_KEY: required when ENVIRONMENT=production")
            if len(self.user_id_key) < 16:
                raise ValueError("USER_ID_KEY: expected 16 characters or more: it must never change, nor be guessed")
            if self.admin_token is None:
                raise ValueError("ADMIN_TOKEN: required when ENVIRONMENT=production")
