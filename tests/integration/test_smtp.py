"""Our SMTP side against a real dialogue over real sockets, phase by phase, fault by fault."""

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiosmtplib.protocol import SMTPProtocol

from email_svc.decision import Fault, Phase, SmtpResult
from email_svc.message import Mail
from email_svc.smtp import SmtpConnection
from email_svc.smtp_pool import SmtpPool
from email_svc.smtp_url import SmtpEndpoint
from tests.support.smtp_server import Drop, Late, Raw, Reply, Reset, Silence, SmtpServer, make_certificate
from tests.support.waiting import eventually

SENDER = "welcome@mailflow.local"
PHASES = {
    "greeting": Phase.GREETING,
    "ehlo": Phase.EHLO,
    "mail": Phase.MAIL,
    "rcpt": Phase.RCPT,
    "data": Phase.DATA,
    "dot": Phase.DOT,
}
IN_TRANSACTION = ("mail", "rcpt", "data", "dot")


def mail_to(recipient: str, body: bytes = b"hello\r\n") -> Mail:
    message_id = f"<{recipient.partition('@')[0]}.1@mailflow.local>"
    head = f"To: {recipient}\r\nMessage-ID: {message_id}\r\n\r\n".encode()
    return Mail(recipient=recipient, message_id=message_id, content=head + body)


def pool_for(server: SmtpServer, mode: str = "plain", ca: Path | None = None, **options: Any) -> SmtpPool:
    username, password = server.credentials or (None, None)
    endpoint = SmtpEndpoint(
        host="127.0.0.1",
        port=server.port,
        mode=mode,  # type: ignore[arg-type]
        username=username,
        password=password,
        ca=str(ca) if ca else None,
    )
    return SmtpPool(endpoint, **{"size": 2, "timeout_s": 5, "after_dot_timeout_s": 5, **options})


@contextlib.asynccontextmanager
async def pooling(server: SmtpServer, mode: str = "plain", **options: Any) -> AsyncIterator[SmtpPool]:
    pool = pool_for(server, mode, **options)
    try:
        yield pool
    finally:
        await pool.close()


async def connection(pool: SmtpPool, **options: Any) -> SmtpConnection:
    conn = await pool.acquire(**options)
    assert isinstance(conn, SmtpConnection), conn
    return conn


async def send(pool: SmtpPool, recipient: str = "ada@example.org", body: bytes = b"hello\r\n") -> SmtpResult:
    """One mail, as delivery does it."""
    conn = await pool.acquire()
    if isinstance(conn, SmtpResult):
        return conn
    try:
        return await conn.send(mail_to(recipient, body), SENDER, before_dot=lambda: True)
    finally:
        pool.release(conn)


@pytest.fixture
async def server() -> AsyncIterator[SmtpServer]:
    async with SmtpServer() as running:
        yield running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    made = make_certificate(tmp_path_factory.mktemp("tls"))
    if made is None:
        pytest.skip("no openssl command to make a certificate with")
    return made


async def test_a_mail_arrives_as_it_was_composed(server: SmtpServer) -> None:
    async with pooling(server) as pool:
        result = await send(pool)
    assert (result.phase, result.code, result.text, result.fault) == (Phase.DOT, 250, "2.0.0 queued", None)
    (got,) = server.accepted
    assert (got.mail_from, got.rcpts) == (SENDER, ["ada@example.org"])
    assert got.content == mail_to("ada@example.org").content
    assert got.message_id == "<ada.1@mailflow.local>"
    await eventually(lambda: server.connections[0].verbs == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"])


async def test_lines_that_begin_with_a_dot_arrive_so(server: SmtpServer) -> None:
    body = b".\r\n..\r\n.hidden\r\nend.\r\n.\r\n"
    async with pooling(server) as pool:
        assert (await send(pool, body=body)).code == 250
        assert (await send(pool, "bob@example.org")).code == 250
    assert server.accepted[0].content.endswith(b"\r\n\r\n" + body)
    assert len(server.accepted) == 2


@pytest.mark.parametrize("code", [450, 550])
@pytest.mark.parametrize("phase", PHASES)
async def test_a_refusal_is_reported_in_its_phase_and_the_next_mail_goes_through(
    server: SmtpServer, phase: Any, code: int
) -> None:
    """After MAIL the same connection serves on, but only once a 250 to RSET has cleared it."""
    server.on(phase, Reply(code, "4.0.0 no\nreally"))
    async with pooling(server) as pool:
        assert await send(pool) == SmtpResult(phase=PHASES[phase], code=code, text="4.0.0 no\nreally")
        server.on(phase, None)
        assert (await send(pool, "bob@example.org")).code == 250
    assert [t.rcpt for t in server.accepted] == ["bob@example.org"]
    assert len(server.connections) == (1 if phase in IN_TRANSACTION else 2)
    assert server.connections[0].verbs.count("RSET") == (phase in IN_TRANSACTION)


@pytest.mark.parametrize(
    ("action", "fault"),
    [
        (Silence(), Fault.TIMEOUT),
        (Reset(), Fault.DISCONNECTED),
        (Drop(), Fault.DISCONNECTED),
        (Raw(b"what was that?\r\n"), Fault.GARBLED),
        (Raw(b"25"), Fault.TIMEOUT),
        (Reply(199), Fault.GARBLED),
        (Raw(b"x" * 100_000), Fault.GARBLED),
    ],
    ids=["silence", "reset", "disconnect", "garbage", "half a reply", "reply of no known kind", "endless line"],
)
@pytest.mark.parametrize("phase", PHASES)
async def test_no_reply_is_a_fault_in_its_phase_and_the_connection_is_gone(
    server: SmtpServer, phase: Any, action: Any, fault: Fault
) -> None:
    server.on(phase, action)
    patience: dict[str, Any] = {"timeout_s": 0.15, "after_dot_timeout_s": 0.15} if fault is Fault.TIMEOUT else {}
    async with pooling(server, **patience) as pool:
        result = await send(pool)
        assert (result.phase, result.code, result.fault) == (PHASES[phase], None, fault)
        server.on(phase, None)
        assert (await send(pool, "bob@example.org")).code == 250
    assert [t.rcpt for t in server.accepted] == ["bob@example.org"]
    assert len(server.connections) == 2


@pytest.mark.parametrize(
    "action", [Reply(421, "4.7.0 too many"), Raw(b"421 4.7.0 too many\r\n")], ids=["closing", "not"]
)
@pytest.mark.parametrize("phase", PHASES)
async def test_421_closes_wherever_it_comes(server: SmtpServer, phase: Any, action: Any) -> None:
    """Whether or not the server then does what it announces."""
    server.on(phase, action, times=1)
    async with pooling(server) as pool:
        assert await send(pool) == SmtpResult(phase=PHASES[phase], code=421, text="4.7.0 too many")
        assert (await send(pool)).code == 250
    assert len(server.connections) == 2


async def test_a_success_in_the_wrong_place_is_garbled(server: SmtpServer) -> None:
    """A 250 to DATA is neither a go nor a refusal: the body is not sent into it."""
    server.on("data", Reply(250, "ok"), times=1)
    async with pooling(server) as pool:
        assert await send(pool) == SmtpResult(phase=Phase.DATA, fault=Fault.GARBLED, text="250 ok")
        assert (await send(pool)).code == 250
    assert len(server.connections) == 2


async def test_a_failed_rset_is_a_new_connection_and_no_failure(server: SmtpServer) -> None:
    server.on("rcpt", Reply(550, "5.1.1 unknown"), times=1)
    server.on("rset", Reply(500, "what"))
    async with pooling(server) as pool:
        assert (await send(pool)).code == 550
        assert (await send(pool)).code == 250
    assert len(server.connections) == 2


async def test_a_cancelled_mail_does_not_hand_its_reply_to_the_next(server: SmtpServer) -> None:
    """With aiosmtplib's own client the next recipient got this one's 550."""
    server.on("rcpt", lambda t: Reply(550, "5.1.1 unknown", delay_s=0.2) if "bad" in t.rcpt else None)
    async with pooling(server, size=1) as pool:
        task = asyncio.create_task(send(pool, "bad@example.org"))
        await eventually(lambda: server.connections and "RCPT" in server.connections[0].verbs)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await send(pool, "good@example.org")).code == 250
    assert [t.rcpt for t in server.accepted] == ["good@example.org"]
    assert [t.connection for t in server.accepted] == [1]


async def test_under_random_cancels_every_reply_is_ones_own(server: SmtpServer) -> None:
    """S5: a permanent refusal is only ever that of the mail's own transaction."""
    chance = random.Random(7)
    server.on("rcpt", lambda t: Reply(550, t.rcpt) if "bad" in t.rcpt else Reply(250, delay_s=chance.random() / 200))
    server.on("dot", lambda t: Reply(250, f"took {t.rcpt}"))
    recipients = [f"{'bad' if n % 3 == 0 else 'good'}{n}@example.org" for n in range(300)]

    async def impatiently(recipient: str) -> SmtpResult | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(chance.random() / 5):
                return await send(pool, recipient)
        return None

    async with pooling(server, size=8) as pool:
        results = await asyncio.gather(*(impatiently(recipient) for recipient in recipients))
        assert (await send(pool, "good@example.org")).code == 250
    told = [(recipient, result) for recipient, result in zip(recipients, results, strict=True) if result is not None]
    assert 0 < len(told) < len(recipients)
    for recipient, result in told:
        assert (result.code, result.text) == ((550, recipient) if "bad" in recipient else (250, f"took {recipient}"))


@pytest.mark.parametrize("phase", PHASES)
async def test_a_cancel_closes_and_propagates_in_every_phase(server: SmtpServer, phase: Any) -> None:
    server.on(phase, Silence())
    async with pooling(server, size=1) as pool:
        task = asyncio.create_task(send(pool))
        reached = {"greeting": "", "dot": "DATA"}.get(phase, phase.upper())
        await eventually(lambda: server.connections and (not reached or reached in server.connections[0].verbs))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: not server.connections[0].open)
        server.on(phase, None)
        assert (await send(pool)).code == 250


async def test_a_cancel_that_comes_with_the_reply_is_not_forgotten(
    server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio.wait_for of Python 3.11 would swallow it, and the mail would go on to the body."""
    tasks: list[asyncio.Task[SmtpResult]] = []
    hear = SMTPProtocol.data_received

    def hear_and_cancel(self: SMTPProtocol, data: bytes) -> None:
        hear(self, data)
        for task in tasks:
            task.cancel()

    monkeypatch.setattr(SMTPProtocol, "data_received", hear_and_cancel)
    async with pooling(server) as pool:
        conn = await connection(pool)
        tasks.append(asyncio.create_task(conn.send(mail_to("ada@example.org"), SENDER, before_dot=lambda: True)))
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert (conn.phase, conn.clean) == (Phase.MAIL, False)
        pool.release(conn)


async def test_a_reply_after_the_dot_that_does_not_come_is_unknown(server: SmtpServer) -> None:
    server.on("dot", Late(delay_s=10))
    async with pooling(server, after_dot_timeout_s=0.1) as pool:
        result = await send(pool)
    assert (result.phase, result.fault) == (Phase.DOT, Fault.TIMEOUT)
    assert len(server.accepted) == 1


@pytest.mark.parametrize("action", [Reset(accept=True), Drop(accept=True)])
async def test_a_mail_taken_without_a_word_is_unknown(server: SmtpServer, action: Any) -> None:
    server.on("dot", action)
    async with pooling(server) as pool:
        result = await send(pool)
    assert (result.phase, result.fault) == (Phase.DOT, Fault.DISCONNECTED)
    assert len(server.accepted) == 1


async def test_a_reset_within_the_body_counts_as_after_the_dot(server: SmtpServer) -> None:
    """The server cannot have taken it, but from here that cannot be told."""
    server.on("data", Reset(body_bytes=100))
    async with pooling(server) as pool:
        result = await send(pool, body=b"line\r\n" * 1000)
    assert (result.phase, result.fault) == (Phase.DOT, Fault.DISCONNECTED)
    assert server.accepted == []


async def test_the_dot_is_patient_where_commands_are_not(server: SmtpServer) -> None:
    server.on("dot", Reply(250, "slowly", delay_s=0.5))
    async with pooling(server, timeout_s=0.2) as pool:
        assert (await send(pool)).code == 250


async def test_a_lost_lease_sends_nothing(server: SmtpServer) -> None:
    async with pooling(server) as pool:
        conn = await connection(pool)
        result = await conn.send(mail_to("ada@example.org"), SENDER, before_dot=lambda: False)
        assert result == SmtpResult(phase=Phase.DATA, fault=Fault.LEASE_LOST)
        assert not conn.clean
        pool.release(conn)
        await eventually(lambda: not server.connections[0].open)
        assert [t.content for t in server.transactions] == [b""]
        assert (await send(pool)).code == 250
    assert len(server.accepted) == 1


async def test_the_lease_is_asked_after_354_and_not_before(server: SmtpServer) -> None:
    asked: list[list[str]] = []
    out_by_then: list[bool] = []
    async with pooling(server) as pool:
        conn = await connection(pool)

        def before_dot() -> bool:
            asked.append(list(server.connections[0].verbs))
            asyncio.get_running_loop().call_soon(lambda: out_by_then.append(conn.awaiting_dot_reply))
            return True

        await conn.send(mail_to("ada@example.org"), SENDER, before_dot=before_dot)
        assert asked == [["EHLO", "MAIL", "RCPT", "DATA"]]
        assert out_by_then == [True], "something was awaited between the question and the dot"
        with pytest.raises(ZeroDivisionError):
            await conn.send(mail_to("ada@example.org"), SENDER, before_dot=lambda: 1 // 0 == 0)
        assert not conn.clean
        pool.release(conn)
    assert len(server.accepted) == 1


async def test_who_waits_for_the_dot_can_be_told(server: SmtpServer) -> None:
    """Shutdown waits for these alone. After a cancel the phase says how far it had come."""
    server.on("rcpt", Late(delay_s=0.2))
    server.on("dot", Silence(accept=True))
    async with pooling(server) as pool:
        conn = await connection(pool)
        assert not conn.awaiting_dot_reply
        task = asyncio.create_task(conn.send(mail_to("ada@example.org"), SENDER, before_dot=lambda: True))
        await eventually(lambda: conn.phase is Phase.RCPT)
        assert not conn.awaiting_dot_reply
        await eventually(lambda: server.accepted)
        assert conn.awaiting_dot_reply
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (conn.phase, conn.awaiting_dot_reply, conn.clean) == (Phase.DOT, False, False)
        pool.release(conn)


async def test_a_connection_is_rotated_after_so_many_mails(server: SmtpServer) -> None:
    async with pooling(server, max_mails=3) as pool:
        for _ in range(7):
            assert (await send(pool)).code == 250
    assert [t.connection for t in server.accepted] == [0, 0, 0, 1, 1, 1, 2]


async def test_a_connection_is_rotated_by_age_when_taken_and_when_given_back(server: SmtpServer) -> None:
    now = 1000.0
    async with pooling(server, max_age_s=60, clock=lambda: now) as pool:
        assert (await send(pool)).code == 250
        now += 59
        assert (await send(pool)).code == 250
        now += 1
        conn = await connection(pool)
        now += 60
        pool.release(conn)
        await eventually(lambda: not any(session.open for session in server.connections))
        assert (await send(pool)).code == 250
    assert [t.connection for t in server.accepted] == [0, 0, 2]


async def test_an_idle_connection_closed_by_the_server_is_replaced_unnoticed(server: SmtpServer) -> None:
    async with pooling(server) as pool:
        assert (await send(pool)).code == 250
        server.close_idle()
        await eventually(lambda: not server.connections[0].open)
        assert (await send(pool)).code == 250
    assert [t.connection for t in server.accepted] == [0, 1]


async def test_a_reused_connection_that_dies_at_mail_says_that_it_was_not_fresh(server: SmtpServer) -> None:
    async with pooling(server, size=3) as pool:
        conns = [await connection(pool) for _ in range(2)]
        assert [conn.fresh for conn in conns] == [True, True]
        for conn in conns:
            pool.release(conn)
        server.on("mail", Drop(), times=1)
        conn = await connection(pool)
        result = await conn.send(mail_to("ada@example.org"), SENDER, before_dot=lambda: True)
        assert result == SmtpResult(phase=Phase.MAIL, fault=Fault.DISCONNECTED, text=result.text)
        assert not conn.fresh
        pool.release(conn)
        pool.refresh()
        again = await connection(pool)
        assert again.fresh
        await eventually(lambda: [session.open for session in server.connections] == [False, False, True])
        assert (await again.send(mail_to("ada@example.org"), SENDER, before_dot=lambda: True)).code == 250
        assert not again.fresh
        pool.release(again)


async def test_a_new_connection_that_dies_at_mail_stays_fresh(server: SmtpServer) -> None:
    """So nobody takes the disconnect for a sign of age, and retries for ever."""
    server.on("mail", Drop())
    async with pooling(server) as pool:
        conn = await connection(pool)
        result = await conn.send(mail_to("ada@example.org"), SENDER, before_dot=lambda: True)
        assert (result.fault, conn.fresh) == (Fault.DISCONNECTED, True)
        pool.release(conn)


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data"])
async def test_two_replies_to_one_command_end_the_dialogue(server: SmtpServer, phase: Any) -> None:
    """aiosmtplib keeps the surplus and gives it to the next command as its reply."""
    codes = {"mail": 250, "rcpt": 250, "data": 354}
    server.on(phase, Raw(f"{codes[phase]} ok\r\n250 ok too\r\n".encode()), times=1)
    async with pooling(server) as pool:
        assert (await send(pool)).fault is Fault.GARBLED
        assert (await send(pool, "bob@example.org")).code == 250
    assert [(t.rcpt, t.connection) for t in server.accepted] == [("bob@example.org", 1)]


@pytest.mark.parametrize("surplus", [b"250 ok\r\n550 5.1.1 unknown\r\n", b"250 ok\r\n5"])
async def test_a_surplus_after_the_last_reply_is_not_left_for_the_next_mail(server: SmtpServer, surplus: bytes) -> None:
    server.on("dot", Raw(surplus), times=1)
    async with pooling(server) as pool:
        assert (await send(pool)).code == 250
        assert (await send(pool, "bob@example.org")).code == 250
    assert [(t.rcpt, t.connection) for t in server.accepted] == [("bob@example.org", 1)]


async def test_a_word_said_between_two_mails_retires_the_connection(server: SmtpServer) -> None:
    async with pooling(server) as pool:
        conn = await connection(pool)
        server.connections[0].writer.write(b"550 5.1.1 unknown\r\n")
        await eventually(lambda: not conn.clean)
        pool.release(conn)
        assert (await send(pool)).code == 250
    assert [t.connection for t in server.accepted] == [1]


async def test_words_that_are_no_utf8_become_text_that_can_be_written_down(server: SmtpServer) -> None:
    server.on("rcpt", Raw(b"550 5.1.1 inconnu \xe9\r\n"))
    async with pooling(server) as pool:
        result = await send(pool)
    assert (result.code, result.text) == (550, "5.1.1 inconnu ?")


async def test_no_more_than_size_connections_exist(server: SmtpServer) -> None:
    server.on("dot", Late(delay_s=0.02))
    async with pooling(server, size=3) as pool:
        results = await asyncio.gather(*(send(pool, f"u{n}@example.org") for n in range(30)))
    assert {result.code for result in results} == {250}
    assert len(server.connections) == 3
    assert len({t.rcpt for t in server.accepted}) == 30


async def test_failures_and_cancels_give_their_place_back(server: SmtpServer) -> None:
    async with pooling(server, size=1) as pool:
        server.on("greeting", Silence())
        task = asyncio.create_task(pool.acquire())
        await eventually(lambda: server.connections)
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        for each in (task, waiting):
            each.cancel()
            with pytest.raises(asyncio.CancelledError):
                await each
        server.on("greeting", Reply(554, "no"))
        for _ in range(3):
            assert (await send(pool)).code == 554
        server.on("greeting", None)
        conn = await connection(pool)
        pool.release(conn)
        pool.release(conn)
        taken = await connection(pool)
        late = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        assert not late.done()
        pool.release(taken)
        assert await late is conn


async def test_refused_and_back_again(server: SmtpServer) -> None:
    async with pooling(server) as pool:
        assert (await send(pool)).code == 250
        await server.refuse()
        result = await send(pool)
        if result.phase is Phase.MAIL:  # the reset had not been heard of yet
            result = await send(pool)
        assert (result.phase, result.fault) == (Phase.CONNECT, Fault.REFUSED)
        await server.listen()
        assert (await send(pool)).code == 250


async def test_a_name_that_does_not_resolve_is_dns(server: SmtpServer) -> None:
    pool = SmtpPool(SmtpEndpoint(host="nowhere.invalid", port=25, mode="plain"), size=1)
    result = await pool.acquire()
    assert isinstance(result, SmtpResult)
    assert (result.phase, result.fault) == (Phase.CONNECT, Fault.DNS)
    await pool.close()


async def test_close_cuts_those_in_use_and_lets_nobody_in(server: SmtpServer) -> None:
    server.on("rcpt", Silence())
    pool = pool_for(server, size=1)
    task = asyncio.create_task(send(pool))
    await eventually(lambda: server.connections and "RCPT" in server.connections[0].verbs)
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    await pool.close()
    assert (await task).fault is Fault.CANCELLED
    assert await waiting == SmtpResult(phase=Phase.CONNECT, fault=Fault.CANCELLED)
    await eventually(lambda: not any(session.open for session in server.connections))


@pytest.mark.parametrize("mode", ["starttls", "tls"])
async def test_tls_and_credentials(certificate: tuple[Path, ssl.SSLContext], mode: str) -> None:
    ca, context = certificate
    async with SmtpServer(
        tls=context, tls_mode="starttls" if mode == "starttls" else "implicit", credentials=("mailer", "s3 cret:@")
    ) as server:
        async with pooling(server, mode, ca=ca) as pool:
            assert (await send(pool)).code == 250
            assert (await send(pool)).code == 250
        assert server.connections[0].secure
        assert server.connections[0].authenticated
        assert server.connections[0].verbs.count("EHLO") == (2 if mode == "starttls" else 1)
        assert len(server.connections) == 1


@pytest.mark.parametrize("methods", ["PLAIN LOGIN", "LOGIN", "XOAUTH2"])
async def test_login_is_used_where_plain_is_not_offered(methods: str) -> None:
    async with SmtpServer(credentials=("mailer", "secret"), auth_methods=methods) as server, pooling(server) as pool:
        assert (await send(pool)).code == 250
        (auth,) = [c for c in server.connections[0].commands if c.startswith("AUTH")]
        assert auth.split()[1] == ("LOGIN" if methods == "LOGIN" else "PLAIN")


@pytest.mark.parametrize("methods", ["PLAIN", "LOGIN"])
async def test_wrong_credentials_are_the_servers_535(methods: str) -> None:
    async with SmtpServer(credentials=("mailer", "secret"), auth_methods=methods) as server:
        endpoint = SmtpEndpoint(host="127.0.0.1", port=server.port, mode="plain", username="mailer", password="wrong")
        pool = SmtpPool(endpoint, size=1)
        result = await pool.acquire()
        await pool.close()
        assert result == SmtpResult(phase=Phase.AUTH, code=535, text="5.7.8 bad credentials")


async def test_credentials_where_auth_is_not_offered_are_a_reply_in_phase_auth(server: SmtpServer) -> None:
    endpoint = SmtpEndpoint(host="127.0.0.1", port=server.port, mode="plain", username="mailer", password="secret")
    pool = SmtpPool(endpoint, size=1)
    assert await pool.acquire() == SmtpResult(phase=Phase.AUTH, code=502, text="5.5.1 not offered")
    await pool.close()


async def test_a_server_stripped_of_starttls_gets_no_mail(server: SmtpServer) -> None:
    async with pooling(server, "starttls") as pool:
        result = await send(pool)
    assert result == SmtpResult(phase=Phase.STARTTLS, fault=Fault.STARTTLS_NOT_OFFERED)
    await eventually(lambda: not server.connections[0].open)
    assert server.connections[0].verbs == ["EHLO"]


@pytest.mark.parametrize(
    ("action", "code", "fault"),
    [
        (Reply(454, "4.7.0 not now"), 454, None),
        (Silence(), None, Fault.TIMEOUT),
        (Drop(), None, Fault.DISCONNECTED),
        (Raw(b"220 go\r\nno TLS at all, sorry\r\n"), None, Fault.TLS),
    ],
)
async def test_starttls_that_fails_is_reported_in_its_phase(
    certificate: tuple[Path, ssl.SSLContext], action: Any, code: int | None, fault: Fault | None
) -> None:
    ca, context = certificate
    async with SmtpServer(tls=context) as server:
        server.on("starttls", action)
        async with pooling(server, "starttls", ca=ca, timeout_s=0.3) as pool:
            result = await send(pool)
        assert (result.phase, result.code, result.fault) == (Phase.STARTTLS, code, fault)
        assert server.transactions == []


@pytest.mark.parametrize(("mode", "phase"), [("starttls", Phase.STARTTLS), ("tls", Phase.CONNECT)])
async def test_a_certificate_of_an_unknown_ca_is_refused(
    certificate: tuple[Path, ssl.SSLContext], mode: str, phase: Phase
) -> None:
    _, context = certificate
    async with (
        SmtpServer(tls=context, tls_mode="starttls" if mode == "starttls" else "implicit") as server,
        pooling(server, mode) as pool,
    ):
        result = await send(pool)
        assert (result.phase, result.fault) == (phase, Fault.TLS)
        assert "certificate verify failed" in result.text
        assert server.transactions == []


async def test_implicit_tls_to_a_server_that_speaks_none_fails_at_connect(
    server: SmtpServer, certificate: tuple[Path, ssl.SSLContext]
) -> None:
    async with pooling(server, "tls", ca=certificate[0]) as pool:
        result = await send(pool)
    assert (result.phase, result.fault) == (Phase.CONNECT, Fault.TLS)


async def test_a_connection_over_tls_is_closed_at_once_by_a_cancel(certificate: tuple[Path, ssl.SSLContext]) -> None:
    ca, context = certificate
    async with SmtpServer(tls=context) as server, pooling(server, "starttls", ca=ca, size=1) as pool:
        server.on("rcpt", Silence())
        task = asyncio.create_task(send(pool))
        await eventually(lambda: server.connections and "RCPT" in server.connections[0].verbs)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: not server.connections[0].open)
        server.on("rcpt", None)
        assert (await send(pool)).code == 250


@pytest.mark.parametrize(("given", "said"), [("mail.example.org", "EHLO mail.example.org"), (None, None)])
async def test_ehlo_names_the_host_or_gives_an_address(server: SmtpServer, given: str | None, said: str | None) -> None:
    async with pooling(server, local_hostname=given) as pool:
        await send(pool)
    name = server.connections[0].commands[0]
    assert name == said if said else ("." in name)
    with pytest.raises(ValueError, match="allowed is a host name"):
        pool_for(server, local_hostname="no host\r\nQUIT")
