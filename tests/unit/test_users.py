"""The pure rules for addresses, names, ids and keys."""
# ruff: noqa: RUF001 - characters of other scripts are the point

from datetime import UTC, datetime, timedelta, timezone

import pytest

from contracts.subjects import is_user_id
from user_svc import users
from user_svc.errors import InvalidRequest
from user_svc.users import Ids


@pytest.mark.parametrize(
    ("text", "mailbox", "canonical"),
    [
        ("ann@example.com", "ann@example.com", "ann@example.com"),
        ("Ann.Lee@Example.COM", "Ann.Lee@example.com", "ann.lee@example.com"),
        ("ann+news@example.com", "ann+news@example.com", "ann+news@example.com"),
        ("a.n.n@gmail.com", "a.n.n@gmail.com", "a.n.n@gmail.com"),
        ("ann@BÜCHER.example.com", "ann@xn--bcher-kva.example.com", "ann@xn--bcher-kva.example.com"),
        ("ann@xn--bcher-kva.example.com", "ann@xn--bcher-kva.example.com", "ann@xn--bcher-kva.example.com"),
        ("ann@bu\u0308cher.example.com", "ann@xn--bcher-kva.example.com", "ann@xn--bcher-kva.example.com"),
        ("o'brien!#$%@example.com", "o'brien!#$%@example.com", "o'brien!#$%@example.com"),
        (f"{'a' * 64}@example.com", f"{'a' * 64}@example.com", f"{'a' * 64}@example.com"),
    ],
)
def test_an_address_has_one_canonical_spelling(text: str, mailbox: str, canonical: str) -> None:
    """NFC, the domain as IDNA in lower case, the local part lower-cased for identity alone; nothing else is folded."""
    found = users.address(text)
    assert (found.mailbox, found.canonical) == (mailbox, canonical)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ann",
        "@example.com",
        "ann@",
        "ann@@example.com",
        "ann@example",
        "ann@localhost",
        "ann@example..com",
        ".ann@example.com",
        "ann.@example.com",
        "an..n@example.com",
        "ann@-example.com",
        "ann@[127.0.0.1]",
        '"ann lee"@example.com',
        "änn@example.com",
        "ann@example.com\n",
        " ann@example.com",
        "ann@example.com\r\nBcc: eve@example.com",
        "ann@example.com, eve@example.com",
        "Ann <ann@example.com>",
        "ann\0@example.com",
        "ann@exa\u200bmple.com",
        f"{'a' * 65}@example.com",
        f"ann@{'a' * 64}.example.com",
        f"ann@{'.'.join(['a' * 60] * 5)}.com",
    ],
)
def test_what_cannot_be_mailed_to_is_refused_without_being_quoted(text: str) -> None:
    """The answer names the field and no address."""
    with pytest.raises(InvalidRequest) as caught:
        users.address(text)
    assert set(caught.value.errors) == {"email"}
    assert "ann@" not in caught.value.errors["email"]
    assert "eve" not in caught.value.errors["email"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ann", "An email address must have an @-sign."),
        ("@example.com", "There must be something before the @-sign."),
        ("ann@example..com", "An email address cannot have two periods in a row."),
        ("ann@@example.com", "It is not a valid email address."),  # the library quotes what is wrong: an `@`
        ("ann@example.com, eve@example.com", "It is not a valid email address."),
    ],
)
def test_a_refused_address_says_why(text: str, said: str) -> None:
    """In email-validator's words, unless they have an `@` that may be the input's."""
    with pytest.raises(InvalidRequest) as caught:
        users.address(text)
    assert caught.value.errors == {"email": said}


@pytest.mark.parametrize("wrong", [ValueError("ann"), UnicodeError("ann")])
def test_any_other_failure_of_the_library_is_not_repeated(wrong: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what its text holds."""

    def fails(*_: object, **__: object) -> None:
        raise wrong

    monkeypatch.setattr(users, "validate_email", fails)
    with pytest.raises(InvalidRequest) as caught:
        users.address(f"ann@{type(wrong).__name__}.example.org")  # a domain that it has not been asked about yet
    assert caught.value.errors == {"email": "It is not a valid email address."}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Ann", "Ann"),
        ("  Ann Lee\t", "Ann Lee"),
        ("Zoe\u0308", "Zoë"),
        ("X Æ A-12", "X Æ A-12"),
        ("O'Brien, Jr.", "O'Brien, Jr."),
        ("محمد", "محمد"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("क्\u200dष", "क्\u200dष"),
        ("王秀英", "王秀英"),
        ("Ann <script>", "Ann <script>"),
        ("🙂", "🙂"),
        ("a" * 100, "a" * 100),
        ("e\u0301" * 100, "é" * 100),
    ],
)
def test_names_of_all_scripts_are_taken(text: str, found: str) -> None:
    """In NFC, without outer spaces, at most 100 characters of that."""
    assert users.name(text) == found


EMPTY = "It must not be empty."
LONG = "It must have at most 100 characters."
HIDING = "It must not contain control, invisible, direction-changing, private or unassigned characters."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", EMPTY),
        ("   ", EMPTY),
        ("\u3000", EMPTY),
        ("a" * 101, LONG),
        ("Ann\r\nBcc: eve@example.com", HIDING),
        ("Ann\0", HIDING),
        ("Ann\x7f", HIDING),
        ("Ann\u2028Lee", HIDING),
        ("Ann\u202eeel", HIDING),
        ("Ann\u200b", HIDING),
        ("Ann\ufeff", HIDING),
        ("Ann\u00ad", HIDING),
        ("Ann\U000e0041", HIDING),
        ("Ann\u2063", HIDING),
        ("Ann\ufff9", HIDING),
        ("Ann\ud800", HIDING),
        ("Ann\ue000", HIDING),
        ("Ann\U0010ffff", HIDING),
        ("=?utf-8?q?Ann?=", "It must not contain '=?'."),
    ],
)
def test_names_that_hide_or_break_something_are_refused(text: str, said: str) -> None:
    """Control, invisible, direction-changing, private, unassigned; encoded words; empty; too long."""
    with pytest.raises(InvalidRequest) as caught:
        users.name(text)
    assert caught.value.errors == {"name": said}


def test_an_id_depends_on_key_and_address_alone() -> None:
    """Stable over processes and versions: this very id is in brokers already, and so is what goes with it."""
    assert Ids("k").user_id("ann@example.com") == "27t4gj3ygmzxw54xnw6iewbltw"
    assert Ids("k").fingerprint == "chglhyrd5ndnrepkyd7spvzbof"
    assert Ids("k").key_hash("abc") == "xm6hjladxowjtawzw7hce54xqc"
    assert Ids("k").payload("ann@example.com", "Ann") == "iqcekzt6azci5fbjpvy2ykboeh"
    assert Ids("k").user_id("ann@example.com") != Ids("l").user_id("ann@example.com")
    assert is_user_id(Ids("k").user_id("ann@example.com"))


def test_what_is_derived_from_one_key_is_told_apart() -> None:
    """An id is no key hash, even of the same text; a payload has no ambiguous joint."""
    ids = Ids("k")
    assert len({ids.user_id("x"), ids.key_hash("x"), ids.payload("x", ""), ids.fingerprint}) == 4
    assert ids.payload("a", "b") != ids.payload("ab", "")


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("abc", "abc"),
        ("a", "a"),
        ('"abc"', "abc"),
        (' "a b" ', "a b"),
        ('" a "', " a "),
        ("x" * 255, "x" * 255),
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
    ],
)
def test_an_idempotency_key_may_be_quoted(header: str, key: str) -> None:
    """As a structured field string, or bare: the same key."""
    assert users.idempotency_key(header) == key


@pytest.mark.parametrize("header", ["", '""', '"', 'a"b', '"a', "x" * 256, "ä", "a\tb"])
def test_other_idempotency_keys_are_refused(header: str) -> None:
    """Empty, longer than 255, not printable ASCII, a quote inside."""
    with pytest.raises(InvalidRequest) as caught:
        users.idempotency_key(header)
    assert caught.value.errors == {"Idempotency-Key": "It must be 1 to 255 printable ASCII characters."}


def test_resends_are_named_by_the_day() -> None:
    """Three a day."""
    now = datetime(2026, 1, 2, 23, 59, tzinfo=UTC)
    assert users.resend_nonces(now) == ["2026-01-02-1", "2026-01-02-2", "2026-01-02-3"]


def test_nonces_differ() -> None:
    """Of two creates at the same moment as well: 104 random bits."""
    nonces = {users.nonce() for _ in range(1000)}
    assert len(nonces) == 1000
    assert {len(nonce) for nonce in nonces} == {26}


def test_resend_day_is_utc() -> None:
    """The route gives an aware UTC time; another zone's midnight is not the limit's."""
    tokyo = datetime(2026, 1, 3, 8, 0, tzinfo=timezone(timedelta(hours=9)))
    assert users.resend_nonces(tokyo.astimezone(UTC))[0].startswith("2026-01-02")
