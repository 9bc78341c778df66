"""Laws of users: one address, one id; names hold nothing that no name needs."""

import unicodedata

import pytest
from email_validator import validate_email
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from contracts.subjects import event_id, is_user_id, split_event_id
from user_svc import users
from user_svc.errors import InvalidRequest
from user_svc.users import Ids

LOCAL = st.from_regex(r"[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,20}(\.[a-zA-Z0-9_-]{1,10})?", fullmatch=True)
LABEL = st.from_regex(r"[a-zA-Z0-9]{1,10}(-[a-zA-Z0-9]{1,5})?", fullmatch=True)
ADDRESSES = st.builds(lambda local, label: f"{local}@{label}.example.com", LOCAL, LABEL)
JOINERS = "\u200c\u200d"


def accepted(text: str) -> users.Address:
    """The address; a text that is refused (a label such as `ab--c`) is not this property's business."""
    try:
        return users.address(text)
    except InvalidRequest:
        assume(False)
        raise AssertionError from None


@given(ADDRESSES)
def test_canonical_is_canonical(text: str) -> None:
    """Idempotent, of the mailbox as well: writing to the mailbox is writing to the same user."""
    found = accepted(text)
    assert users.address(found.canonical).canonical == found.canonical
    assert users.address(found.mailbox) == found
    assert found.canonical == found.canonical.lower()
    assert found.mailbox.isascii()


@given(st.from_regex(r"[a-z0-9A-Z._+-]{1,66}@[A-Za-z0-9.-]{1,30}|.{1,9}@.{1,9}", fullmatch=True) | ADDRESSES)
@example("a@b@example.com")
@example("Postmaster@example.com")
@example("a@xn--bcher-kva.example")
@example("a@EXAMPLE.com.")
@example("a@b\u00fccher.example")
@example("a" * 65 + "@example.com")
@settings(deadline=None)  # the first one loads the tables of IDNA
def test_the_short_way_says_what_the_library_says(text: str) -> None:
    """Whether an address is taken, and what is made of it, does not hang on its being plain."""
    try:
        found = validate_email(text, check_deliverability=False, allow_smtputf8=False, strict=True)
    except ValueError:
        with pytest.raises(InvalidRequest):
            users.address(text)
        return
    local, domain = found.ascii_local_part or found.local_part, (found.ascii_domain or found.domain).lower()
    assert users.address(text) == users.Address(f"{local}@{domain}", f"{local.lower()}@{domain}")


@given(ADDRESSES, st.randoms(use_true_random=False))
def test_case_makes_no_second_user(text: str, random: object) -> None:
    """Any mixture of upper and lower case is the same user."""
    mixed = "".join(c.upper() if random.random() < 0.5 else c.lower() for c in text)  # type: ignore[attr-defined]
    assert accepted(mixed).canonical == accepted(text).canonical


@given(st.text(max_size=80))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """No other exception gets out, and what is accepted is one line of ASCII."""
    try:
        found = users.address(text)
    except InvalidRequest:
        return
    assert found.mailbox.isascii()
    assert found.mailbox.isprintable()
    assert found.mailbox.count("@") == 1


@given(st.text(min_size=1, max_size=40), st.text(max_size=60))
def test_ids_are_legal_and_stable(key: str, canonical: str) -> None:
    """A token of a subject and a key of a bucket whatever the address; the same from another object of the same key."""
    assume(not any(0xD800 <= ord(c) < 0xE000 for c in key + canonical))
    found = Ids(key).user_id(canonical)
    assert is_user_id(found)
    assert is_user_id(Ids(key).key_hash(canonical))
    assert Ids(key).user_id(canonical) == found
    assert split_event_id(event_id(found, 7)) == (found, 7)


@given(st.text(max_size=120))
def test_accepted_names_hold_nothing_forbidden(text: str) -> None:
    """NFC, 1 to 100 characters, no outer space, nothing that breaks a header or hides; accepted again as they are."""
    try:
        found = users.name(text)
    except InvalidRequest:
        return
    assert 1 <= len(found) <= 100
    assert found == found.strip()
    assert unicodedata.is_normalized("NFC", found)
    assert "=?" not in found
    assert not any(unicodedata.category(c)[0] == "C" and c not in JOINERS for c in found)
    assert not set(found) & set("\r\n\0\u2028\u2029\u202e\u2066\ufeff")
    assert users.name(found) == found


@given(st.text(max_size=300))
def test_idempotency_keys_are_printable_ascii(text: str) -> None:
    """Whatever the header: refused, or 1 to 255 printable characters without a quote; quoting changes nothing."""
    try:
        found = users.idempotency_key(text)
    except InvalidRequest:
        return
    assert 1 <= len(found) <= 255
    assert found.isascii()
    assert found.isprintable()
    assert '"' not in found
    assert users.idempotency_key(f'"{found}"') == found
