"""How a process logs in to a real broker: passwords, TLS, credentials files; and what it says when that fails."""

import asyncio
import base64
import hashlib
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nkeys
import pytest

from contracts.permissions import USERS, accounts_conf, inbox, password_variable
from contracts.runtime.broker import Broker, Denied, connect
from contracts.runtime.login import BadCredentials, Refused, credentials_of
from tests.support.processes import NatsServer, Process, login, stopping
from tests.support.waiting import eventually

BAD_START = 78


async def provisioner(folder: Path, server: NatsServer | str, **env: str) -> tuple[int, str]:
    """Exit status and output of `python -m contracts.topology`."""
    url = server if isinstance(server, str) else server.url
    name = f"topology-{hashlib.sha256(repr(env).encode()).hexdigest()[:8]}"
    process = Process(name, [sys.executable, "-m", "contracts.topology"], folder, {"NATS_URL": url} | env)
    with stopping(process):
        process.start(LOG_FORMAT="json")
        return await process.exit_status(30), process.text()


async def started(server: NatsServer) -> NatsServer:
    server.start()
    await server.ready()
    return server


# --- passwords -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A broker that lets nobody in without a login."""
    server = NatsServer(tmp_path, accounts=accounts_conf())
    with stopping(server):
        yield await started(server)


async def test_the_right_password_lets_in(strict: NatsServer, tmp_path: Path) -> None:
    """From NATS_USER and NATS_PASSWORD, or from the URL."""
    code, text = await provisioner(tmp_path, strict, **login("provisioner"))
    assert code == 0, text
    account = login("provisioner")
    in_url = strict.url.replace("//", f"//{account['NATS_USER']}:{account['NATS_PASSWORD']}@")
    code, text = await provisioner(tmp_path, in_url)
    assert code == 0, text
    code, text = await provisioner(tmp_path, in_url.replace(":of-", ":sesame-"))
    assert code == BAD_START, text
    assert f"Tried: 127.0.0.1:{strict.port} with the login in NATS_URL" in text
    assert "sesame" not in text


async def test_a_refused_login_ends_the_start(strict: NatsServer, tmp_path: Path) -> None:
    """Exit 78 in seconds, with what was tried and without the password; not a wait for ever."""
    code, text = await provisioner(tmp_path, strict, NATS_USER="provisioner", NATS_PASSWORD="sesame")
    assert code == BAD_START, text
    assert "topology cannot start:\nthe broker refuses the login.\n" in text
    assert f"Tried: {strict.url} with NATS_USER=provisioner, NATS_PASSWORD (hidden)" in text
    assert "sesame" not in text
    assert "Traceback" not in text
    code, text = await provisioner(tmp_path, strict)
    assert code == BAD_START, text
    assert "no login (NATS_USER and NATS_PASSWORD, or NATS_CREDS, give one)" in text


def now_known(config: Path) -> None:
    config.write_text(config.read_text().replace('"not_yet"', '"email_svc"'))


async def test_a_user_who_is_added_meanwhile_is_let_in(tmp_path: Path) -> None:
    """A broker that does not know the user yet is asked again for a while: a restart may be on its way."""
    server = NatsServer(tmp_path, accounts=accounts_conf().replace('"email_svc"', '"not_yet"'))
    account = login("email_svc")
    with stopping(server):
        await started(server)
        connecting = asyncio.create_task(
            connect(
                name="email_svc",
                url=server.url,
                user=account["NATS_USER"],
                password=account["NATS_PASSWORD"],
                on_closed=lambda reason: None,
            )
        )
        done, _ = await asyncio.wait({connecting}, timeout=0.5)
        assert not done
        now_known(server.config)
        server.kill()
        server.start()
        broker = await asyncio.wait_for(connecting, 20)
        assert broker.client.is_connected
        await broker.close()


ODD = ("123", "1e5", "true", "2026-01-01T00:00:00Z", "$NATS_URL", '"', 'a "b" \\n #c }] ;', "grüße 'an' alle")


def test_odd_passwords_reach_the_broker_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, dates, quotes: what the local runner hands to the broker is what was meant."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "deploy" / "local"))
    import passwords

    async def all_of_them(server: NatsServer, chosen: dict[str, str]) -> None:
        await started(server)
        for user, password in chosen.items():
            broker = await connect(
                name=user, url=server.url, user=user, password=password, on_closed=lambda reason: None
            )
            await broker.close()

    for half in (ODD[:4], ODD[4:]):
        chosen = dict(zip(USERS, half, strict=True))
        env = {passwords.variable(user): password for user, password in chosen.items()}
        assert passwords.passwords(tmp_path, env) == chosen
        server = NatsServer(tmp_path, accounts=accounts_conf())
        server.env |= {name: passwords.quoted(password) for name, password in env.items()}
        with stopping(server):
            asyncio.run(all_of_them(server, chosen))


def test_the_local_users_are_those_of_the_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names and variables; passwords are made once, for the owner's eyes, and empty ones are refused."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "deploy" / "local"))
    import passwords

    assert set(passwords.USERS) == set(USERS)
    assert {passwords.variable(user) for user in passwords.USERS} == {password_variable(user) for user in USERS}
    made = passwords.passwords(tmp_path, {})
    assert len({*made.values()}) == len(USERS)
    assert min(map(len, made.values())) >= 32
    assert passwords.passwords(tmp_path, {}) == made
    assert (tmp_path / passwords.FILE).stat().st_mode & 0o777 == 0o600
    own = {"NATS_OPERATOR_PASSWORD": "mine"}
    assert passwords.passwords(tmp_path, own) == made | {"operator": "mine"}
    assert passwords.passwords(tmp_path, {}) == made
    for bad in ("", "a\nb"):
        with pytest.raises(passwords.Unusable, match="NATS_OPERATOR_PASSWORD must not be empty"):
            passwords.passwords(tmp_path, {"NATS_OPERATOR_PASSWORD": bad})


@pytest.mark.parametrize(
    ("url", "env", "operator"),
    [
        (None, {}, True),
        (None, {"NATS_PORT": "14222"}, True),
        ("nats://127.0.0.1:4222", {}, True),
        ("localhost", {}, True),
        ("nats://127.0.0.1:14222", {}, False),
        ("nats://broker:4222", {}, False),
        ("nats://127.0.0.1:4222,nats://127.0.0.1:4223", {}, False),
        ("nats://me:secret@127.0.0.1:4222", {}, False),
        ("nats://127.0.0.1:4222", {"NATS_USER": "me", "NATS_PASSWORD": "x"}, False),
        ("nats://127.0.0.1:4222", {"NATS_CREDS": "/my.creds"}, False),
    ],
)
def test_who_looks_at_the_local_broker_is_its_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str | None, env: dict[str, str], operator: bool
) -> None:
    """Unless he says who he is; at another broker nobody's password is offered."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "deploy" / "local"))
    import passwords

    password = passwords.passwords(tmp_path, {})["operator"]
    found = passwords.as_operator(url, env | {"MAILFLOW_DATA": str(tmp_path)})
    assert found["NATS_URL"] == (url or f"nats://127.0.0.1:{env.get('NATS_PORT', '4222')}")
    assert found.get("NATS_PASSWORD") == (password if operator else None)
    assert passwords.as_operator(url, env | {"MAILFLOW_DATA": "/nowhere"}) == {"NATS_URL": found["NATS_URL"]}


# --- TLS -----------------------------------------------------------------------------------------------------------

_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"


def make_ca(folder: Path, name: str) -> Path:
    """A CA; its key is beside it."""
    path = folder / f"{name}.pem"
    openssl(f"{_KEY} -subj /CN={name} -addext keyUsage=critical,keyCertSign -keyout {path}.key -out {path}")
    return path


def make_server(ca: Path) -> str:
    """The broker's configuration with a certificate for localhost and 127.0.0.1 from that CA."""
    path = ca.with_name("server.pem")
    openssl(
        f"-CA {ca} -CAkey {ca}.key {_KEY} -subj /CN=localhost -addext basicConstraints=critical,CA:FALSE "
        f"-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout {path}.key -out {path}"
    )
    return f'tls {{ cert_file: "{path}", key_file: "{path}.key" }}'


def openssl(arguments: str) -> None:
    try:
        subprocess.run(["openssl", "req", "-x509", *arguments.split()], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")


@pytest.fixture(scope="module")
def over_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NatsServer, Path]]:
    """A broker that wants TLS, and its CA."""
    folder = tmp_path_factory.mktemp("tls")
    ca = make_ca(folder, "ca")
    server = NatsServer(folder, more=make_server(ca))
    with stopping(server):
        server.start()
        asyncio.run(server.ready())
        yield server, ca


async def test_our_ca_is_trusted(over_tls: tuple[NatsServer, Path], tmp_path: Path) -> None:
    """With NATS_TLS_CA the provisioner does its work over TLS; by address and by name."""
    server, ca = over_tls
    code, text = await provisioner(tmp_path, server, NATS_TLS_CA=str(ca), **login("provisioner"))
    assert code == 0, text
    broker = await connect(
        name="test", url=f"tls://localhost:{server.port}", tls_ca=str(ca), on_closed=lambda reason: None
    )
    assert (await broker.api("STREAM.NAMES"))["total"] >= 7
    await broker.close()


async def test_it_reconnects_over_tls(tmp_path: Path) -> None:
    """After a kill of the broker."""
    ca = make_ca(tmp_path, "ca")
    server = NatsServer(tmp_path, more=make_server(ca))
    with stopping(server):
        await started(server)
        broker = await connect(name="test", url=server.url, tls_ca=str(ca), on_closed=lambda reason: None)
        server.kill()
        await eventually(lambda: not broker.client.is_connected)
        await started(server)
        await eventually(lambda: broker.client.is_connected)
        assert (await broker.api("STREAM.NAMES"))["total"] == 0
        await broker.close()


async def test_another_ca_is_not_trusted(over_tls: tuple[NatsServer, Path], tmp_path: Path) -> None:
    """Nor the system's, when none is named: exit 78, why, and which file it was."""
    server, _ = over_tls
    other = make_ca(tmp_path, "other")
    for env, said in (({"NATS_TLS_CA": str(other)}, f"NATS_TLS_CA={other}."), ({}, "NATS_TLS_CA not set.")):
        code, text = await provisioner(tmp_path, server, **env)
        assert code == BAD_START, text
        assert "TLS with the broker fails: " in text
        assert "certificate" in text
        assert said in text
        assert "Traceback" not in text


async def test_no_password_is_sent_without_tls(tmp_path: Path) -> None:
    """With NATS_TLS_CA set, a broker that offers no TLS hears nothing and is named: it may be somebody in between."""
    ca = make_ca(tmp_path, "ca")
    heard = bytearray()

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"X","version":"2.15.1","headers":true,"auth_required":true}\r\n')
        heard.extend(await reader.read())
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        code, text = await provisioner(
            tmp_path, f"nats://127.0.0.1:{port}", NATS_TLS_CA=str(ca), **login("provisioner")
        )
    assert code == BAD_START, text
    assert "the broker offers no TLS, and a CA for it is set" in text
    assert heard == b""


@pytest.mark.parametrize(
    ("content", "said"), [(None, "No such file or directory"), ("no certificate", "cannot be used")]
)
async def test_a_ca_file_that_is_none_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    """At once; no broker is needed for that."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Refused, match=f"the CA file {path} cannot be used: ") as caught:
        await connect(name="test", url="nats://127.0.0.1:1", tls_ca=str(path), on_closed=lambda reason: None)
    assert said in str(caught.value)


# --- credentials files ---------------------------------------------------------------------------------------------


CREDENTIALS = (
    "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n"
    "-----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n"
)


def make_key(prefix: int) -> tuple[Any, str, str]:
    """A key pair of NATS's kind, its public key and its seed."""
    seed = nkeys.encode_seed(os.urandom(32), prefix).decode()
    pair = nkeys.from_seed(bytearray(seed.encode()))
    return pair, pair.public_key.decode(), seed


def make_jwt(issuer: tuple[Any, str, str], subject: str, name: str, claims: dict[str, Any]) -> str:
    """A JWT of NATS's kind."""

    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).decode()

    body = {"iat": int(time.time()), "iss": issuer[1], "sub": subject, "name": name, "nats": claims | {"version": 2}}
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    signed = f"{part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{part(body)}".replace("=", "")
    return f"{signed}.{part(issuer[0].sign(signed.encode()))}".replace("=", "")


USER_CLAIMS = {
    "type": "user",
    # Not the whole list of contracts.permissions: with it the JWT would be longer than a broker takes (4 KiB).
    "pub": {"allow": ["$JS.API.>"], "deny": ["$JS.API.STREAM.DELETE.>"]},
    "sub": {"allow": [inbox("provisioner")]},
} | dict.fromkeys(("subs", "data", "payload"), -1)


@pytest.fixture
async def decentral(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Path, Path]]:
    """A broker that knows its users by JWT; the credentials of a provisioner, and of one it does not know."""
    operator, account = make_key(nkeys.PREFIX_BYTE_OPERATOR), make_key(nkeys.PREFIX_BYTE_ACCOUNT)
    unlimited: dict[str, Any] = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
    unlimited["wildcards"] = True
    jetstream = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    system = make_key(nkeys.PREFIX_BYTE_ACCOUNT)  # the one without streams
    jwts = [
        make_jwt(operator, key[1], "one", {"type": "account", "limits": limits})
        for key, limits in ((account, unlimited | jetstream), (system, unlimited))
    ]
    accounts = (
        f"operator: {make_jwt(operator, operator[1], 'operator', {'type': 'operator'})}\n"
        f"system_account: {system[1]}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {account[1]}: {jwts[0]}, {system[1]}: {jwts[1]} }}"
    )
    files = []
    for name, issuer in (("good", account), ("stranger", make_key(nkeys.PREFIX_BYTE_ACCOUNT))):
        user = make_key(nkeys.PREFIX_BYTE_USER)
        jwt = make_jwt(issuer, user[1], "provisioner", USER_CLAIMS)
        path = tmp_path / f"{name}.creds"
        path.write_text(CREDENTIALS.format(jwt, user[2]))
        files.append(path)
    server = NatsServer(tmp_path, accounts=accounts)
    with stopping(server):
        await started(server)
        yield server, files[0], files[1]


async def test_credentials_let_in(decentral: tuple[NatsServer, Path, Path], tmp_path: Path) -> None:
    """NATS_CREDS: with the rights that the JWT names, and after a restart of the broker too; a stranger's do not."""
    server, good, stranger = decentral
    code, text = await provisioner(tmp_path, server, NATS_CREDS=str(good))
    assert code == 0, text
    broker: Broker = await connect(
        name="provisioner", url=server.url, credentials=str(good), on_closed=lambda reason: None
    )
    with pytest.raises(Denied):
        await broker.api("STREAM.DELETE.KV_USERS", timeout_s=10)
    server.kill()
    await eventually(lambda: not broker.client.is_connected)
    await started(server)
    await eventually(lambda: broker.client.is_connected)
    await broker.close()

    code, text = await provisioner(tmp_path, server, NATS_CREDS=str(stranger))
    assert code == BAD_START, text
    assert "the broker refuses the login" in text
    assert f"NATS_CREDS={stranger}" in text


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "-----BEGIN NATS USER JWT-----\n",
        "-----BEGIN NATS USER JWT-----\na.b.c\n------END NATS USER JWT------\n",
        CREDENTIALS.format("a.b.c", "SUNOSEED"),
    ],
)
async def test_a_file_without_credentials_is_named(tmp_path: Path, content: str | None) -> None:
    """Missing, empty, cut off, or with a seed that is none: at once, in a line; nobody waits or loops."""
    path = tmp_path / "user.creds"
    if content is not None:
        path.write_text(content)
        with pytest.raises(BadCredentials):
            credentials_of(str(path))
    code, text = await provisioner(tmp_path, "nats://127.0.0.1:1", NATS_CREDS=str(path))
    assert code == BAD_START, text
    assert f"the credentials file {path} cannot be used: " in text
    assert "Traceback" not in text
    assert "SUNOSEED" not in text


def test_errors_of_tls_are_oserrors() -> None:
    """Else nats-py would not try again: it may be one broker of several, or one that is being set right."""
    assert issubclass(ssl.SSLError, OSError)
    assert issubclass(BadCredentials, OSError)
