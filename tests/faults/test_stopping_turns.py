"""FR6. A process stops even if a connection is lost at the same moment."""

import asyncio
import gc
from typing import Any

import pytest
from yarl import URL

from tests.application import running
from tests.consumers import collector
from tests.host_names import LOOPS, run
from tests.proxy import DECLARE_OK, QOS_OK, Proxy
from tests.rabbit import PrivateRabbit
from tests.scripted_broker import Do, Script, Scripted, login
from tests.waiting import eventually
from workerkit.amqp.handshake import TapConnection
from workerkit.observe import ConnectionEvent
from workerkit.tasks import with_deadline

pytestmark = pytest.mark.any_broker

TURNS = 60


class Watcher:
    """An observer that reports the first connection."""

    def __init__(self) -> None:
        self.made = asyncio.Event()

    def __call__(self, record: object) -> None:
        """Do nothing: nothing is delivered."""

    def connected(self, record: ConnectionEvent) -> None:
        """Record the connection."""
        self.made.set()


async def live(url: str, consumer: Any, watcher: Any) -> None:
    """Run until cancelled."""
    async with running(url, consumer, recorder=watcher, ready=False):
        await asyncio.Event().wait()


@pytest.mark.parametrize("loop", sorted(LOOPS))
@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET], ids=["closes", "resets"])
def test_fr6_a_stop_during_the_loss_of_a_connection(loop: str, end: Do) -> None:
    """In any iteration of the event loop, a cancellation is not mistaken for a loss."""
    script: Script = [*login(), end]

    async def main() -> None:
        async with Scripted(lambda number: script) as odd:
            for turns in range(TURNS):
                consumer, _ = collector("bad", name="Bad")
                watcher = Watcher()
                living = asyncio.create_task(live(odd.url, consumer, watcher))
                await asyncio.wait_for(watcher.made.wait(), 30.0)
                for _ in range(turns):
                    await asyncio.sleep(0)
                living.cancel()
                await asyncio.wait([living], timeout=30.0)
                assert living.cancelled()

    run(loop, main, {})


async def test_fr6_a_connection_whose_close_was_cancelled_is_not_closed_later() -> None:
    """aio-pika would close it when it is collected, in a task that the loop cannot finish."""
    nothing: Any = None
    connection = [TapConnection(nothing, "/", URL("amqp://127.0.0.1:1/"))]
    before = asyncio.all_tasks()

    connection.clear()
    gc.collect()

    assert asyncio.all_tasks() == before


async def test_fr6_a_library_that_turns_a_cancellation_into_an_error_is_cancelled() -> None:
    """aiormq does this if the connection is lost in the same iteration: the task still ends."""
    begun = asyncio.Event()

    async def converts() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            raise ConnectionError("lost") from error

    task = asyncio.create_task(with_deadline(30.0, converts(), OSError("late")))
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()


@pytest.mark.parametrize("lost", [DECLARE_OK, QOS_OK], ids=["declare", "qos"])
async def test_fr6_a_stop_does_not_wait_for_a_lost_reply(
    rabbit: PrivateRabbit, url: str, lost: tuple[int, int]
) -> None:
    """The setup of a consumer is cancelled immediately, and its connection closed."""
    consumer, _ = collector("orders", name="Orders")
    async with Proxy("127.0.0.1", rabbit.port, amqp=True) as proxy:
        proxy.swallow(lost)
        async with running(proxy.url(url), consumer, ready=False):
            await eventually(lambda: proxy.swallowed == [lost])
            for _ in range(TURNS):
                await asyncio.sleep(0)
            # From now on no request gets a reply, and the loss of the connection is not detected.
            proxy.freeze()


async def test_fp12_a_connection_that_is_lost_at_once_delays_no_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The start does not wait for the next connection, only publishes do."""
    monkeypatch.setattr("workerkit.amqp.transport.START_DEADLINE", 600.0)
    consumer, _ = collector("bad", name="Bad")
    async with (
        Scripted(lambda number: [Do.HANG] if number else [*login(), Do.CLOSE]) as odd,
        asyncio.timeout(60.0),
        running(odd.url, consumer, ready=False, amqp=patient(odd.url)) as runner,
    ):
        assert not runner.crashed


def patient(url: str) -> dict[str, Any]:
    """Return settings of a connection whose attempts have no timeout."""
    return {"default": {"url": url, "connect_timeout": 600.0}}
