"""Hostile words in every field, over REST and over the bus: what is taken arrives as it was meant, the rest is refused.

The mail that arrives has the headers and the recipient that it should have and no others; whatever looks like a
template, a header or HTML is text.
"""

import html
import json
import re
import urllib.parse
from typing import Any

import httpx
import pytest

from contracts import messages as m
from contracts import subjects as s
from contracts.runtime.broker import Broker
from email_svc.message import defang
from tests.support.attack import metric, shout, statuses, text_and_html, unharmed
from tests.support.load import settled
from tests.support.processes import System
from tests.support.smtp_server import SmtpServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

Target = tuple[System, SmtpServer]
JSON = {"content-type": "application/json"}

TAKEN = 201
REFUSED = 422

NAMES: list[tuple[str, int]] = [
    ("{{7*7}}", TAKEN),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", TAKEN),
    ("{% for x in range(9) %}x{% endfor %}", TAKEN),
    ("{# gone #}", TAKEN),
    ("${7*7} #{7*7} <%= 7*7 %>", TAKEN),
    ("{0.__class__} %s %n", TAKEN),
    ("<script>alert(1)</script>", TAKEN),
    ("<img src=x onerror=alert(1)>", TAKEN),
    ("</p><a href=evil>", TAKEN),
    ("&lt;b&gt; &amp;", TAKEN),
    ("'; DROP TABLE users; --", TAKEN),
    ("--=_mailflow--", TAKEN),
    (". QUIT", TAKEN),
    ("see http://evil.example/login", TAKEN),
    ("é" * 100, TAKEN),
    ("a\r\nBcc: victim@example.net", REFUSED),
    ("a\nX-Injected: 1", REFUSED),
    ("a\r\n\r\nbody", REFUSED),
    ("a\r\n.\r\nMAIL FROM:<x@example.net>", REFUSED),
    ("nul\0", REFUSED),
    ("a\u2028Bcc: victim@example.net", REFUSED),
    ("a\u2029b", REFUSED),
    ("a\x85b", REFUSED),
    ("\u202eevil", REFUSED),
    ("\u2066evil\u2069", REFUSED),
    ("in\u200bvisible", REFUSED),
    ("\ufeffbom", REFUSED),
    ("\U000e0041tag", REFUSED),
    ("=?utf-8?q?Bcc:_victim=40example.net?=", REFUSED),
    ("é" * 101, REFUSED),
]

ADDRESSES: list[tuple[str, int]] = [
    ("{{7*7}}@example.com", TAKEN),
    ("a%victim.example@example.com", TAKEN),
    ("|id`id`$HOME@example.com", TAKEN),
    ("a@example\u3002com", TAKEN),  # the ideographic dot is a dot
    ('"quoted local"@example.com', REFUSED),
    ('"a\\"\r\nBcc: x"@example.com', REFUSED),
    ('">RCPT TO:<victim@example.net"@example.com', REFUSED),
    ("a@example.com\r\nRCPT TO:<victim@example.net>", REFUSED),
    ("a@example.com\nBcc: victim@example.net", REFUSED),
    ("a@example.com>", REFUSED),
    ("a@example.com> SIZE=1", REFUSED),
    ("a@example.com,victim@example.net", REFUSED),
    ("a@example.com victim@example.net", REFUSED),
    ("Ann <a@example.com>", REFUSED),
    ("a(comment)@example.com", REFUSED),
    ("@relay.example:a@example.com", REFUSED),
    ("a@b@example.com", REFUSED),
    ("a@[127.0.0.1]", REFUSED),
    ("a@127.0.0.1", REFUSED),
    ("a@localhost", REFUSED),
    ("a@example.com\0", REFUSED),
    ("a\u202e@example.com", REFUSED),
    ("a@exam\u200bple.com", REFUSED),
    ("\uff41@example.com", REFUSED),
    ("a@" + "x" * 64 + ".com", REFUSED),
    ("a" * 65 + "@example.com", REFUSED),
]

BODIES: list[tuple[bytes, int]] = [
    (b'{"email":"n@example.com","name":"\\ud800"}', REFUSED),
    (b'{"email":"\\udc00@example.com","name":"N"}', REFUSED),
    (b'{"email":1e400,"name":"N"}', REFUSED),
    (b'{"email":"n@example.com","name":%s}' % (b"9" * 5000), REFUSED),
    (b'{"email":"n@example.com","name":NaN}', REFUSED),
    (b'{"email":"n@example.com","name":"N"}{}', REFUSED),
    (b'{"email":"n@example.com","name":"N",}', REFUSED),
    (b'{"email":"n@example.com","name":"N"/**/}', REFUSED),
    (b'{"email":{"$ne":null},"name":["N"]}', REFUSED),
    (b'{"email":"n@example.com","name":"N","__proto__":{}}', REFUSED),
    (b'\xef\xbb\xbf{"email":"n@example.com","name":"N"}', REFUSED),
    ('{"email":"n@example.com","name":"N"}'.encode("utf-16"), REFUSED),
    (b'{"email":"n@example.com","name":"\xc0\xaf"}', REFUSED),  # overlong
    (b'{"email":' + b"[" * 16_000, REFUSED),
    (b'{"' + b"a" * 16_000 + b' @":1}', REFUSED),
    (b'{"email":"n@example.com","name":' + b'{"a":' * 3000, REFUSED),
    (b"[" * 100_000, 413),
]


async def over_bus(broker: Broker, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """Status and body of `users.create`."""
    answer = await broker.request(s.USERS_CREATE, body, headers=headers)
    found = answer.headers or {}
    return int(found.get("Status") or found["Nats-Service-Error-Code"]), json.loads(answer.data)


async def test_hostile_names_are_text_or_refused(target: Target, client: httpx.AsyncClient, broker: Broker) -> None:
    """Each once over REST and once over the bus; what arrives has nothing but a greeting in it."""
    system, smtp = target
    taken: dict[str, str] = {}
    for n, (name, status) in enumerate(NAMES):
        for way in ("rest", "bus"):
            address = f"{way}{n}@example.com"
            body = json.dumps({"email": address, "name": name}).encode()
            if way == "rest":
                got = (await client.post("/v1/users", content=body, headers=JSON)).status_code
            else:
                got, _ = await over_bus(broker, body)
            assert got == status, (way, name)
            if status == TAKEN:
                taken[address] = name
    await settled(broker)
    assert {sent.rcpt for sent in smtp.accepted} == set(taken)
    for sent in smtp.accepted:
        name = defang(taken[sent.rcpt])
        text, page = text_and_html(sent)
        assert text.splitlines()[0] == f"Hello {name},"
        assert len(text.splitlines()) == 7
        greeting = re.search("<p>Hello (.*),</p>", page)
        assert greeting is not None
        assert html.unescape(greeting[1]) == name
        assert "<" not in greeting[1]
        assert page.count("<p>") == 4
        assert "http:" not in text + page
        assert "evil.example" not in text + page
    unharmed(system)


async def test_hostile_addresses_reach_themselves_or_nobody(
    target: Target, client: httpx.AsyncClient, broker: Broker
) -> None:
    """One RCPT, to the address in the answer; no second recipient, however it is written."""
    _, smtp = target
    smtp.accepted.clear()
    expected = set()
    for n, (address, status) in enumerate(ADDRESSES):
        body = json.dumps({"email": address, "name": "N"}).encode()
        if n % 2:
            got, answer = await over_bus(broker, body)
        else:
            response = await client.post("/v1/users", content=body, headers=JSON)
            got, answer = response.status_code, response.json()
        assert got == status, address
        if status == TAKEN:
            expected.add(answer["email"])
    await settled(broker)
    assert {sent.rcpt for sent in smtp.accepted} == expected
    assert len(smtp.accepted) == len(expected)
    for sent in smtp.accepted:
        text_and_html(sent)


async def test_hostile_bodies_are_refused(target: Target, client: httpx.AsyncClient, broker: Broker) -> None:
    """Surrogates, numbers without end, nesting without end, other encodings: one clear refusal, either way."""
    for body, status in BODIES:
        answer = await client.post("/v1/users", content=body, headers=JSON)
        assert answer.status_code == status, body[:60]
        assert answer.headers["content-type"] == "application/problem+json"
        got, problem = await over_bus(broker, body)
        assert (got, problem["status"]) == (status, status), body[:60]
    assert (await metric(target[0], "user_service_errors_total")) == 0
    unharmed(target[0])


async def test_of_duplicate_keys_one_holds_everywhere(
    target: Target, client: httpx.AsyncClient, broker: Broker
) -> None:
    """The answer, the record and the mail speak of the same one."""
    _, smtp = target
    smtp.accepted.clear()
    body = b'{"email":"first@example.com","email":"last@example.com","name":"First","name":"Last"}'
    answer = (await client.post("/v1/users", content=body, headers=JSON)).json()
    await settled(broker)
    assert answer["email"] == "last@example.com"
    assert (await client.get(f"/v1/users/{answer['id']}")).json()["name"] == "Last"
    assert [sent.rcpt for sent in smtp.accepted] == ["last@example.com"]
    assert "Last" in text_and_html(smtp.accepted[0])[0]


async def test_hostile_headers_change_nothing(target: Target, client: httpx.AsyncClient, broker: Broker) -> None:
    """Idempotency-Key and X-Request-ID are opaque or refused; nothing of them comes back as a header of its own."""
    keys = [("{{7*7}}", 201), ("a" * 255, 201), ("$KV.USERS.u.*", 201), (">", 201), ("a" * 256, 422), ("k\xe9", 422)]
    for n, (key, status) in enumerate(keys):
        body = {"email": f"key{n}@example.com", "name": "N"}
        headers = {"Idempotency-Key": key.encode("latin-1"), "X-Request-ID": b"{{7*7}}\xff<script>"}
        answer = await client.post("/v1/users", json=body, headers=headers)
        assert answer.status_code == status, key
        assert answer.headers["x-request-id"].isalnum()
        over = {"Idempotency-Key": key, "X-Request-ID": "a b"}
        got, _ = await over_bus(broker, json.dumps(body).encode(), over)
        assert got == status, key  # the same registration again, or the same refusal
    # On the bus a value may be written with line ends; they are none there.
    connection = await broker.client.request(
        s.USERS_CREATE, b'{"email":"ends@example.com","name":"N"}', headers={"X-Request-ID": "a\r\nStatus: 500"}
    )
    assert connection.headers["Status"] == "201"


PATHS = [
    "..", "%2e%2e", "%2e%2e%2fadmin", "%00", "*", ">", "%3E", "%ff", "%c0%ae", "a.b", "a" * 20_000,
    "%0d%0aSet-Cookie:%20x",
    "{{7*7}}", "%7b%7b7*7%7d%7d", "$KV.USERS.u.*", "A" * 26, "a" * 25, "a" * 27, "a" * 25 + "1", "a" * 25 + "\u0430",
]  # fmt: skip


async def test_hostile_ids_are_nobodys(target: Target) -> None:
    """404, with no redirect, no header of theirs, and no look at another's subject."""
    system, _ = target
    for path in PATHS:
        quoted = urllib.parse.quote(path, safe="%/*>${}.:") if not path.isascii() else path
        for method, end in (("GET", ""), ("GET", "/welcome-email"), ("POST", "/welcome-email"), ("DELETE", "")):
            request = f"{method} /v1/users/{quoted}{end} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            heard = await shout(system.user.http_port, request.encode())
            assert statuses(heard) in ([404], [400]), (method, path[:40], heard[:200])
            assert b"set-cookie" not in heard.lower()
            assert b"\r\nlocation:" not in heard.lower()
    unharmed(system)


async def test_hostile_queries_are_refused(client: httpx.AsyncClient) -> None:
    """Cursors and limits are whole numbers; whatever else is asked is not looked at."""
    for query in ("cursor=%00", "cursor=1e9", "cursor=0x10", "cursor=%EF%BC%91", "cursor= 1", "cursor=1;limit=2",
                  "cursor=" + "9" * 5000, "limit=%F0%9F%92%A9", "limit=1.0", "limit=NaN", "cursor=--1"):  # fmt: skip
        assert (await client.get(f"/v1/users?{query}")).status_code == 422, query
    everything = "&".join(f"x{n}={{{{7*7}}}}" for n in range(500))
    assert (await client.get(f"/v1/users?limit=1&{everything}")).status_code == 200
    assert (await client.get(f"/v1/users?cursor={10**18 - 1}")).json()["users"] == []


async def test_forwarding_headers_are_nobodys_word(target: Target, client: httpx.AsyncClient, broker: Broker) -> None:
    """Who an operator's action came from is the peer of the connection; a Location is a path; a limit is a limit."""
    system, _ = target
    forged = {
        "X-Forwarded-For": "198.51.100.9", "X-Real-IP": "198.51.100.9", "Forwarded": "for=198.51.100.9;host=evil",
        "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/evil",
        "X-Original-URL": "/healthz", "X-HTTP-Method-Override": "DELETE", "Host": "evil.example",
    }  # fmt: skip
    answer = await client.post("/v1/users", json={"email": "forged@example.com", "name": "F"}, headers=forged)
    assert answer.status_code == 201
    user = answer.json()["id"]
    assert answer.headers["location"] == f"/v1/users/{user}"
    codes = []
    for n in range(5):
        fresh = forged | {"X-Forwarded-For": f"198.51.100.{n}", "X-Real-IP": f"198.51.100.{n}"}
        codes.append((await client.post(f"/v1/users/{user}/welcome-email", headers=fresh)).status_code)
    assert codes == [202, 202, 202, 429, 429]
    own = {name: value for name, value in forged.items() if name != "Host"}
    async with httpx.AsyncClient() as admin:
        for url in (f"{system.user.admin}/circuit-breaker/close", f"{system.email.admin}/downtime"):
            body = {"end": True} if url.endswith("downtime") else {}
            assert (await admin.post(url, json=body, headers=own)).status_code == 200
            assert (await admin.post(url, json=body, headers=forged)).status_code == 403
    for service, action in (("user_svc", "resend"), ("user_svc", "breaker-close"), ("email_svc", "downtime-end")):

        async def written(subject: str = s.audited(service, action)) -> Any:
            return await broker.last(s.AUDIT, subject)

        assert m.AUDIT.decode((await eventually(written)).data).peer == "127.0.0.1"
