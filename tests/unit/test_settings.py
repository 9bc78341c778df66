"""Settings from the environment: what is accepted, and what is said about what is not."""
# ruff: noqa: RUF001 - characters of other scripts are the point

from typing import Annotated, Literal

import msgspec
import pytest

from contracts.runtime.process import check_urls
from contracts.runtime.settings import SettingsError, duration_s, port, read, unknown, variable_of
from contracts.topology import TopologySettings
from email_svc.settings import Settings as EmailSettings
from user_svc.settings import OTHERS, PREFIXES, Settings


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One field of each kind."""

    wait_s: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    delays_s: tuple[float, ...] = (1.0,)
    http_port: int = 8080
    count: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    rate: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    level: Literal["INFO", "DEBUG"] = "INFO"
    form: Literal["console", "json"] | None = None
    enabled: bool = False
    note: str | None = None
    user_id_key: Annotated[str, msgspec.Meta(min_length=8)] = "long enough"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("100ms", 0.1),
        ("30s", 30.0),
        ("5m", 300.0),
        ("24h", 86_400.0),
        ("7d", 604_800.0),
        ("1.5s", 1.5),
        (" 2s ", 2.0),
        ("0s", 0.0),
    ],
)
def test_durations_are_a_number_with_a_unit(text: str, seconds: float) -> None:
    """`100ms`, `30s`, `5m`, `24h`, `7d`; fractions too."""
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "s", "-1s", "1 s", "1S", "1sec", "1e3s", "٣s", "1m30s", "inf", "nans", ".5s"]
)
def test_other_durations_are_refused(text: str) -> None:
    """No bare number, no sign, no compound, no digits of other scripts."""
    with pytest.raises(ValueError, match="100ms, 30s, 5m or 24h"):
        duration_s(text)


@pytest.mark.parametrize(("text", "number"), [("8080", 8080), (":8080", 8080), (" 1 ", 1), ("65535", 65535)])
def test_ports_may_have_a_colon(text: str, number: int) -> None:
    """`8080` and `:8080` are the same."""
    assert port(text) == number


@pytest.mark.parametrize("text", ["0", "65536", "-1", "80a", "::80", "", ":", "localhost:80", "８０", "9" * 5000])
def test_other_ports_are_refused(text: str) -> None:
    """1 to 65535, in ASCII digits."""
    with pytest.raises(ValueError, match="1 to 65535"):
        port(text)


def test_values_are_read_by_kind() -> None:
    """Each kind of field from its text."""
    found = read(
        Sample,
        {
            "WAIT": "250ms",
            "DELAYS": "1m,10m, 1h",
            "HTTP_PORT": ":9000",
            "COUNT": "5",
            "RATE": "0.5",
            "LEVEL": "DEBUG",
            "FORM": "json",
            "ENABLED": "Yes",
            "NOTE": " a note ",
        },
    )
    assert found == Sample(
        wait_s=0.25,
        delays_s=(60.0, 600.0, 3600.0),
        http_port=9000,
        count=5,
        rate=0.5,
        level="DEBUG",
        form="json",
        enabled=True,
        note="a note",
    )


def test_an_empty_variable_is_an_unset_one() -> None:
    """Compose files pass empty variables for unset ones."""
    assert read(Sample, {"WAIT": "", "COUNT": "", "NOTE": ""}) == Sample()


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("WAIT", "5", "100ms, 30s, 5m or 24h"),
        ("WAIT", "0s", "> 0"),
        ("DELAYS", "1m,,2m", "100ms, 30s, 5m or 24h"),
        ("HTTP_PORT", "http", "1 to 65535"),
        ("COUNT", "many", "int"),
        ("COUNT", "1.5", "int"),
        ("COUNT", "0", ">= 1"),
        ("COUNT", "6", "<= 5"),
        ("RATE", "-1", ">= 0"),
        ("LEVEL", "info", "DEBUG, INFO"),
        ("FORM", "xml", "console, json"),
        ("ENABLED", "perhaps", "true or false"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(variable: str, value: str, allowed: str) -> None:
    """Variable, value and what is allowed, in one line."""
    with pytest.raises(SettingsError) as caught:
        read(Sample, {variable: value})
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{variable}={value!r}: ")
    assert allowed in line


def test_all_bad_values_are_named_at_once() -> None:
    """Nobody wants to mend them one start at a time."""
    with pytest.raises(SettingsError) as caught:
        read(Sample, {"WAIT": "x", "COUNT": "0", "HTTP_PORT": "0"})
    assert [line.partition("=")[0] for line in str(caught.value).splitlines()] == ["WAIT", "HTTP_PORT", "COUNT"]


def test_secrets_are_hidden() -> None:
    """A bad secret is named, its value is not shown."""
    with pytest.raises(SettingsError) as caught:
        read(Sample, {"USER_ID_KEY": "sesame"})
    assert str(caught.value).startswith("USER_ID_KEY=(hidden): ")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("value", ["0", "1001", "two"])
def test_each_service_names_its_own_bad_values(value: str) -> None:
    """The real settings, not only the sample."""
    with pytest.raises(SettingsError, match=rf"^WORKER_CONCURRENCY='{value}': "):
        read(EmailSettings, {"WORKER_CONCURRENCY": value})


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"ENVIRONMENT": "production", "ADMIN_TOKEN": "t"}, "USER_ID_KEY: required"),
        ({"ENVIRONMENT": "production", "USER_ID_KEY": "k" * 32}, "ADMIN_TOKEN: required"),
        ({"ENVIRONMENT": "production", "USER_ID_KEY": "k" * 32, "ADMIN_TOKEN": " \n"}, "ADMIN_TOKEN: required"),
        ({"ENVIRONMENT": "prod"}, "ENVIRONMENT='prod': "),
        ({"LOG_LEVEL": "info"}, "DEBUG, ERROR, INFO, WARNING"),
        ({"PROVISION": "off"}, "auto, verify"),
        ({"NATS_DURABILITY": "never"}, "always, interval"),
        ({"STREAM_REPLICAS": "7"}, "<= 5"),
        ({"QUEUE_MAX_SIZE": "0"}, ">= 1"),
        ({"HTTP_REQUEST_TIMEOUT": "2"}, "100ms, 30s, 5m or 24h"),
        ({"EMAIL_DEADLINE": "9999999999h"}, "EMAIL_DEADLINE="),
    ],
)
def test_user_svc_refuses(environ: dict[str, str], said: str) -> None:
    """Production without secrets, and nonsense."""
    with pytest.raises(SettingsError) as caught:
        read(Settings, environ)
    assert said in str(caught.value)


def test_user_svc_in_production_starts_with_its_secrets() -> None:
    """Both given, it is fine."""
    found = read(Settings, {"ENVIRONMENT": "production", "USER_ID_KEY": "k" * 32, "ADMIN_TOKEN": "t"})
    assert found.production
    assert found.admin_token == "t"


def test_defaults_are_those_of_the_design() -> None:
    """The table of design.md §3."""
    found = read(Settings, {})
    assert (found.http_port, found.metrics_port) == (8080, 9101)
    assert found.nats_url == "nats://127.0.0.1:4222"
    assert found.client_email_service_timeout_s == 2
    assert found.client_email_service_retry_attempts == 5
    assert found.client_email_service_retry_delay_s == pytest.approx(0.1)
    assert found.queue_max_size == 100_000
    assert found.email_deadline_s == 86_400
    assert found.http_max_in_flight == 1000
    assert found.http_request_timeout_s == 2
    assert (found.stream_replicas, found.provision, found.nats_durability) == (1, "auto", "always")
    assert (found.reconcile_after_s, found.reconcile_interval_s) == (60, 86_400)
    assert not found.production


def test_unknown_variables_with_our_prefix_are_found() -> None:
    """`HTTP_PROT` is a misspelling; `HTTP_PROXY`, another service's and what does not begin like ours are not."""
    environ = {
        "HTTP_PROT": "8080",
        "HTTP_PROXY": "http://proxy",
        "QUEUE_MAX_RETRIES": "3",
        "QUEUE_MAX_SIZES": "3",
        "HTTP_PORT": "8080",
        "RECONCILE_AFTER": "1s",
        "RECONCILE_AFTER_S": "1",
        "PATH": "/bin",
    }
    assert unknown(Settings, environ, prefixes=PREFIXES, known=OTHERS) == [
        "HTTP_PROT",
        "QUEUE_MAX_SIZES",
        "RECONCILE_AFTER_S",
    ]


@pytest.mark.parametrize("kind", [Settings, EmailSettings, TopologySettings])
def test_every_variable_is_told_apart(kind: type[msgspec.Struct]) -> None:
    """No two fields read one variable, and only durations lose their ending."""
    fields = msgspec.structs.fields(kind)
    assert len({variable_of(field.name) for field in fields}) == len(fields)


@pytest.mark.parametrize(
    "url",
    [
        "nats://127.0.0.1:4222",
        "tls://broker",
        "nats://u:p%40@a:1, nats://b:65535/",
        "127.0.0.1:4222",
        "nats://[::1]:4222",
    ],
)
def test_what_can_be_a_broker(url: str) -> None:
    """Schemes of NATS, one or several, with or without port."""
    check_urls(read(Settings, {"NATS_URL": url}))


@pytest.mark.parametrize("url", ["nats://127.0.0.1:99999", "http://x", "nats://", "nats://a:b", "a b", "nats://a:0"])
def test_what_cannot_be_a_broker(url: str) -> None:
    """The variable, the value without a password, and what it should be like."""
    with pytest.raises(SettingsError, match=r"^NATS_URL=.* expected nats://host:4222"):
        check_urls(read(Settings, {"NATS_URL": url}))
    with pytest.raises(SettingsError) as caught:
        check_urls(read(Settings, {"NATS_URL": "http://me:sesame@x", "NATS_MONITORING_URL": "foo://"}))
    assert "sesame" not in str(caught.value)
    with pytest.raises(SettingsError, match=r"^NATS_MONITORING_URL='foo://x'"):
        check_urls(read(Settings, {"NATS_MONITORING_URL": "foo://x"}))
