"""Our way to read a message's headers says what nats-py's says."""

from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client

from contracts.runtime.login import CarefulClient


@given(st.binary(max_size=60) | st.text("aB-: \t\x0b\x1c\x85\xe9\r\n", max_size=60).map(str.encode))
@example(b"Nats-Expected-Last-Subject-Sequence: 0\r\n\r\n")
def test_headers_are_read_as_nats_py_reads_them(raw: bytes) -> None:
    """Whatever they are, garbage included."""
    assert CarefulClient._parse_header_lines(raw) == Client._parse_header_lines(raw)
