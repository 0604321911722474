"""`workerkit run --burst`: everything that is there is handled, then the process ends."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.client import connected
from tests.command import Application, running, workerkit, write_package
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit
from workerkit.testing import embedded_broker

HANDLED = "handled: "
IMPORTS = """
    import asyncio
    from workerkit import AMQPConsumer, AMQPMessage, HTTPView, PeriodicTask, Publisher
    from workerkit import Reject, Retry, RetryPolicy, SSEConsumer
"""
ORDERS = f"""{IMPORTS}
    class OrderPlaced(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None:
            print("{HANDLED}" + body.decode(), flush=True)
"""
FAILING = f"""{IMPORTS}
    class OrderPlaced(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None:
            print("{HANDLED}" + body.decode(), flush=True)
            if body.startswith(b"bad"):
                raise ValueError("no such order")
"""


@pytest.fixture(params=["rabbitmq", "embedded"])
async def any_url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The address of a real broker, and of the in-process one."""
    async with AsyncExitStack() as stack:
        if request.param == "embedded":
            yield (await stack.enter_async_context(embedded_broker())).url
        else:
            rabbit: PrivateRabbit = request.getfixturevalue("rabbit")
            yield rabbit.url(request.getfixturevalue("vhost"))


@asynccontextmanager
async def bursting(cwd: Path, url: str, *arguments: str, **more: str) -> AsyncIterator[Application]:
    """Run the package `app` in a burst inside the block."""
    variables: dict[str, Any] = {"WORKERKIT_AMQP__DEFAULT__URL": url, **more}
    async with running("app", "--burst", *arguments, cwd=cwd, **variables) as app:
        yield app


async def burst(cwd: Path, url: str, *arguments: str, **more: str) -> tuple[int, Application]:
    """Run the package `app` in a burst to its end; return the exit code, and its output."""
    async with bursting(cwd, url, *arguments, **more) as app:
        return await app.ended(), app


async def put(url: str, queue: str, *bodies: str, **arguments: str) -> None:
    """Publish messages to a queue, which is declared if it is missing."""
    async with connected(url) as client, publishing(url) as publisher:
        await client.declare(queue, **arguments)
        for start in range(0, len(bodies), 100):
            part = bodies[start : start + 100]
            await asyncio.gather(*(publisher.publish(body.encode(), queue) for body in part))


async def left(url: str, queue: str) -> int:
    """Return the number of messages in a queue that nothing consumes."""
    async with connected(url) as client:
        return await client.count(queue)


async def test_everything_is_handled_and_then_it_ends(any_url: str, tmp_path: Path) -> None:
    """Five thousand messages are handled once each, and acknowledged; the exit code is 0."""
    write_package(tmp_path, consumers=ORDERS)
    bodies = [str(number) for number in range(5_000)]
    await put(any_url, "orders", *bodies)

    code, app = await burst(tmp_path, any_url)

    assert (code, await left(any_url, "orders")) == (0, 0)
    assert sorted(app.lines(HANDLED)) == sorted(bodies)


async def test_an_empty_queue(any_url: str, tmp_path: Path) -> None:
    """A process that finds nothing ends with 0, also where it has to declare the queue."""
    write_package(tmp_path, consumers=ORDERS)

    code, app = await burst(tmp_path, any_url)

    assert (code, list(app.lines(HANDLED)), await left(any_url, "orders")) == (0, [], 0)


async def test_what_handlers_publish_is_handled_as_well(any_url: str, tmp_path: Path) -> None:
    """A chain of consumers and a task that begins it: all of it is handled."""
    consumers = f"""{IMPORTS}
    class First(AMQPConsumer):
        queues = ["a"]

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self, body: bytes) -> None:
            for _ in range(3):
                await self.publisher.publish(body, "b")

    class Second(First):
        queues = ["b"]
        concurrency = 1
        prefetch = 1

        async def handle(self, body: bytes) -> None:
            await self.publisher.publish(body, "c")

    class Third(AMQPConsumer):
        queues = ["c"]

        async def handle(self, body: bytes) -> None:
            print("{HANDLED}" + body.decode(), flush=True)

    class Start(PeriodicTask):
        every = 3600

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self) -> None:
            await asyncio.sleep(0.3)
            await self.publisher.publish(b"task", "a")
    """
    write_package(tmp_path, consumers=consumers)
    await put(any_url, "a", "x")

    code, app = await burst(tmp_path, any_url)

    assert code == 0
    assert sorted(app.lines(HANDLED)) == ["task"] * 3 + ["x"] * 3


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_a_message_that_fails_again_stays(url: str, tmp_path: Path, kind: str) -> None:
    """Without a policy a message is tried twice; it stays, and the exit code is 1."""
    write_package(tmp_path, consumers=FAILING)
    await put(url, "orders", "bad 1", *map(str, range(50)), "bad 2", x_queue_type=kind)

    code, app = await burst(tmp_path, url)

    handled = Counter(app.lines(HANDLED))
    assert (code, await left(url, "orders")) == (1, 2)
    assert {body for body in handled if not body.startswith("bad")} == set(map(str, range(50)))
    assert {handled["bad 1"], handled["bad 2"]} <= {2, 3}
    assert app.err[-1] == ("OrderPlaced: messages that failed, and are still in queue 'orders': 2")


async def test_more_messages_fail_than_the_prefetch(any_url: str, tmp_path: Path) -> None:
    """If messages that failed fill the prefetch, it ends, and reports those that were not tried."""
    write_package(tmp_path, consumers=FAILING)
    await put(any_url, "orders", *(f"bad {number}" for number in range(10)))

    code, app = await burst(tmp_path, any_url, WORKERKIT_CONSUMERS__ORDER_PLACED__PREFETCH="4")

    assert (code, await left(any_url, "orders")) == (1, 10)
    assert app.err[-1] == (
        "OrderPlaced: messages that failed, and are still in queue 'orders': 4; "
        "not tried, because these fill the prefetch: 6"
    )


async def test_dead_letters_and_later_retries(any_url: str, tmp_path: Path) -> None:
    """A dead letter is handled; a retry that is due later is left to a later process."""
    consumers = f"""{IMPORTS}
    class OrderPlaced(AMQPConsumer):
        queues = ["orders"]
        retry = RetryPolicy((0, 600), fatal=(KeyError,))

        async def handle(self, body: bytes) -> None:
            print("{HANDLED}" + body.decode(), flush=True)
            raise {{b"fatal": KeyError, b"later": ValueError}}[body]("no such order")
    """
    write_package(tmp_path, consumers=consumers)
    await put(any_url, "orders", "fatal", "later")

    code, app = await burst(tmp_path, any_url)

    async with connected(any_url) as client:
        assert (code, await client.count("orders"), await client.count("orders.dlq")) == (0, 0, 1)
        assert await client.count("orders.retry.600s") == 1
    assert sorted(app.lines(HANDLED)) == ["fatal", "later", "later"]


async def test_two_processes_share_a_queue(any_url: str, tmp_path: Path) -> None:
    """Each message is handled once, by either process, and both end with 0."""
    slow = ORDERS.replace("print(", "await asyncio.sleep(0.002); print(")
    write_package(tmp_path, consumers=slow)
    bodies = [str(number) for number in range(1_000)]
    await put(any_url, "orders", *bodies)

    (one, first), (two, second) = await asyncio.gather(
        burst(tmp_path, any_url), burst(tmp_path, any_url)
    )

    assert (one, two, await left(any_url, "orders")) == (0, 0, 0)
    assert sorted([*first.lines(HANDLED), *second.lines(HANDLED)]) == sorted(bodies)


async def test_a_stop_signal(url: str, tmp_path: Path) -> None:
    """SIGTERM stops a burst as any run: what is in progress ends, the rest stays."""
    waiting = ORDERS.replace("print(", "await asyncio.sleep(600) if body != b'0' else print(")
    write_package(tmp_path, consumers=waiting)
    await put(url, "orders", *map(str, range(5)))

    async with bursting(tmp_path, url, WORKERKIT_SHUTDOWN_GRACE="0.1") as app:
        await app.says(HANDLED)
        app.send(signal.SIGTERM)
        code = await app.ended()

    assert (code, await left(url, "orders")) == (0, 4)


async def test_a_broker_that_restarts(broker: PrivateRabbit, tmp_path: Path) -> None:
    """A burst outlives its connection: it connects again, and handles what is left."""
    slow = ORDERS.replace("print(", "await asyncio.sleep(0.05); print(")
    write_package(tmp_path, consumers=slow)
    bodies = [str(number) for number in range(200)]
    await put(broker.url(), "orders", *bodies)

    async with bursting(
        tmp_path, broker.url(), WORKERKIT_CONSUMERS__ORDER_PLACED__CONCURRENCY="4"
    ) as app:
        await app.says(HANDLED)
        broker.close_all_connections("test")
        code = await app.ended()

    assert (code, await left(broker.url(), "orders")) == (0, 0)
    assert set(app.lines(HANDLED)) == set(bodies)


ENDLESS = f"""{IMPORTS}
    class Api(HTTPView):
        routes = ["/"]

        async def get(self) -> None: ...

    class Prices(SSEConsumer):
        url = "http://127.0.0.1:1/"

        async def handle(self, data: str) -> None: ...

    class Log(AMQPConsumer):
        queues = ["log"]

        async def handle(self, body: bytes) -> None: ...
"""


async def test_a_stream_has_no_end(url: str, tmp_path: Path) -> None:
    """A stream keeps its messages, so its consumer cannot run in a burst."""
    consumers = f"""{IMPORTS}
    from workerkit import Queue

    class Log(AMQPConsumer):
        queues = [Queue("log", type="stream")]

        async def handle(self, body: bytes) -> None: ...
    """
    write_package(tmp_path, consumers=consumers)

    code, app = await burst(tmp_path, url)

    assert (code, app.err[-1]) == (2, "nothing to run in a burst: Log: queue 'log' is a stream")


async def test_a_batch_that_is_not_full(any_url: str, tmp_path: Path) -> None:
    """The last batch is handled, too, once its interval is over."""
    consumers = f"""{IMPORTS}
    class Orders(AMQPConsumer):
        queues = ["orders"]
        batch_size = 4
        batch_interval = 0.5

        async def handle(self, bodies: list[bytes]) -> None:
            print("{HANDLED}" + str(len(bodies)), flush=True)
    """
    write_package(tmp_path, consumers=consumers)
    await put(any_url, "orders", *"abcdefghij")

    code, app = await burst(tmp_path, any_url)

    assert (code, await left(any_url, "orders")) == (0, 0)
    assert sum(map(int, app.lines(HANDLED))) == 10


async def test_consumers_without_an_end_are_left_out(url: str, tmp_path: Path) -> None:
    """Views and event streams do not run, and a warning names each."""
    write_package(tmp_path, consumers=ENDLESS)

    code, app = await burst(tmp_path, url)

    warned = [line for line in app.err if "left out of the burst" in line]
    assert code == 0
    assert [name for name in ("Api", "Prices") if any(name in line for line in warned)] == [
        "Api",
        "Prices",
    ]
    assert len(warned) == 2


async def test_only_consumers_without_an_end(url: str, tmp_path: Path) -> None:
    """If nothing is left to run, that is an error of the command line."""
    write_package(tmp_path, consumers=ENDLESS)

    code, app = await burst(tmp_path, url, "--only", "Api")

    assert code == 2
    assert app.err[-1] == "nothing to run in a burst: Api: http never runs out of work"


@pytest.mark.parametrize(("raises", "code"), [("pass", 0), ("raise ValueError('no')", 1)])
async def test_tasks_run_once(url: str, tmp_path: Path, raises: str, code: int) -> None:
    """Each task runs once, at once, whatever its schedule; one that fails is exit code 1."""
    consumers = f"""{IMPORTS}
    class Nightly(PeriodicTask):
        cron = "0 3 1 1 *"
        jitter = 600.0

        async def handle(self) -> None:
            print("{HANDLED}nightly", flush=True)

    class Cleanup(PeriodicTask):
        every = 0.01
        singleton = True

        async def handle(self) -> None:
            print("{HANDLED}cleanup", flush=True)
            {raises}
    """
    write_package(tmp_path, consumers=consumers)

    found, app = await burst(tmp_path, url)

    assert found == code
    assert sorted(app.lines(HANDLED)) == ["cleanup", "nightly"]
    assert (app.err[-1] == "Cleanup: the run failed: ValueError: no") == bool(code)


@pytest.mark.any_broker
@pytest.mark.parametrize(
    "options", [["--processes", "2"], ["--reload"]], ids=["processes", "reload"]
)
def test_a_burst_is_one_process(tmp_path: Path, options: list[str]) -> None:
    """An option that runs several, or starts it again, is refused."""
    done = workerkit("run", "app", "--burst", *options, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"--burst is for one process that ends, not {options[0]}")
