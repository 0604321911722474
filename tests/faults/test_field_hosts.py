"""FR5. Several servers, and several addresses of one server."""

import asyncio
import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.application import running
from tests.client import connected
from tests.command import workerkit, write_package
from tests.consumers import collector
from tests.host_names import LOOPS, Deaf, run
from tests.ports import free_port
from tests.proxy import Proxy
from tests.rabbit import PrivateRabbit
from tests.records import errors, fields
from tests.waiting import eventually
from workerkit.amqp.addresses import ConnectionAttempt, ServerRotation
from workerkit.amqp.session import connect
from workerkit.config.connections import AMQPSettings
from workerkit.config.hosts import Host
from workerkit.errors import ConnectionLost

ROLES = {"consumers", "publisher"}

loops = pytest.mark.parametrize("loop", sorted(LOOPS))


@pytest.fixture
def _from_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start every connection with the first server of its list, not with a random one."""

    class InOrder(ServerRotation):
        def __init__(self) -> None:
            super().__init__()
            self._next = 0

    monkeypatch.setattr("workerkit.amqp.connection.ServerRotation", InOrder)
    monkeypatch.setattr("workerkit.amqp.session.ServerRotation", InOrder)


def of_role(caplog: pytest.LogCaptureFixture, message: str, role: str) -> list[dict[str, Any]]:
    return [each for each in fields(caplog, message) if each["role"] == role]


@pytest.mark.usefixtures("_from_the_first_one")
@pytest.mark.parametrize("role", sorted(ROLES))
async def test_fr5_a_host_that_is_down_causes_no_pause(
    rabbit: PrivateRabbit, vhost: str, url: str, caplog: pytest.LogCaptureFixture, role: str
) -> None:
    """Consumers and publishers try the next host immediately; the records name each."""
    caplog.set_level(logging.INFO, "workerkit")
    consumer, bodies = collector("orders")
    down = f"127.0.0.1:{free_port()}"
    hosts = [down, f"127.0.0.1:{rabbit.port}"]
    amqp = {"default": {"url": url, "hosts": hosts}}
    async with running("", consumer, amqp=amqp), connected(url) as client:
        await client.send("orders", b"x")
        await eventually(lambda: bodies == [b"x"])
        await eventually(lambda: of_role(caplog, "connected", role))

    [failed] = of_role(caplog, "connection failed", role)
    [made] = of_role(caplog, "connected", role)
    assert (failed["attempt"], failed["retry_in"]) == (1, 0.0)
    assert failed["broker"] == f"amqp://guest@{down}/{vhost}"
    assert failed["address"] == down
    assert made["attempt"] == 2
    assert made["broker"] == f"amqp://guest@127.0.0.1:{rabbit.port}/{vhost}"
    assert made["address"] == f"127.0.0.1:{rabbit.port}"
    assert down in failed["error"]


async def test_fr5_there_is_a_pause_when_every_host_has_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A cluster that is down is tried in rounds, with an increasing pause after each."""
    consumer, _ = collector("orders", retry=None)
    hosts = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    amqp = {"default": {"hosts": hosts}}

    def failed() -> list[dict[str, Any]]:
        return of_role(caplog, "connection failed", "consumers")

    async with running("", consumer, amqp=amqp, ready=False):
        await eventually(lambda: len(failed()) >= 6)

    first = failed()[:6]
    assert {each["address"] for each in first[:3]} == set(hosts)
    assert [each["address"] for each in first[3:]] == [each["address"] for each in first[:3]]
    assert [each["attempt"] for each in first] == [1, 2, 3, 4, 5, 6]
    pauses = [each["retry_in"] for each in first]
    assert [bool(pause) for pause in pauses] == [False, False, True] * 2
    assert 0.25 <= pauses[2] <= 0.5 <= pauses[5] <= 1.0


async def test_fr5_after_a_loss_another_host_is_tried_first(
    rabbit: PrivateRabbit, url: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """The process connects to another host immediately, as the lost one may be down."""
    caplog.set_level(logging.INFO, "workerkit")
    # A pause would be longer than this test.
    monkeypatch.setattr("workerkit.amqp.connection.Backoff.next", lambda self: 300.0)
    consumer, bodies = collector("orders")
    async with (
        Proxy("127.0.0.1", rabbit.port) as one,
        Proxy("127.0.0.1", rabbit.port) as other,
        connected(url) as client,
    ):
        hosts = [f"127.0.0.1:{each.port}" for each in (one, other)]
        amqp = {"default": {"url": url, "hosts": hosts}}
        async with running("", consumer, amqp=amqp) as runner:
            [made] = of_role(caplog, "connected", "consumers")
            left, right = (one, other) if made["address"] == hosts[0] else (other, one)
            left.refuse()
            left.drop()
            await eventually(lambda: len(of_role(caplog, "connected", "consumers")) == 2)
            await client.send("orders", b"x")
            await eventually(lambda: bodies == [b"x"] and runner.ready)
            addresses = [each["address"] for each in of_role(caplog, "connected", "consumers")]

    assert addresses == [f"127.0.0.1:{left.port}", f"127.0.0.1:{right.port}"]


@pytest.mark.usefixtures("_from_the_first_one")
async def test_fr5_commands_try_every_host(rabbit: PrivateRabbit, vhost: str, url: str) -> None:
    """A command that connects once tries each host; if all fail, the error names all."""
    down = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    good = AMQPSettings.model_validate({"url": url, "hosts": [*down, f"127.0.0.1:{rabbit.port}"]})
    bad = AMQPSettings.model_validate({"url": url, "hosts": down})

    session = await connect(good, None, "test")
    await session.close()
    with pytest.raises(ConnectionLost) as caught:
        await connect(bad, None, "test")

    assert all(each in str(caught.value) for each in down)


@loops
def test_fr5_an_address_that_drops_packets_delays_nothing(
    rabbit: PrivateRabbit, vhost: str, url: str, caplog: pytest.LogCaptureFixture, loop: str
) -> None:
    """The next address is tried a quarter of a second later; the first that accepts is used."""
    caplog.set_level(logging.INFO, "workerkit")
    consumer, _ = collector("orders")
    amqp = {"default": {"url": url, "host": "cluster.test", "connect_timeout": 60.0}}

    async def main() -> None:
        async with running("", consumer, amqp=amqp):
            pass

    names = {"cluster.test": ["127.0.0.2", "127.0.0.3", "127.0.0.1"]}
    with Deaf("127.0.0.2", rabbit.port):
        run(loop, main, names)

    [made] = of_role(caplog, "connected", "consumers")
    assert made["attempt"] == 1
    assert made["broker"] == f"amqp://guest@cluster.test:{rabbit.port}/{vhost}"
    assert made["address"] == f"127.0.0.1:{rabbit.port}"
    assert errors(caplog) == []


@loops
def test_fr5_the_error_names_every_address_that_was_tried(
    caplog: pytest.LogCaptureFixture, loop: str
) -> None:
    """If none accepts a connection in time, error and record name all of them."""
    consumer, _ = collector("orders")
    port = free_port()
    url = f"amqp://cluster.test:{port}/"
    amqp = {"default": {"url": url, "connect_timeout": 1.0}}

    async def main() -> None:
        async with running("", consumer, amqp=amqp, ready=False):
            await eventually(lambda: fields(caplog, "connection failed"))

    with Deaf("127.0.0.2", port):
        run(loop, main, {"cluster.test": ["127.0.0.3", "127.0.0.2"]})

    failed = fields(caplog, "connection failed")[0]
    addresses = f"127.0.0.3:{port}, 127.0.0.2:{port}"
    assert failed["address"] == addresses
    assert f"cluster.test:{port}/ (virtual host '/') at {addresses}: no answer" in failed["error"]


@loops
def test_fr5_an_address_that_accepts_and_is_silent_is_tried_last(
    rabbit: PrivateRabbit, url: str, caplog: pytest.LogCaptureFixture, loop: str
) -> None:
    """A frozen node accepts connections: the next attempt begins with another address."""
    caplog.set_level(logging.INFO, "workerkit")
    consumer, _ = collector("orders")
    amqp = {"default": {"url": url, "host": "cluster.test", "connect_timeout": 1.0}}

    async def main() -> None:
        async with running("", consumer, amqp=amqp):
            pass

    with socket.socket() as frozen:
        frozen.bind(("127.0.0.2", rabbit.port))
        frozen.listen(100)
        run(loop, main, {"cluster.test": ["127.0.0.2", "127.0.0.1"]})

    failed = of_role(caplog, "connection failed", "consumers")
    made = of_role(caplog, "connected", "consumers")
    assert {each["address"] for each in failed} == {f"127.0.0.2:{rabbit.port}"}
    assert [each["address"] for each in made] == [f"127.0.0.1:{rabbit.port}"]
    # A busy machine may be late even for the one that answers.
    assert f"127.0.0.2:{rabbit.port}: no answer within 1 s" in failed[0]["error"]


@loops
def test_fr5_concurrent_attempts_leave_no_socket_open(rabbit: PrivateRabbit, loop: str) -> None:
    """The other attempts are closed: a ResourceWarning is an error here."""

    async def main() -> None:
        attempt = ConnectionAttempt(Host("cluster.test", rabbit.port))
        (await attempt.connect()).close()
        assert attempt.address == f"127.0.0.1:{rabbit.port}"
        alone = ConnectionAttempt(Host("deaf.test", rabbit.port))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.6):
                await alone.connect()
        assert len(alone.tried) == 2

    names = {"cluster.test": ["127.0.0.2", "127.0.0.1"], "deaf.test": ["127.0.0.2"] * 2}
    with Deaf("127.0.0.2", rabbit.port):
        run(loop, main, names)


def test_fr5_hosts_are_shown_by_the_commands(tmp_path: Path) -> None:
    """`check` accepts them, `settings` lists them."""
    text = """
        from workerkit import AMQPConsumer

        class Orders(AMQPConsumer):
            queues = ["orders"]

            async def handle(self, body: bytes) -> None: ...
    """
    name = write_package(tmp_path, consumers=text)
    variables = {"WORKERKIT_AMQP__DEFAULT__HOSTS": "a,b:5673"}

    checked = workerkit("check", name, cwd=tmp_path, **variables)
    shown = workerkit("settings", name, cwd=tmp_path, **variables)

    assert checked.returncode == 0, checked
    [row] = [each for each in shown.stdout.splitlines() if "DEFAULT__HOSTS" in each]
    assert "b:5673" in row
    assert "environment" in row
