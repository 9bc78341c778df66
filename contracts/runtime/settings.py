"""Settings from the environment: one flat frozen Struct a service, read once.

A field's name is its variable's in lower case. Two endings say how the text is read, and `_s` is not part of the
variable's name: `smtp_timeout_s` is `SMTP_TIMEOUT`, a duration (`100ms`, `30s`, `5m`, `24h`); `http_port` is
`HTTP_PORT`, written `8080` or `:8080`. Bounds stand in the field's type (`msgspec.Meta`). An empty variable is an
unset one.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

S = TypeVar("S", bound=msgspec.Struct)

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_YEAR_S = 366 * 86_400.0
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_BOOL = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_SECRET = re.compile(r"PASSWORD|TOKEN|_KEY|SMTP_URL|NATS_URL")
_NOT_OURS = frozenset({"HTTP_PROXY"})


class SettingsError(Exception):
    """The environment does not make sense; the text has a line for each variable."""


def duration_s(text: str) -> float:
    """Seconds of `100ms`, `30s`, `5m`, `24h`, `7d`.

    Raises:
        ValueError: not a number with a unit, or more than a year.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("expected a duration like 100ms, 30s, 5m or 24h")
    seconds = float(match[1]) * _UNITS_S[match[2]]
    if seconds > _YEAR_S:
        raise ValueError("expected at most a year")  # so that no sum of times overflows
    return seconds


def port(text: str) -> int:
    """A TCP port, `8080` or `:8080`.

    Raises:
        ValueError: not a number from 1 to 65535.
    """
    digits = text.strip().removeprefix(":")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 1 <= int(digits) <= 65535):
        raise ValueError("expected a port from 1 to 65535, like 8080 or :8080")
    return int(digits)


def variable_of(field: str) -> str:
    """The environment variable of a field."""
    return field.removesuffix("_s").upper()


def read(kind: type[S], environ: Mapping[str, str]) -> S:
    """The settings of a service.

    Raises:
        SettingsError: names each bad variable, its value (unless it may be a secret) and what is allowed.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for field in msgspec.structs.fields(kind):
        variable = variable_of(field.name)
        text = environ.get(variable, "")
        if not text.strip():  # a blank secret is none
            continue
        try:
            values[field.name] = msgspec.convert(_parse(field.name, text, field.type), field.type, strict=False)
        except (ValueError, msgspec.ValidationError) as exc:
            shown = "(hidden)" if _SECRET.search(variable) else repr(text)
            problems.append(f"{variable}={shown}: {exc}")
    if problems:
        raise SettingsError("\n".join(problems))
    try:
        return kind(**values)
    except (TypeError, ValueError) as exc:  # from the Struct's own __post_init__
        raise SettingsError(str(exc)) from exc


def _parse(name: str, text: str, kind: Any) -> Any:
    if name.endswith("_s"):
        return duration_s(text) if "tuple" not in str(kind) else tuple(duration_s(part) for part in text.split(","))
    if name.endswith("_port"):
        return port(text)
    if kind is bool:
        if text.strip().lower() not in _BOOL:
            raise ValueError("expected true or false")
        return _BOOL[text.strip().lower()]
    choices = [c for part in (kind, *get_args(kind)) if get_origin(part) is Literal for c in get_args(part)]
    if choices and text.strip() not in choices:
        raise ValueError(f"expected one of {', '.join(sorted(choices))}")
    return text.strip()


def unknown(
    kind: type[msgspec.Struct], environ: Mapping[str, str], *, prefixes: tuple[str, ...], known: Collection[str] = ()
) -> list[str]:
    """Variables that begin like ours and are none: most likely misspelt."""
    ours = {variable_of(field.name) for field in msgspec.structs.fields(kind)} | set(known) | _NOT_OURS
    return sorted(name for name in environ if name.startswith(prefixes) and name not in ours)
