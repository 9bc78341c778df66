"""What is taken out of log lines and of other words that came from outside."""

import time

import pytest

from contracts.runtime.logs import without_addresses


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("nothing here", "nothing here"),
        ("@ home", "@ home"),
        ("ann@example.com", "<address>"),
        ("to <ann@example.com>: no", "to <<address>>: no"),
        ("field `ann@example.com`", "field `<address>`"),
        ("'ann@example.com',bob@example.com;x", "'<address>',<address>;x"),
        ("mailto:ann+b.c@example.com", "mailto:<address>"),
        ("user=ann@example.com", "user=<address>"),
        ("@@ann@example.com", "@@<address>"),
        ("a@b@example.com", "<address>"),
        ("(ann@exämple.com)", "(<address>)"),
    ],
)
def test_addresses_go(text: str, kept: str) -> None:
    """Whatever is around them stays."""
    assert without_addresses(text) == kept


def test_a_megabyte_of_one_word_takes_no_time() -> None:
    """Somebody's garbage is quoted in a log line: the process that writes it goes on."""
    began = time.perf_counter()
    for word in ("a" * 1_000_000, "a@" * 500_000, "@" * 1_000_000, "=a" * 500_000):
        without_addresses(f"{word} @")
    assert time.perf_counter() - began < 3.0
