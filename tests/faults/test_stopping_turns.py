"""FR6. A process that stops in the same moment in which a connection is lost still stops."""

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
    """An observer that says when a connection was made."""

    def __init__(self) -> None:
        self.made = asyncio.Event()

    def __call__(self, record: object) -> None:
        """Nothing is delivered here."""

    def connected(self, record: ConnectionEvent) -> None:
        """Note it."""
        self.made.set()


async def live(url: str, consumer: Any, watcher: Any) -> None:
    """Run until cancelled."""
    async with running(url, consumer, recorder=watcher, ready=False):
        await asyncio.Event().wait()


@pytest.mark.parametrize("loop", sorted(LOOPS))
@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET], ids=["closes", "resets"])
def test_fr6_a_stop_beside_a_lost_connection_ends(loop: str, end: Do) -> None:
    """Whichever turn of the event loop it falls into: cancelling is never mistaken for a loss."""
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


async def test_fr6_a_connection_whose_close_was_cut_off_is_not_closed_later() -> None:
    """aio-pika would begin to when it is collected, in a task that the end of the loop cuts off."""
    nothing: Any = None
    connection = [TapConnection(nothing, "/", URL("amqp://127.0.0.1:1/"))]
    before = asyncio.all_tasks()

    connection.clear()
    gc.collect()

    assert asyncio.all_tasks() == before


async def test_fr6_a_library_that_turns_a_cancellation_into_an_error_is_cancelled() -> None:
    """As aiormq does when the connection is lost in the same turn: the task ends all the same."""
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
async def test_fr6_a_stop_does_not_wait_for_an_answer_that_is_lost(
    rabbit: PrivateRabbit, url: str, lost: tuple[int, int]
) -> None:
    """A consumer that is just being set up is given up at once, and its connection closed."""
    consumer, _ = collector("orders", name="Orders")
    async with Proxy("127.0.0.1", rabbit.port, amqp=True) as proxy:
        proxy.swallow(lost)
        async with running(proxy.url(url), consumer, ready=False):
            await eventually(lambda: proxy.swallowed == [lost])
            for _ in range(TURNS):
                await asyncio.sleep(0)
            # From now on nothing is answered, and nobody is told that the connection is lost.
            proxy.freeze()


async def test_fp12_a_connection_that_is_lost_at_once_holds_no_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one that cannot be made: the start does not wait for the next one, only publishes do."""
    monkeypatch.setattr("workerkit.amqp.transport.START_DEADLINE", 600.0)
    consumer, _ = collector("bad", name="Bad")
    async with (
        Scripted(lambda number: [Do.HANG] if number else [*login(), Do.CLOSE]) as odd,
        asyncio.timeout(60.0),
        running(odd.url, consumer, ready=False, amqp=patient(odd.url)) as runner,
    ):
        assert not runner.crashed


def patient(url: str) -> dict[str, Any]:
    """Settings of a connection that never gives an attempt up."""
    return {"default": {"url": url, "connect_timeout": 600.0}}
