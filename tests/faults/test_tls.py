"""A2 and TLS: the identity of the broker and of the client, and the errors if one is wrong."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.application import running
from tests.client import connected
from tests.command import Application, write_package
from tests.command import running as process
from tests.consumers import collector
from tests.ports import free_port
from tests.rabbit import PrivateRabbit, missing
from tests.records import errors, everything, fields
from tests.waiting import eventually
from workerkit import Action, Runner
from workerkit.health import abort_reasons
from workerkit.tasks import Backoff

NAME = "rabbit.internal"
"""A name that the broker's certificate has, and no resolver knows."""

USER = "worker"
"""The common name of the client's certificate, and a user of the broker."""

PASSWORD = "hunter22"
UNVERIFIED = "the broker's certificate is not verified"


@dataclass(frozen=True, slots=True)
class Encrypted:
    """A node with a TLS port, and the files that belong to it.

    Attributes:
        other_ca: A certificate authority that did not sign the server's certificate.
    """

    node: PrivateRabbit
    port: int
    ca: Path
    other_ca: Path
    cert: Path
    key: Path

    def url(self, host: str = "localhost", user: str = "guest", password: str = "guest") -> str:
        """Address of the TLS port."""
        return f"amqps://{user}:{password}@{host}:{self.port}/"

    def clients(self) -> str:
        """The names in the certificates of the clients that are connected."""
        return self.node.eval(
            "[Name || Pid <- rabbit_networking:connections(), {peer_cert_subject, Name}"
            " <- (catch rabbit_networking:connection_info(Pid, [peer_cert_subject]))]"
        )


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    """A node that speaks TLS, and logs clients in by their certificates."""
    assert missing() is None
    files = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    server = ca.issue_cert(NAME, "localhost")
    client = ca.issue_cert("worker@shop.example", common_name=USER)
    ca.cert_pem.write_to_path(str(files / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(files / "other.pem"))
    client.private_key_pem.write_to_path(str(files / "client.key"))
    client.cert_chain_pems[0].write_to_path(str(files / "client.pem"))
    server.private_key_pem.write_to_path(str(files / "server.key"))
    server.cert_chain_pems[0].write_to_path(str(files / "server.pem"))
    port = free_port()
    conf = f"""
        listeners.ssl.1 = 127.0.0.1:{port}
        ssl_options.cacertfile = {files}/ca.pem
        ssl_options.certfile = {files}/server.pem
        ssl_options.keyfile = {files}/server.key
        ssl_options.verify = verify_peer
        ssl_options.fail_if_no_peer_cert = false
        auth_mechanisms.1 = PLAIN
        auth_mechanisms.2 = EXTERNAL
        ssl_cert_login_from = common_name
    """
    with PrivateRabbit("\n".join(map(str.strip, conf.splitlines()))) as node:
        node.add_user(USER, PASSWORD)
        yield Encrypted(
            node,
            port,
            files / "ca.pem",
            files / "other.pem",
            files / "client.pem",
            files / "client.key",
        )


@asynccontextmanager
async def consuming(
    url: str, *, ready: bool = True, auth: str = "plain", **tls: object
) -> AsyncIterator[Runner]:
    """Run one consumer over a connection with these settings."""
    consumer, _ = collector("orders", on_invalid=Action.REJECT)
    amqp: dict[str, Any] = {"default": {"url": url, "auth": auth, "tls": tls}}
    async with running(url, consumer, ready=ready, amqp=amqp) as runner:
        yield runner


async def given_up(runner: Runner) -> str:
    """Wait until the start has failed, and return the only reason."""
    [reason] = await eventually(lambda: abort_reasons(runner.health))
    return reason


async def test_messages_arrive_over_tls(encrypted: Encrypted) -> None:
    """With the broker's CA everything works as without TLS, and is encrypted."""
    consumer, bodies = collector("encrypted")
    amqp = {"default": {"url": encrypted.url(), "tls": {"ca": encrypted.ca}}}
    body = bytes(300_000)
    async with running("", consumer, amqp=amqp), connected(encrypted.node.url()) as client:
        await client.send("encrypted", body)
        await eventually(lambda: bodies == [body])
        encryptions = encrypted.node.eval(
            "[On || Pid <- rabbit_networking:connections(), {ssl, On}"
            " <- (catch rabbit_networking:connection_info(Pid, [ssl]))]"
        )

    # Consumers, the publisher of dead letters, and the plain client of this test.
    assert sorted(encryptions.strip("[]").split(",")) == ["false", "true", "true"]


async def test_a_client_certificate_is_shown_to_the_broker(encrypted: Encrypted) -> None:
    """`cert` and `key` identify the client."""
    async with consuming(
        encrypted.url(), ca=encrypted.ca, cert=encrypted.cert, key=encrypted.key
    ) as runner:
        shown = encrypted.clients()

    assert runner.health
    assert f"CN={USER}" in shown


async def test_the_server_name_may_differ_from_the_host(encrypted: Encrypted) -> None:
    """A broker with another address is verified by the name in its certificate."""
    async with consuming(encrypted.url("127.0.0.1"), ca=encrypted.ca, server_name=NAME) as runner:
        ready = runner.ready

    assert ready


async def test_an_unverified_certificate_is_warned_about(
    encrypted: Encrypted, caplog: pytest.LogCaptureFixture
) -> None:
    """`verify = false` connects to any server, with a WARNING."""
    async with consuming(encrypted.url("127.0.0.1"), verify=False) as runner:
        ready = runner.ready

    [warning] = fields(caplog, UNVERIFIED)
    assert ready
    assert warning["levelname"] == "WARNING"
    assert f"127.0.0.1:{encrypted.port}" in warning["broker"]


# Errors, after three attempts


CONSUMERS = """
    from workerkit import Action, AMQPConsumer

    class Collector(AMQPConsumer):
        queues = ["orders"]
        on_invalid = Action.REJECT

        async def handle(self, body: bytes) -> None: ...
"""


async def ended(app: Application) -> tuple[int, str]:
    """Wait for the end; return the exit code, and the only line that is not a log record."""
    code = await app.ended()
    [line] = [line for line in app.err if line.startswith("amqp")]
    return code, line


@pytest.mark.parametrize(
    ("host", "tls", "reason"),
    [
        ("localhost", {"CA": "other.pem"}, "certificate verify failed"),
        ("localhost", {}, "certificate verify failed"),
        ("127.0.0.1", {"CA": "ca.pem"}, "certificate is not valid for '127.0.0.1'"),
        ("localhost", {"CA": "ca.pem", "SERVER_NAME": "x.example"}, "not valid for 'x.example'"),
    ],
    ids=[
        "unknown CA",
        "unknown to the system",
        "wrong host name",
        "wrong server name",
    ],
)
async def test_a2_a_failed_tls_handshake(
    encrypted: Encrypted,
    caplog: pytest.LogCaptureFixture,
    host: str,
    tls: dict[str, str],
    reason: str,
) -> None:
    """Three attempts, and one line with host, virtual host, user and reason; no password."""
    files = encrypted.ca.parent
    settings = {
        name.lower(): text if name == "SERVER_NAME" else str(files / text)
        for name, text in tls.items()
    }
    url = encrypted.url(host, USER, PASSWORD)
    async with consuming(url, ready=False, **settings) as runner:
        line = await given_up(runner)

    attempts = [each["attempt"] for each in fields(caplog, "connection failed")]
    assert line.startswith(f"amqps://{USER}@{host}:{encrypted.port}/ (virtual host '/')")
    assert reason in line
    assert attempts[:3] == [1, 2, 3]
    assert set(errors(caplog)) == {"connection failed"}
    assert PASSWORD not in everything(caplog) + line


async def test_a2_unknown_ca_in_a_process(encrypted: Encrypted, tmp_path: Path) -> None:
    """The process exits with 1 after the third attempt, with the reason in one line."""
    name = write_package(tmp_path, consumers=CONSUMERS)
    async with process(
        name,
        cwd=tmp_path,
        WORKERKIT_AMQP__DEFAULT__URL=encrypted.url("localhost", USER, PASSWORD),
        WORKERKIT_AMQP__DEFAULT__TLS__CA=str(encrypted.other_ca),
        WORKERKIT_LOG__LEVEL="DEBUG",
    ) as app:
        code, line = await ended(app)

    assert code == 1
    assert line == app.err[-1]
    assert f"{USER}@localhost:{encrypted.port}/ (virtual host '/')" in line
    assert "certificate verify failed" in line
    assert len([each for each in app.err if "connection failed" in each]) == 3
    assert PASSWORD not in repr(app)


@pytest.mark.parametrize(
    ("user", "password", "vhost", "scheme", "reason"),
    [
        (USER, PASSWORD, "/", "amqp", "ACCESS_REFUSED"),
        ("guest", "guest", "nowhere", "amqp", "vhost nowhere not found"),
        ("guest", "guest", "/", "amqps", "TLS failed"),
    ],
    ids=["wrong credentials", "missing virtual host", "TLS to a plain port"],
)
async def test_a2_refused_in_a_process(
    rabbit: PrivateRabbit,
    tmp_path: Path,
    user: str,
    password: str,
    vhost: str,
    scheme: str,
    reason: str,
) -> None:
    """Three attempts, exit code 1, one line with host, virtual host, user and reason."""
    name = write_package(tmp_path, consumers=CONSUMERS)
    async with process(
        name,
        cwd=tmp_path,
        WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost, user, password).replace("amqp", scheme, 1),
        WORKERKIT_LOG__LEVEL="DEBUG",
    ) as app:
        code, line = await ended(app)

    assert code == 1
    assert line == app.err[-1]
    assert f"{user}@127.0.0.1:{rabbit.port}/" in line
    assert f"(virtual host {vhost!r})" in line
    assert reason in line
    assert len([each for each in app.err if "connection failed" in each]) == 3
    assert PASSWORD not in repr(app)


async def test_a2_a_refused_connection_is_retried_for_ever_if_another_works(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path
) -> None:
    """The other consumer works, and the refused one is ready when it is permitted."""
    consumers = """
        from workerkit import AMQPConsumer

        class Refused(AMQPConsumer):
            queues = ["refused"]
            connection = "other"

            async def handle(self, body: str) -> None:
                print("refused handled", body, flush=True)

        class Fine(AMQPConsumer):
            queues = ["fine"]

            async def handle(self, body: str) -> None:
                print("fine handled", body, flush=True)
    """
    user = f"late-{vhost}"
    name = write_package(tmp_path, consumers=consumers)
    async with (
        process(
            name,
            cwd=tmp_path,
            WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost),
            WORKERKIT_AMQP__OTHER__URL=rabbit.url(vhost, user, PASSWORD),
        ) as app,
        connected(rabbit.url(vhost)) as client,
    ):
        await app.says("attempt=4")
        await client.send("fine", b"a")
        await app.says("fine handled a")
        rabbit.add_user(user, PASSWORD, vhost)
        await eventually(lambda: "refused" in rabbit.queues(vhost))
        await client.send("refused", b"b")
        await app.says("refused handled b")
        app.send(signal.SIGTERM)
        code = await app.ended()

    assert code == 0
    assert PASSWORD not in repr(app)


async def test_a2_a_connection_that_was_ready_is_retried_for_ever(
    rabbit: PrivateRabbit,
    vhost: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A password that is changed while the process runs does not end it."""
    monkeypatch.setattr("workerkit.amqp.connection.Backoff", partial(Backoff, first=0.2, cap=0.5))
    user = f"worker-{vhost}"
    rabbit.add_user(user, "before", vhost)
    consumer, _ = collector("orders")
    async with running(rabbit.url(vhost, user, "before"), consumer) as runner:
        _change_password(rabbit, user, "after")
        _close_connections_of(rabbit, user)
        await eventually(
            lambda: any(
                (each["attempt"], each["role"]) == (4, "consumers")
                for each in fields(caplog, "connection failed")
            )
        )
        hope = abort_reasons(runner.health) == []
        reason = runner.health[0].reason
        _change_password(rabbit, user, "before")
        await eventually(lambda: runner.ready)

    assert hope
    assert user in reason
    assert "ACCESS_REFUSED" in reason


# SASL EXTERNAL


async def test_a2_external_without_support_of_the_broker(rabbit: PrivateRabbit, url: str) -> None:
    """The error names the login mechanism that the broker does not support."""
    async with consuming(url, ready=False, auth="external") as runner:
        reason = await given_up(runner)

    assert f"guest@127.0.0.1:{rabbit.port}/" in reason
    assert "EXTERNAL" in reason
    assert "PLAIN" in reason


async def test_external_logs_in_by_the_certificate(encrypted: Encrypted) -> None:
    """With the broker's plugin no password is needed."""
    await asyncio.to_thread(
        encrypted.node.eval,
        "{ok, File} = application:get_env(rabbit, enabled_plugins_file),"
        ' ok = file:write_file(File, "[rabbitmq_auth_mechanism_ssl].\\n"),'
        " rabbit_plugins:ensure(File)",
        30.0,
    )
    async with consuming(
        f"amqps://localhost:{encrypted.port}/",
        auth="external",
        ca=encrypted.ca,
        cert=encrypted.cert,
        key=encrypted.key,
    ) as runner:
        users = encrypted.node.eval(
            "[User || Pid <- rabbit_networking:connections(), {user, User}"
            " <- (catch rabbit_networking:connection_info(Pid, [user]))]"
        )

    assert runner.health
    assert f'<<"{USER}">>' in users


def _change_password(rabbit: PrivateRabbit, user: str, password: str) -> None:
    rabbit.eval(
        f'ok = rabbit_auth_backend_internal:change_password(<<"{user}">>, <<"{password}">>,'
        ' <<"tests">>)'
    )


def _close_connections_of(rabbit: PrivateRabbit, user: str) -> None:
    rabbit.eval(
        '[rabbit_networking:close_connection(Pid, "maintenance")'
        " || Pid <- rabbit_networking:connections(),"
        " (catch rabbit_networking:connection_info(Pid, [user]))"
        f' =:= [{{user, <<"{user}">>}}]]'
    )
