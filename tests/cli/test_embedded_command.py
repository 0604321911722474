"""The in-process broker from the command line, and as a fixture."""

import asyncio
import shlex
import signal
import sys
from functools import partial
from pathlib import Path

import aiormq

from tests.client import connected
from tests.command import process, running, workerkit, write_package
from workerkit.embedded import EmbeddedBroker

CONSUMERS = """
    from workerkit import AMQPConsumer

    class Each(AMQPConsumer):
        queues = ["work"]

        async def handle(self, body: str) -> None:
            print("handled", body, flush=True)
"""


async def test_the_broker_alone(tmp_path: Path) -> None:
    """Its URL is the first line; it runs until a signal, and exits with 0."""
    command = (sys.executable, "-m", "workerkit", "broker", "--port", "0")
    async with process(*command, cwd=tmp_path) as broker:
        url = await broker.says("amqp://")
        async with connected(url) as client:
            await client.declare("work")
            await client.send("work", b"x")
            letter = await client.take("work")
        broker.send(signal.SIGTERM)
        code = await broker.ended()

    assert broker.out[0] == url
    assert letter.body == b"x"
    assert (code, "Traceback" in repr(broker)) == (0, False)


async def test_fr24_the_broker_of_a_version(tmp_path: Path) -> None:
    """`--behaves-as` sets the imitated RabbitMQ version, which clients see."""
    command = (sys.executable, "-m", "workerkit", "broker", "--port", "0", "--behaves-as", "4.0")
    async with process(*command, cwd=tmp_path) as broker:
        async with await aiormq.connect(await broker.says("amqp://")) as connection:
            stated = connection.server_properties["version"]
        broker.send(signal.SIGTERM)
        code = await broker.ended()

    assert str(stated).startswith("4.0.")
    assert code == 0, broker


async def test_fr24_an_unsupported_version(tmp_path: Path) -> None:
    """One line that names the version and the supported ones, and exit code 2."""
    command = (sys.executable, "-m", "workerkit", "broker", "--port", "0", "--behaves-as", "3.9")
    async with process(*command, cwd=tmp_path) as broker:
        code = await broker.ended()

    assert code == 2, broker
    [line] = broker.err
    assert "'3.9'" in line
    assert '"3.10", "4.0", "4.3"' in line


async def test_a_port_in_use(tmp_path: Path) -> None:
    """One line that names the port, and exit code 2."""
    async with EmbeddedBroker() as other:
        command = (sys.executable, "-m", "workerkit", "broker", "--port", str(other.port))
        async with process(*command, cwd=tmp_path) as broker:
            code = await broker.ended()

    assert code == 2, broker
    [line] = broker.err
    assert str(other.port) in line


async def test_run_with_an_embedded_broker(tmp_path: Path) -> None:
    """The default connection leads to the broker whose URL is the first line."""
    name = write_package(tmp_path, consumers=CONSUMERS)
    async with running(name, "--embedded-broker", cwd=tmp_path) as app:
        url = (await app.says("embedded broker at")).rpartition(" ")[2]
        await app.says("consuming")
        async with connected(url) as client:
            await client.send("work", b"something")
            await app.says("handled something")
        app.send(signal.SIGINT)
        code = await app.ended()

    assert code == 0, app


async def test_fp17_the_printed_command_publishes(tmp_path: Path) -> None:
    """The printed command works in another terminal, and the message is handled."""
    name = write_package(tmp_path, consumers=CONSUMERS)
    async with running(name, "--embedded-broker", cwd=tmp_path) as app:
        line = await app.says("to publish: workerkit publish amqp://")
        await app.says("consuming")
        program, *arguments = shlex.split(line.removeprefix("to publish: "))
        done = await asyncio.to_thread(partial(workerkit, *arguments, cwd=tmp_path))
        await app.says("handled text")
        app.send(signal.SIGTERM)
        code = await app.ended()

    assert program == "workerkit"
    assert (done.returncode, done.stderr) == (0, "")
    assert code == 0
    assert "demos and tests only" in repr(app)


async def test_fp17_the_port_is_the_same_each_time(tmp_path: Path) -> None:
    """The port is 5673 if it is free, else any other, which is printed."""
    name = write_package(tmp_path, consumers=CONSUMERS)
    async with running(name, "--embedded-broker", cwd=tmp_path) as app:
        first = await app.says("embedded broker at ")
        async with running(name, "--embedded-broker", cwd=tmp_path) as app:
            second = await app.says("embedded broker at ")
            # Another process on this machine may use it before the first.
            _, writer = await asyncio.open_connection("127.0.0.1", 5673)
            writer.close()
        ports = [int(line.rpartition(":")[2].rstrip("/")) for line in (first, second)]

    assert ports[0] == 5673 or 5673 not in ports
    assert ports[1] not in (5673, ports[0])


async def test_fp17_the_virtual_host_of_a_class(tmp_path: Path) -> None:
    """The broker has the virtual host, and the printed command uses it."""
    text = CONSUMERS.replace('queues = ["work"]', 'queues = ["work/a b"]; vhost = "logs"')
    name = write_package(tmp_path, consumers=text)
    async with running(name, "--embedded-broker", cwd=tmp_path) as app:
        line = await app.says("to publish: ")
        await app.says("consuming")

    assert line.endswith("/logs 'work/a b' text")


def test_the_fixture(embedded_amqp_broker: EmbeddedBroker) -> None:
    """A synchronous test gets a broker as well, in a separate thread."""
    assert embedded_amqp_broker.queues() == []
    assert embedded_amqp_broker.url.startswith("amqp://guest:guest@127.0.0.1:")
