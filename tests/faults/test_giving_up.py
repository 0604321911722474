"""Code that does not end cannot delay a stop beyond its deadlines, and is named."""

import asyncio
import gc
import signal
import time
from pathlib import Path

import pytest

from tests.application import running as in_process
from tests.client import Client, connected
from tests.command import running, write_package
from tests.proxy import Proxy
from tests.rabbit import PrivateRabbit
from tests.records import fields
from tests.waiting import eventually
from workerkit import AMQPConsumer, RunError
from workerkit.amqp.channel import Channel
from workerkit.amqp.session import connect, scratch
from workerkit.config.connections import AMQPSettings

CONSUMER = """
    import asyncio, time
    from workerkit import AMQPConsumer

    class Each(AMQPConsumer):
        queues = ["work"]
        {more}

        async def handle(self, body: str) -> None: ...
"""

SWALLOWS = """
        async def on_stop(self) -> None:
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    pass
"""

EXITS = """
        async def on_stop(self) -> None:
            raise SystemExit(0)
"""

THREAD = """
        async def on_start(self) -> None:
            self.task = asyncio.create_task(asyncio.to_thread(time.sleep, 60))
"""


@pytest.mark.parametrize(
    ("more", "code", "named"),
    [
        pytest.param(SWALLOWS, 1, "on_stop of Each", id="a hook that swallows cancellation"),
        pytest.param(EXITS, 0, "hook failed", id="a hook that exits"),
        pytest.param(THREAD, 1, "to_thread", id="a thread of asyncio's that does not return"),
    ],
)
async def test_f4_hooks_and_threads_that_do_not_end(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path, more: str, code: int, named: str
) -> None:
    """F4: hooks and threads of the user cannot keep a stopped process alive."""
    name = write_package(tmp_path, consumers=CONSUMER.format(more=more))

    async with running(name, cwd=tmp_path, WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost)) as app:
        await app.says("consuming")
        began = time.monotonic()
        app.send(signal.SIGTERM)
        found = await app.ended()
        seconds = time.monotonic() - began

    assert found == code, app
    assert seconds < 14.0
    assert any(named in line for line in app.err), app


async def test_b7_no_attempt_after_the_stop_has_begun(
    rabbit: PrivateRabbit, url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """B7: while a stop waits for a handler, only publishers may still connect."""

    def attempts() -> int:
        failed = fields(caplog, "connection failed")
        return sum(each["role"] == "consumers" for each in failed)

    begun, gate = asyncio.Event(), asyncio.Event()

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None:
            begun.set()
            await gate.wait()

    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        in_process(proxy.url(url), Orders, shutdown_grace=20.0),
    ):
        await client.send("orders", b"a")
        await begun.wait()
        proxy.refuse()
        proxy.drop()
        await eventually(attempts)
        before = attempts()
        # The next attempts would follow after half a second, one second and two.
        asyncio.get_running_loop().call_later(3.0, gate.set)

    assert gate.is_set()
    assert attempts() == before


async def test_c7_a_handler_that_exits_is_an_error_of_the_running_block(url: str) -> None:
    """C7: in the process of a test, the end of the block raises an error."""

    class Exiting(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None:
            raise SystemExit(3)

    async def run() -> None:
        async with in_process(url, Exiting) as runner, connected(url) as client:
            await client.send("orders", b"x")
            await eventually(lambda: runner.crashed)

    with pytest.raises(RunError, match="SystemExit"):
        await run()


async def test_g2_scratch_channels_are_released(url: str, rabbit: PrivateRabbit) -> None:
    """G2: closed channels do not fill the memory, even if a queue is missing for a month."""

    def channels() -> int:
        gc.collect()
        return sum(type(each) is Channel for each in gc.get_objects())

    # Earlier tests may have left some, for example in log records.
    before = channels()
    session = await connect(AMQPSettings(url=url), None, "test")  # type: ignore[arg-type]
    for _ in range(20):
        async with scratch(session) as channel:
            await channel.prefetch(1)
    del channel
    left = channels() - before
    await session.close()

    assert left <= 1
