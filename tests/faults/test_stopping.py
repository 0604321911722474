"""Rows C7, F1 to F8 and B7: a process stops on request, and loses no message.

Real processes, real signals, a real RabbitMQ.
"""

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from tests import application
from tests.command import Application, running, write_package
from tests.ports import free_port
from tests.proxy import Proxy
from tests.rabbit import PrivateRabbit, QueueState
from tests.waiting import eventually
from workerkit import AMQPConsumer

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Handlers that wait at a gate: a file that the test creates.
GATED = """
    import asyncio
    from pathlib import Path

    from workerkit import AMQPConsumer, AMQPMessage


    class Gated(AMQPConsumer):
        queues = ["work"]
        concurrency = 2
        prefetch = 10

        async def handle(self, body: str, message: AMQPMessage) -> None:
            print("begin", body, "again" if message.redelivered else "", flush=True)
            try:
                while not Path("gate").exists():
                    await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                print("cancelled", body, flush=True)
                raise
            print("end", body, flush=True)
"""


async def publish(rabbit: PrivateRabbit, vhost: str, bodies: Iterable[object]) -> None:
    """Publish messages to the queue `work`, with confirms; it is declared if it is missing."""
    connection = await aio_pika.connect(rabbit.url(vhost))
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        await channel.declare_queue("work", durable=True)
        for body in bodies:
            message = aio_pika.Message(
                str(body).encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT
            )
            await channel.default_exchange.publish(message, "work")


def work(rabbit: PrivateRabbit, vhost: str) -> QueueState:
    """Return the state of the queue `work`."""
    return rabbit.queues(vhost)["work"]


def dead(rabbit: PrivateRabbit, vhost: str) -> int:
    """Return the number of dead letters."""
    return rabbit.queues(vhost)["work.dlq"].ready


def begun(app: Application) -> list[str]:
    """Return the bodies for which handlers were called, in order."""
    return [line.split()[0] for line in app.lines("begin ")]


async def until_ready(rabbit: PrivateRabbit, vhost: str, ready: int) -> None:
    """Wait until the queue `work` has *ready* messages and no handler holds one."""
    await eventually(lambda: work(rabbit, vhost) == QueueState(ready, 0, 0))


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("uvloop", [True, False])
async def test_f1_idle(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path, number: signal.Signals, uvloop: bool
) -> None:
    """F1: an idle process ends within a second of the first signal, with exit code 0."""
    name = write_package(tmp_path, consumers=GATED)
    url = rabbit.url(vhost)

    async with running(name, cwd=tmp_path, uvloop=uvloop, WORKERKIT_AMQP__DEFAULT__URL=url) as app:
        await app.says("consuming")
        before = time.monotonic()
        app.send(number)
        code = await app.ended()
        seconds = time.monotonic() - before

    assert (code, "Traceback" in repr(app)) == (0, False), app
    assert seconds < 10.0
    await eventually(lambda: rabbit.connections(vhost) == 0)


async def test_f2_while_handling(rabbit: PrivateRabbit, vhost: str, tmp_path: Path) -> None:
    """F2: messages not handled yet are requeued immediately; running handlers finish."""
    name = write_package(tmp_path, consumers=GATED)
    url = rabbit.url(vhost)
    await publish(rabbit, vhost, range(20))

    async with running(name, cwd=tmp_path, WORKERKIT_AMQP__DEFAULT__URL=url) as app:
        await eventually(lambda: len(begun(app)) == 2)
        await eventually(lambda: work(rabbit, vhost) == QueueState(10, 10, 1))
        app.send(signal.SIGTERM)
        # The slow handlers still run; all other messages are requeued.
        await eventually(lambda: work(rabbit, vhost) == QueueState(18, 2, 0))
        await publish(rabbit, vhost, range(20, 25))
        held = work(rabbit, vhost)
        ended_early = list(app.lines("end "))
        (tmp_path / "gate").touch()
        code = await app.ended()

    assert (held, ended_early) == (QueueState(23, 2, 0), [])
    assert code == 0, app
    assert sorted(app.lines("end ")) == ["0", "1"]
    assert not list(app.lines("cancelled "))
    assert work(rabbit, vhost) == QueueState(23, 0, 0)

    async with running(name, cwd=tmp_path, WORKERKIT_AMQP__DEFAULT__URL=url) as other:
        await eventually(lambda: len(list(other.lines("end "))) == 23)
        other.send(signal.SIGTERM)
        assert await other.ended() == 0

    handled = Counter([*app.lines("end "), *other.lines("end ")])
    assert handled == Counter(map(str, range(25)))
    assert (work(rabbit, vhost).ready, dead(rabbit, vhost)) == (0, 0)


async def test_f3_a_handler_that_does_not_end(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path
) -> None:
    """F3: after the grace period a handler is cancelled, its message requeued; exit code 0."""
    name = write_package(tmp_path, consumers=GATED)
    await publish(rabbit, vhost, [7])

    async with running(
        name,
        cwd=tmp_path,
        WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost),
        WORKERKIT_SHUTDOWN_GRACE="0.6",
    ) as app:
        await app.says("begin 7")
        before = time.monotonic()
        app.send(signal.SIGTERM)
        code = await app.ended()
        seconds = time.monotonic() - before

    assert list(app.lines("cancelled ")) == ["7"]
    assert code == 0, app
    assert 0.6 <= seconds < 4.0
    assert (work(rabbit, vhost), dead(rabbit, vhost)) == (QueueState(1, 0, 0), 0)
    assert [line for line in app.err if "WARNING" in line and "Gated" in line]


@pytest.mark.parametrize("on_exception", ["REQUEUE", "DEAD_LETTER", "REJECT"])
async def test_f3_a_cancelled_handler_that_raises_is_no_failure(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path, on_exception: str
) -> None:
    """F3: an exception that a handler raises because of the cancellation is not counted."""
    consumers = f"""
        import asyncio
        from workerkit import Action, AMQPConsumer

        class Wrapping(AMQPConsumer):
            queues = ["work"]
            on_exception = Action.{on_exception}

            async def handle(self, body: str) -> None:
                print("begin " + body, flush=True)
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError as error:
                    # As database drivers do.
                    raise ConnectionError("the query was interrupted") from error
    """
    name = write_package(tmp_path, consumers=consumers)
    await publish(rabbit, vhost, [7])

    async with running(
        name,
        cwd=tmp_path,
        WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost),
        WORKERKIT_SHUTDOWN_GRACE="0.1",
    ) as app:
        await app.says("begin 7")
        app.send(signal.SIGTERM)
        code = await app.ended()

    assert code == 0, app
    assert (work(rabbit, vhost).ready, dead(rabbit, vhost)) == (1, 0), app


@pytest.mark.parametrize(
    "handle",
    [
        pytest.param(
            """
            async def handle(self, body: str) -> None:
                print("begin " + body, flush=True)
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    await asyncio.sleep(0.1)
            """,
            id="async",
        ),
        pytest.param(
            """
            def handle(self, body: str) -> None:
                print("begin " + body, flush=True)
                while not Path("gate").exists():
                    time.sleep(0.01)
            """,
            id="thread",
        ),
    ],
)
async def test_f3_the_stop_ends_with_a_late_handler(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path, handle: str
) -> None:
    """F3: if a handler ends some time after the cancellation, the stop ends then."""
    consumers = f"""
        import asyncio, time
        from pathlib import Path
        from workerkit import AMQPConsumer

        class Late(AMQPConsumer):
            queues = ["work"]
            {handle}
    """
    name = write_package(tmp_path, consumers=consumers)
    await publish(rabbit, vhost, [7])

    async with running(
        name,
        cwd=tmp_path,
        WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost),
        WORKERKIT_SHUTDOWN_GRACE="0.1",
    ) as app:
        await app.says("begin 7")
        app.send(signal.SIGTERM)
        await app.says("shutdown grace period expired")
        before = time.monotonic()
        (tmp_path / "gate").touch()
        code = await app.ended()
        seconds = time.monotonic() - before

    assert code == 0, app
    assert seconds < 4.5  # the limit would be five
    assert work(rabbit, vhost).unacked == 0


async def test_f4_handlers_that_cannot_be_cancelled(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path
) -> None:
    """F4: connections are dropped 5 s after the cancellation; exit code 1 and both names."""
    consumers = """
        import asyncio, time
        from workerkit import AMQPConsumer

        class Deaf(AMQPConsumer):
            queues = ["work"]

            async def handle(self, body: str) -> None:
                print("begin " + body, flush=True)
                while True:
                    try:
                        await asyncio.sleep(3600)
                    except asyncio.CancelledError:
                        continue

        class Stuck(AMQPConsumer):
            queues = ["other"]
            name = "stuck-thread"

            def handle(self, body: str) -> None:
                print("begin " + body, flush=True)
                time.sleep(3600)

            async def on_start(self) -> None:
                print("on_start", flush=True)

        class Fine(AMQPConsumer):
            queues = ["third"]

            async def handle(self, body: str) -> None:
                pass
    """
    name = write_package(tmp_path, consumers=consumers)
    await publish(rabbit, vhost, [7])
    await publish_to(rabbit, vhost, "other", "8")

    async with running(
        name,
        cwd=tmp_path,
        WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost),
        WORKERKIT_SHUTDOWN_GRACE="0.1",
    ) as app:
        await app.says("begin 7")
        await app.says("begin 8")
        before = time.monotonic()
        app.send(signal.SIGTERM)
        code = await app.ended()
        seconds = time.monotonic() - before

    assert code == 1, app
    assert 5.0 <= seconds < 20.0
    [fault] = [line for line in app.err if "did not end when cancelled" in line]
    assert ("Deaf" in fault, "stuck-thread" in fault, "Fine" in fault) == (True, True, False)
    await until_ready(rabbit, vhost, 1)
    await eventually(lambda: rabbit.queues(vhost)["other"] == QueueState(1, 0, 0))
    assert dead(rabbit, vhost) == 0


async def publish_to(rabbit: PrivateRabbit, vhost: str, queue: str, body: str) -> None:
    """Publish one message to a queue, which is declared if it is missing."""
    connection = await aio_pika.connect(rabbit.url(vhost))
    async with connection:
        channel = await connection.channel()
        await channel.declare_queue(queue, durable=True)
        await channel.default_exchange.publish(aio_pika.Message(body.encode()), queue)


async def test_f5_a_stop_does_not_wait_for_a_pause(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path
) -> None:
    """F5: a message that waits for its requeue is requeued immediately at a stop."""
    consumers = """
        from workerkit import AMQPConsumer

        class Failing(AMQPConsumer):
            queues = ["work"]

            async def handle(self, body: str) -> None:
                raise KeyError(body)
    """
    name = write_package(tmp_path, consumers=consumers)
    await publish(rabbit, vhost, [7])

    async with running(name, cwd=tmp_path, WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost)) as app:
        # The fourth failure in a row is followed by a pause of four seconds.
        await eventually(lambda: sum("not handled" in line for line in app.err) == 4, 15.0)
        before = time.monotonic()
        app.send(signal.SIGTERM)
        code = await app.ended()
        seconds = time.monotonic() - before

    assert code == 0, app
    assert seconds < 3.5
    assert (work(rabbit, vhost), dead(rabbit, vhost)) == (QueueState(1, 0, 0), 0)


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("uvloop", [True, False])
async def test_f6_second_signal(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path, second: signal.Signals, uvloop: bool
) -> None:
    """F6: a second signal ends the process immediately; the message is requeued."""
    name = write_package(tmp_path, consumers=GATED)
    await publish(rabbit, vhost, [7])

    async with running(
        name, cwd=tmp_path, uvloop=uvloop, WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost)
    ) as app:
        await app.says("begin 7")
        app.send(signal.SIGTERM)
        await app.says("stopping")
        before = time.monotonic()
        ended = asyncio.create_task(app.ended())
        while not ended.done():
            with suppress(ProcessLookupError):
                app.send(second)  # The same signal within half a second does not count.
            await asyncio.wait([ended], timeout=0.1)
        code = ended.result()
        seconds = time.monotonic() - before

    assert code == 128 + second, app
    assert seconds < 5.0  # the handler would never end
    assert not list(app.lines("cancelled "))
    await until_ready(rabbit, vhost, 1)


@pytest.mark.parametrize("uvloop", [True, False])
async def test_f6_while_the_event_loop_is_blocked(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path, uvloop: bool
) -> None:
    """F6: the second signal ends the process even if a handler blocks the event loop."""
    consumers = """
        import time
        from workerkit import AMQPConsumer

        class Blocking(AMQPConsumer):
            queues = ["work"]

            async def handle(self, body: str) -> None:
                print("begin " + body, flush=True)
                while True:  # of one long sleep the rest is slept if a signal comes before it
                    time.sleep(0.05)
    """
    name = write_package(tmp_path, consumers=consumers)
    await publish(rabbit, vhost, [7])

    async with running(
        name, cwd=tmp_path, uvloop=uvloop, WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost)
    ) as app:
        await app.says("the event loop is blocked")
        app.send(signal.SIGTERM)
        # Signals of one number are merged while the first one is pending.
        app.send(signal.SIGINT)
        code = await app.ended()

    assert code in {128 + signal.SIGINT, 128 + signal.SIGTERM}, app
    await until_ready(rabbit, vhost, 1)


async def test_f7_killed_while_handling(rabbit: PrivateRabbit, vhost: str, tmp_path: Path) -> None:
    """F7: messages that a killed process was handling are redelivered; none is lost."""
    name = write_package(tmp_path, consumers=GATED)
    await publish(rabbit, vhost, range(30))
    variables: dict[str, Any] = {
        "WORKERKIT_AMQP__DEFAULT__URL": rabbit.url(vhost),
        "WORKERKIT_CONSUMERS__GATED__CONCURRENCY": "5",
    }

    async with running(name, cwd=tmp_path, **variables) as app:
        await eventually(lambda: len(begun(app)) == 5)
        app.send(signal.SIGKILL)
        code = await app.ended()
    await until_ready(rabbit, vhost, 30)
    (tmp_path / "gate").touch()
    async with running(name, cwd=tmp_path, **variables) as other:
        await eventually(lambda: len(set(other.lines("end "))) == 30)
        await eventually(lambda: work(rabbit, vhost).unacked == 0)
        other.send(signal.SIGTERM)
        assert await other.ended() == 0

    assert code == -signal.SIGKILL
    again = {line.split()[0] for line in other.lines("begin ") if line.endswith("again")}
    assert again >= set(begun(app))
    assert Counter(other.lines("end ")) == Counter(map(str, range(30)))
    assert (work(rabbit, vhost), dead(rabbit, vhost)) == (QueueState(0, 0, 0), 0)


@pytest.mark.parametrize("form", ["async def", "def"])
@pytest.mark.parametrize("error", ["SystemExit(0)", "SystemExit(3)", "KeyboardInterrupt"])
async def test_c7_a_handler_that_exits(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path, form: str, error: str
) -> None:
    """C7: `SystemExit` and others stop the process with an exit code other than 0."""
    consumers = f"""
        from workerkit import AMQPConsumer

        class Leaving(AMQPConsumer):
            queues = ["work"]

            {form} handle(self, body: str) -> None:
                raise {error}

            async def on_stop(self) -> None:
                print("on_stop", flush=True)
    """
    container = """
        from dependency_injector import providers
        from workerkit import WorkerContainer

        def lent():
            yield 1
            print("closed", flush=True)

        class Container(WorkerContainer):
            lent = providers.Resource(lent)
    """
    name = write_package(tmp_path, consumers=consumers, container=container)
    await publish(rabbit, vhost, [7])

    async with running(name, cwd=tmp_path, WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost)) as app:
        code = await app.ended()

    assert code not in {0, None}, app
    assert app.out == ["on_stop", "closed"], app
    await until_ready(rabbit, vhost, 1)
    assert dead(rabbit, vhost) == 0


async def test_c7_out_of_memory(rabbit: PrivateRabbit, vhost: str, tmp_path: Path) -> None:
    """C7: a process that is out of memory stops with a line; the message is requeued."""
    consumers = """
        from workerkit import AMQPConsumer

        class Greedy(AMQPConsumer):
            queues = ["work"]

            async def handle(self, body: str) -> None:
                raise MemoryError
    """
    name = write_package(tmp_path, consumers=consumers)
    await publish(rabbit, vhost, [7])

    async with running(name, cwd=tmp_path, WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost)) as app:
        code = await app.ended()

    assert code == 1, app
    await until_ready(rabbit, vhost, 1)


# Resources of every kind, each of which needs the previous one, and prints its life cycle.
CHAIN = """
    from dependency_injector import providers
    from workerkit import WorkerContainer

    def first():
        print("open first", flush=True)
        yield 1
        print("close first", flush=True)

    async def second(first):
        print("open second", first, flush=True)
        yield first + 1
        print("close second", flush=True)

    def third(second):
        print("open third", second, flush=True)
        yield second + 1
        print("close third", flush=True)

    def say(record):
        print("settled", record.action, flush=True)

    class Container(WorkerContainer):
        alone = providers.Object(0)
        a_third = providers.Resource(third, second=None)
        z_first = providers.Resource(first)
        second = providers.Resource(second, first=z_first)
        a_third.set_kwargs(second=second)
        total = providers.Singleton(lambda a_third: a_third, a_third)
        observers = providers.List(providers.Object(say))
"""

TOTALLING = """
    import asyncio
    from pathlib import Path
    from workerkit import AMQPConsumer

    class Totalling(AMQPConsumer):
        queues = ["work"]

        def __init__(self, total: int) -> None:
            print("made", total, flush=True)

        async def on_start(self) -> None:
            print("on_start", flush=True)

        async def on_stop(self) -> None:
            print("on_stop", flush=True)

        async def handle(self, body: str) -> None:
            print("begin", flush=True)
            while not Path("gate").exists():
                await asyncio.sleep(0.01)
"""


async def test_f8_the_order_of_resources(rabbit: PrivateRabbit, vhost: str, tmp_path: Path) -> None:
    """F8: resources open before consumers are created, and close after them, in reverse order."""
    name = write_package(tmp_path, consumers=TOTALLING, container=CHAIN)
    await publish(rabbit, vhost, [7])

    async with running(name, cwd=tmp_path, WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost)) as app:
        await app.says("begin")
        app.send(signal.SIGTERM)
        await eventually(lambda: work(rabbit, vhost).consumers == 0)
        (tmp_path / "gate").touch()
        code = await app.ended()

    assert code == 0, app
    assert app.out == [
        "open first",
        "open second 1",
        "open third 2",
        "made 3",
        "on_start",
        "begin",
        "settled ack",
        "on_stop",
        "close third",
        "close second",
        "close first",
    ]
    assert work(rabbit, vhost) == QueueState(0, 0, 0)


async def test_f8_one_that_raises_while_closing(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path
) -> None:
    """F8: a resource that raises while closing is named, exit code 1, and the others close."""
    failing = CHAIN.replace('print("close second", flush=True)', 'raise OSError("disk is full")')
    failing = failing.replace('print("close third", flush=True)', 'raise KeyError("third")')
    name = write_package(tmp_path, consumers=TOTALLING, container=failing)

    async with running(
        name,
        cwd=tmp_path,
        WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost),
        WORKERKIT_LOG__LEVEL="info",
    ) as app:
        await app.says("consuming")
        app.send(signal.SIGTERM)
        code = await app.ended()

    assert code == 1, app
    assert app.out[-2:] == ["on_stop", "close first"]
    assert app.err[-2:] == [
        "resource 'a_third' could not be closed: KeyError: 'third'",
        "resource 'second' could not be closed: OSError: disk is full",
    ]


@pytest.mark.parametrize(("kind", "yielded"), [("async def", "first + 1"), ("def", "1")])
async def test_f8_one_that_fails_to_open(tmp_path: Path, kind: str, yielded: str) -> None:
    """F8: a resource that fails to open ends the start with one line; those before it close."""
    failing = CHAIN.replace("async def second", f"{kind} second").replace(
        f"yield {yielded if kind == 'async def' else 'first + 1'}",
        'raise OSError("disk is full"); yield',
    )
    name = write_package(tmp_path, consumers=TOTALLING, container=failing)

    async with running(name, cwd=tmp_path, WORKERKIT_LOG__LEVEL="error") as app:
        code = await app.ended()

    assert code == 1, app
    assert app.out == ["open first", "open second 1", "close first"]
    assert app.err == ["resource 'second' could not be opened: OSError: disk is full"]


@pytest.mark.parametrize("number", SIGNALS)
async def test_f8_a_signal_while_a_resource_opens(tmp_path: Path, number: signal.Signals) -> None:
    """F8: a process stops while a resource opens, and closes the resources that are open."""
    hanging = "    import asyncio\n" + CHAIN.replace(
        "yield first + 1", "await asyncio.sleep(3600); yield"
    )
    name = write_package(tmp_path, consumers=TOTALLING, container=hanging)

    async with running(name, cwd=tmp_path) as app:
        await app.says("open second")
        before = time.monotonic()
        app.send(number)
        code = await app.ended()
        seconds = time.monotonic() - before

    assert code == 0, app
    assert app.out == ["open first", "open second 1", "close first"]
    assert seconds < 5.0  # the resource would take an hour
    assert "Traceback" not in repr(app)


async def test_f8_on_start_fails(rabbit: PrivateRabbit, vhost: str, tmp_path: Path) -> None:
    """F8: an `on_start` that raises ends the start with one line, and nothing was consumed."""
    consumers = TOTALLING.replace('print("on_start", flush=True)', 'raise LookupError("no table")')
    name = write_package(tmp_path, consumers=consumers, container=CHAIN)
    await publish(rabbit, vhost, [7])

    async with running(
        name,
        cwd=tmp_path,
        WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost),
        WORKERKIT_LOG__LEVEL="error",
    ) as app:
        code = await app.ended()

    assert code == 1, app
    [line] = app.err
    assert "Totalling (consumers.py:" in line
    assert line.endswith("on_start failed: LookupError: no table")
    assert app.out[-3:] == ["close third", "close second", "close first"]
    assert "begin" not in app.out
    assert work(rabbit, vhost) == QueueState(1, 0, 0)


async def test_f8_a_constructor_fails(tmp_path: Path) -> None:
    """F8: a constructor that raises ends the start with one line, and resources close."""
    consumers = TOTALLING.replace('print("made", total, flush=True)', 'raise LookupError("no")')
    name = write_package(tmp_path, consumers=consumers, container=CHAIN)

    async with running(name, cwd=tmp_path, WORKERKIT_LOG__LEVEL="error") as app:
        code = await app.ended()

    assert code == 1, app
    [line] = app.err
    assert "Totalling (consumers.py:" in line
    assert "could not be created: LookupError: no (Totalling.__init__, consumers.py:" in line
    assert app.out[-1] == "close first"


async def test_f8_a_provider_of_a_constructor_fails(tmp_path: Path) -> None:
    """F8: a provider that raises is named with its place and the class that needs it."""
    consumers = """
        from workerkit import AMQPConsumer

        class Wanting(AMQPConsumer):
            queues = ["q"]

            def __init__(self, store) -> None: ...

            async def handle(self, body: bytes) -> None: ...
    """
    container = """
        from dependency_injector import providers
        from workerkit import WorkerContainer

        class Store:
            def __init__(self) -> None:
                raise LookupError("no table")

        class Container(WorkerContainer):
            store = providers.Singleton(Store)
    """
    name = write_package(tmp_path, consumers=consumers, container=container)

    async with running(name, cwd=tmp_path, WORKERKIT_LOG__LEVEL="error") as app:
        code = await app.ended()

    assert code == 1, app
    [line] = app.err
    assert "Wanting (consumers.py:" in line
    assert line.endswith(
        "could not be created: LookupError: no table (provider 'store', Store.__init__, "
        "container.py:7)"
    )


async def test_f8_an_exit_during_the_start(tmp_path: Path) -> None:
    """F8: `sys.exit` in `on_start` fails the start as any error does; resources close."""
    consumers = TOTALLING.replace('print("on_start", flush=True)', "raise SystemExit(0)")
    name = write_package(tmp_path, consumers=consumers, container=CHAIN)

    async with running(name, cwd=tmp_path, WORKERKIT_LOG__LEVEL="error") as app:
        code = await app.ended()

    assert code == 1, app
    assert app.out[-3:] == ["close third", "close second", "close first"]
    assert "Totalling" in app.err[-1]


async def test_f8_an_invalid_publisher(tmp_path: Path) -> None:
    """F8: for any error in a provider, the start fails and resources close."""
    container = CHAIN + "        publisher = providers.Object(None)\n"
    name = write_package(tmp_path, consumers=TOTALLING, container=container)

    async with running(name, cwd=tmp_path, WORKERKIT_LOG__LEVEL="error") as app:
        code = await app.ended()

    assert code == 1, app
    assert app.out[-1] == "close first"


async def test_start_timeout_of_a_broker(tmp_path: Path) -> None:
    """With `start_timeout` a broker that is down ends the start, exit code 1, with the reason."""
    name = write_package(tmp_path, consumers=GATED)
    port = free_port()

    async with running(
        name,
        cwd=tmp_path,
        WORKERKIT_AMQP__DEFAULT__URL=f"amqp://guest:hunter22@127.0.0.1:{port}/",
        WORKERKIT_START_TIMEOUT="5",
        WORKERKIT_LOG__LEVEL="critical",
    ) as app:
        code = await app.ended()

    assert code == 1, app
    [line] = app.err
    assert line.startswith("Gated is not ready in time: ")
    assert f"127.0.0.1:{port}" in line
    assert "hunter22" not in repr(app)


async def test_start_timeout_of_a_resource(tmp_path: Path) -> None:
    """With `start_timeout` a resource that does not open ends the start, exit code 1."""
    hanging = "    import asyncio\n" + CHAIN.replace(
        "yield first + 1", "await asyncio.sleep(3600); yield"
    )
    name = write_package(tmp_path, consumers=TOTALLING, container=hanging)

    async with running(
        name, cwd=tmp_path, WORKERKIT_START_TIMEOUT="1", WORKERKIT_LOG__LEVEL="error"
    ) as app:
        code = await app.ended()

    assert code == 1, app
    assert app.err == ["the resources were not open in time"]
    assert app.out[-1] == "close first"


@pytest.mark.parametrize("number", SIGNALS)
async def test_b7_before_the_first_connection(tmp_path: Path, number: signal.Signals) -> None:
    """B7: a process that waits for its broker ends within a second, exit code 0."""
    name = write_package(tmp_path, consumers=GATED)
    url = f"amqp://127.0.0.1:{free_port()}/"

    async with running(name, cwd=tmp_path, WORKERKIT_AMQP__DEFAULT__URL=url) as app:
        # By the fifth attempt the pauses are longer than the test allows.
        await app.says("attempt=5")
        before = time.monotonic()
        app.send(number)
        code = await app.ended()
        seconds = time.monotonic() - before

    assert code == 0, app
    assert seconds < 3.5


@pytest.mark.parametrize("how", ["refused", "silent"])
async def test_b7_while_reconnecting(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path, how: str
) -> None:
    """B7: a process that has lost its broker stops without waiting for it."""
    name = write_package(tmp_path, consumers=GATED)
    await publish(rabbit, vhost, [7])

    async with Proxy("127.0.0.1", rabbit.port) as proxy:
        url = f"amqp://guest:guest@127.0.0.1:{proxy.port}/{vhost}"
        async with running(name, cwd=tmp_path, WORKERKIT_AMQP__DEFAULT__URL=url) as app:
            await app.says("begin 7")
            if how == "refused":
                proxy.refuse()
            else:
                proxy.freeze()
            proxy.drop()
            await app.says("connection failed" if how == "refused" else "connection lost")
            if how == "silent":
                await eventually(lambda: proxy.connections > 0)
            app.send(signal.SIGTERM)
            await app.says("stopping")
            (tmp_path / "gate").touch()
            before = time.monotonic()
            code = await app.ended()
            seconds = time.monotonic() - before

    assert code == 0, app
    assert seconds < 10.0
    assert list(app.lines("end ")) == ["7"]


async def test_b7_no_attempt_afterwards() -> None:
    """B7: after the application has stopped, no task is left that could connect."""

    class Waiting(AMQPConsumer):
        queues = ["work"]
        failed = 0

        async def handle(self, body: bytes) -> None: ...

        async def on_connection_error(self, error: Exception, attempt: int) -> None:
            Waiting.failed += 1

    before = asyncio.all_tasks()
    url = f"amqp://127.0.0.1:{free_port()}/"
    async with application.running(url, Waiting, ready=False):
        await eventually(lambda: Waiting.failed == 2)

    assert asyncio.all_tasks() == before
    assert Waiting.failed == 2


async def test_logs_are_json_lines(rabbit: PrivateRabbit, vhost: str, tmp_path: Path) -> None:
    """If stderr is not a terminal and no format is set, every line is JSON."""
    name = write_package(tmp_path, consumers=GATED)
    variables: dict[str, Any] = {
        "WORKERKIT_AMQP__DEFAULT__URL": rabbit.url(vhost),
        "WORKERKIT_LOG__FORMAT": "",
    }

    async with running(name, cwd=tmp_path, **variables) as app:
        await app.says("consuming")
        app.send(signal.SIGTERM)
        code = await app.ended()

    records = [json.loads(line) for line in app.err]
    assert code == 0, app
    assert {"timestamp", "level", "logger", "message"} <= set.intersection(*map(set, records))
    assert [each["message"] for each in records][-2:] == ["stopping", "stopped"]
