"""Streams and transports of users are paused and resumed while they run."""

from typing import Any

from tests.application import running
from tests.unit.test_simple_transport import ListConsumer, application
from tests.waiting import eventually
from workerkit import Runner, SSEConsumer
from workerkit.health import State
from workerkit.testing import sse_server

BROKER = "amqp://127.0.0.1:1/"


def control(runner: Runner) -> Any:
    """Return the control of the only consumer."""
    return runner.health[0].control


async def test_a_stream() -> None:
    """It is closed, and opened again after the last event that was received."""
    seen: list[str] = []

    class Prices(SSEConsumer):
        routes = ["/prices"]
        connection = "prices"

        async def handle(self, body: str) -> None:
            seen.append(body)

    async with sse_server() as server:
        settings: dict[str, Any] = {"sse": {"prices": {"url": server.url}}}
        async with running(BROKER, Prices, **settings) as runner:
            await server.send("1")
            await eventually(lambda: seen == ["1"])
            await control(runner).pause()
            assert (runner.health[0].state, runner.ready) == (State.PAUSED, True)
            await eventually(lambda: server.clients == 0)
            await server.send("2")
            await control(runner).resume()
            await server.send("3")
            await eventually(lambda: seen == ["1", "2", "3"])
            await control(runner).pause()
            await control(runner).pause()
        assert seen == ["1", "2", "3"]


async def test_a_stream_that_starts_paused() -> None:
    """It is not opened, and the process is ready."""
    seen: list[str] = []

    class Prices(SSEConsumer):
        routes = ["/prices"]
        connection = "prices"
        paused = True

        async def handle(self, body: str) -> None:
            seen.append(body)

    async with sse_server() as server:
        settings: dict[str, Any] = {"sse": {"prices": {"url": server.url}}}
        async with running(BROKER, Prices, **settings) as runner:
            assert (server.clients, runner.health[0].state) == (0, State.PAUSED)
            await control(runner).resume()
            await server.client()
            await server.send("1")
            await eventually(lambda: seen == ["1"])


async def test_a_transport_of_a_user() -> None:
    """`receive` is cancelled, and called again."""

    class Listed(ListConsumer):
        items = "orders"

        async def handle(self, body: bytes) -> None: ...

    runner, transport, recorder = application(Listed)
    async with runner.running():
        transport.put(b"a")
        await eventually(lambda: len(recorder.settled) == 1)
        await control(runner).pause()
        transport.put(b"b")
        assert (control(runner).paused, runner.health[0].state) == (True, State.PAUSED)
        assert len(transport.items) == 1
        await control(runner).resume()
        await eventually(lambda: len(recorder.settled) == 2)
        await control(runner).pause()
    assert recorder.actions == ["ack", "ack"]
