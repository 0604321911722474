"""A transport that has only `receive` and `settle`."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from dependency_injector import containers, providers

from tests.application import Recorder, container_of, package_of
from tests.records import errors, fields
from tests.waiting import eventually
from workerkit import (
    Action,
    Consumer,
    RetryPolicy,
    Runner,
    SimpleConsumer,
    SimpleDelivery,
    SimpleOptions,
    SimpleTransport,
    WorkerContainer,
)
from workerkit.health import State
from workerkit.simple_options import possible_outcome
from workerkit.transport import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOptions(SimpleOptions):
    """The options of a `ListConsumer`."""

    items: str


class ListConsumer(SimpleConsumer, abstract=True):
    """Handles the items of a list in memory."""

    options = ListOptions
    items: ClassVar[str]


class ListTransport(SimpleTransport[ListOptions]):
    """Receives from lists in memory."""

    kind = "list"

    def __init__(self) -> None:
        super().__init__()
        self.items: deque[SimpleDelivery] = deque()
        self.added = asyncio.Event()
        self.done: list[tuple[bytes, str]] = []
        self.failures = 0
        self.settle_error: Exception | None = None

    def put(self, *bodies: bytes) -> None:
        """Add items."""
        self.items.extend(map(SimpleDelivery, bodies))
        self.added.set()

    async def receive(self, options: ListOptions) -> AsyncIterator[SimpleDelivery]:
        """Take items off the list."""
        while True:
            while self.items:
                if self.failures:
                    self.failures -= 1
                    raise ConnectionError("the list is torn")
                yield self.items.popleft()
            self.added.clear()
            await self.added.wait()

    async def settle(self, delivery: SimpleDelivery, outcome: Outcome) -> None:
        """Put requeued items back."""
        if self.settle_error is not None:
            raise self.settle_error
        self.done.append((delivery.raw, outcome.action.value))
        if outcome.action is Action.REQUEUE:
            delivery.again()
            self.items.append(delivery)
            self.added.set()


def application(
    *consumers: type[Consumer], transport: ListTransport | None = None, **settings: Any
) -> tuple[Runner, ListTransport, Recorder]:
    """A runner whose container adds the transport to the built-in ones."""
    recorder, transport = Recorder(), transport or ListTransport()
    container = container_of("amqp://127.0.0.1:1/", recorder, **settings)
    container.extra_transports.override(providers.Dict({ListConsumer: providers.Object(transport)}))
    return Runner(container, packages=[package_of(*consumers)]), transport, recorder


async def test_deliveries_are_handled_and_settled() -> None:
    """Bodies are read as `handle` says, and each outcome reaches `settle`."""

    class Listed(ListConsumer):
        items = "orders"
        on_exception = Action.REJECT

        async def handle(self, order: dict[str, int]) -> None:
            if order["id"] == 2:
                raise KeyError("two")

    runner, transport, recorder = application(Listed)
    async with runner.running():
        await eventually(lambda: runner.ready)
        transport.put(b'{"id": 1}', b'{"id": 2}', b"bad")
        await eventually(lambda: len(recorder.settled) == 3)

    assert sorted(transport.done) == [
        (b"bad", "reject"),
        (b'{"id": 1}', "ack"),
        (b'{"id": 2}', "reject"),
    ]
    assert sorted(recorder.actions) == ["ack", "reject", "reject"]


async def test_batches() -> None:
    """A list annotation makes batches, and one delivery may decide for itself."""
    seen: list[list[bytes]] = []

    class Listed(ListConsumer):
        items = "orders"
        batch_size = 3
        batch_interval = 60.0

        async def handle(self, bodies: list[bytes]) -> None:
            seen.append(bodies)

    runner, transport, recorder = application(Listed)
    async with runner.running():
        transport.put(b"a", b"b", b"c", b"d")
        await eventually(lambda: len(recorder.settled) == 3)

    assert seen == [[b"a", b"b", b"c"], [b"d"]]
    assert recorder.actions == ["ack"] * 4


async def test_no_more_is_received_than_workers_take() -> None:
    """While all workers are busy `receive` is not resumed."""
    gate = asyncio.Event()

    class Listed(ListConsumer):
        items = "orders"
        concurrency = 2

        async def handle(self, body: bytes) -> None:
            await gate.wait()

    runner, transport, recorder = application(Listed)
    async with runner.running():
        transport.put(b"a", b"b", b"c")
        await eventually(lambda: runner.health[0].in_flight() == 2)
        left = len(transport.items)
        gate.set()
        await eventually(lambda: len(recorder.settled) == 3)

    assert left == 1


async def test_a_retry_is_made_in_place() -> None:
    """A transport that cannot delay a delivery keeps it, and dead letters are rejected."""
    attempts: list[int] = []

    class Listed(ListConsumer):
        items = "orders"
        retry = RetryPolicy(delays=(0, 0.01))

        async def handle(self, body: bytes) -> None:
            attempts.append(len(attempts) + 1)
            raise KeyError("customer")

    runner, transport, recorder = application(Listed)
    async with runner.running():
        transport.put(b"a")
        await eventually(lambda: transport.done)

    assert attempts == [1, 2, 3]
    assert recorder.actions == ["retry", "retry", "reject"]
    assert transport.done == [(b"a", "reject")]


async def test_requeues_are_paced() -> None:
    """The first requeue is made at once, the next one after a pause, which a test can skip."""

    class Listed(ListConsumer):
        items = "orders"

        async def handle(self, body: bytes) -> None:
            raise KeyError("customer")

    runner, transport, _ = application(Listed)
    async with runner.running():
        transport.put(b"a")
        await eventually(lambda: len(transport.done) == 1 and transport.pending())
        await asyncio.sleep(0.1)
        waiting = len(transport.done)
        transport.skip_waits()
        await eventually(lambda: len(transport.done) == 2)

    assert waiting == 1
    assert transport.done[-1] == (b"a", "requeue")  # Stopping requeues what waits.


async def test_receive_is_called_again_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """A failure is logged, observers and the hook learn of it, and health shows it."""
    failed: list[int] = []

    class Listed(ListConsumer):
        items = "orders"

        async def handle(self, body: bytes) -> None: ...

        async def on_connection_error(self, error: Exception, attempt: int) -> None:
            failed.append(attempt)

    runner, transport, recorder = application(Listed)
    transport.failures = 1
    async with runner.running():
        transport.put(b"a")
        await eventually(lambda: failed)
        state, reason = runner.health[0].state, runner.health[0].reason
        await eventually(lambda: recorder.settled)
        ready = runner.ready

    assert state is State.WAITING
    assert "the list is torn" in reason
    assert ready
    assert errors(caplog) == ["cannot receive"]
    assert failed == [1]


async def test_a_delivery_that_cannot_be_settled_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged and reported, and the consumer continues."""

    class Listed(ListConsumer):
        items = "orders"
        concurrency = 1

        async def handle(self, body: bytes) -> None: ...

    runner, transport, recorder = application(Listed)
    transport.settle_error = ConnectionError("the list is torn")
    async with runner.running():
        transport.put(b"a", b"b")
        await eventually(lambda: len(recorder.settled) == 2)

    assert recorder.actions == ["lost", "lost"]
    [record, _] = fields(caplog, "cannot settle: the source has to redeliver")
    assert record["consumer"] == "Listed"


async def test_a_source_that_ends() -> None:
    """Its consumer has ended, and the process stays ready."""

    class Ending(ListTransport):
        async def receive(self, options: ListOptions) -> AsyncIterator[SimpleDelivery]:
            yield SimpleDelivery(b"a")

    class Listed(ListConsumer):
        items = "orders"

        async def handle(self, body: bytes) -> None: ...

    runner, _, recorder = application(Listed, transport=Ending())
    async with runner.running():
        await eventually(lambda: runner.health[0].state is State.ENDED)
        await eventually(lambda: recorder.settled)

        assert runner.ready


async def test_stop_handles_what_was_received_and_cancel_settles_nothing() -> None:
    """After the grace period handlers are cancelled, and `settle` is not called for them."""

    class Listed(ListConsumer):
        items = "orders"
        concurrency = 1

        async def handle(self, body: bytes) -> None:
            await asyncio.Event().wait()

    runner, transport, recorder = application(Listed, shutdown_grace=0.05)
    async with runner.running():
        transport.put(b"a", b"b")
        await eventually(transport.busy)

    assert transport.done == []
    assert recorder.actions == []
    assert [each.raw for each in transport.items] == [b"b"]


async def test_receive_is_cancelled_until_it_ends() -> None:
    """A client library may swallow a cancellation while it reads."""

    class Swallowing(ListTransport):
        cancelled = 0

        async def receive(self, options: ListOptions) -> AsyncIterator[SimpleDelivery]:
            while self.cancelled < 2:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancelled += 1
            async for delivery in super().receive(options):
                yield delivery

    class Listed(ListConsumer):
        items = "orders"

        async def handle(self, body: bytes) -> None: ...

    transport = Swallowing()
    runner, _, _ = application(Listed, transport=transport)
    async with runner.running():
        await eventually(lambda: runner.ready)

    assert transport.cancelled == 2


@pytest.mark.parametrize(
    ("action", "actions", "expected"),
    [
        (Action.ACK, [], "ack"),
        (Action.REJECT, [], "ack"),
        (Action.REJECT, [Action.REJECT], "reject"),
        (Action.DEAD_LETTER, [], "ack"),
        (Action.DEAD_LETTER, [Action.REJECT], "reject"),
        (Action.DEAD_LETTER, [Action.DEAD_LETTER], "dead_letter"),
        (Action.REQUEUE, [], None),
        (Action.REQUEUE, [Action.REQUEUE], "requeue"),
        (Action.RETRY, [], None),
        (Action.RETRY, [Action.RETRY], "retry"),
    ],
)
def test_what_a_transport_cannot_do(
    action: Action, actions: list[Action], expected: str | None
) -> None:
    """The nearest possible action takes the place of an impossible one; None is in place."""
    found = possible_outcome(Outcome(action, delay=5.0), actions)

    assert (None if found is None else found.action) == expected


def test_a_retry_without_delay_is_made_in_place() -> None:
    """Whatever the transport can do."""
    assert possible_outcome(Outcome(Action.RETRY), [Action.RETRY]) is None


def test_receive_has_to_yield() -> None:
    """A coroutine function is refused when the class is defined."""
    with pytest.raises(TypeError, match=r"Wrong.receive has to yield"):

        class Wrong(ListTransport):
            async def receive(self, options: ListOptions) -> Any:  # type: ignore[override]
                return None


def test_a_container_adds_to_the_built_in_transports() -> None:
    """An extra transport runs beside them, and none has to be repeated."""

    class Container(WorkerContainer):
        extra_transports = providers.Dict({ListConsumer: providers.Singleton(ListTransport)})

    class Listed(ListConsumer):
        items = "orders"

        async def handle(self, body: bytes) -> None: ...

    container: containers.Container = Container()
    assembly = Runner(container, packages=[package_of(Listed)]).assemble()

    [(transport, _)] = assembly.transports
    assert isinstance(transport, ListTransport)


async def test_paused_and_resumed() -> None:
    """What was received is handled during a pause, and nothing more is received."""
    handled: list[bytes] = []
    gate = asyncio.Event()

    class Listed(ListConsumer):
        items = "orders"
        concurrency = 1

        async def handle(self, item: bytes) -> None:
            await gate.wait()
            handled.append(item)

    runner, transport, _ = application(Listed)
    async with runner.running():
        await eventually(lambda: runner.ready)
        control = runner.health[0].control
        transport.put(b"1", b"2", b"3")
        await eventually(lambda: runner.health[0].in_flight() == 1)

        # Each one waits for those before it.
        await asyncio.gather(control.pause(), control.resume(), control.pause(), control.pause())
        gate.set()
        await eventually(lambda: handled == [b"1"])
        assert (control.paused, runner.health[0].state, runner.ready) == (True, State.PAUSED, True)

        await asyncio.gather(control.resume(), control.resume())
        await eventually(lambda: handled == [b"1", b"2", b"3"])
        assert (control.paused, runner.health[0].state) == (False, State.READY)


async def test_paused_at_the_start_and_stopped_so() -> None:
    """The process is ready without having received anything, and ends."""

    class Listed(ListConsumer):
        items = "orders"

        async def handle(self, item: bytes) -> None: ...

    runner, transport, recorder = application(Listed, consumers={"listed": {"paused": True}})
    async with runner.running():
        transport.put(b"1")
        await eventually(lambda: runner.ready)
        assert runner.health[0].was_ready

    assert (recorder.settled, len(transport.items)) == ([], 1)


async def test_a_pause_whose_caller_is_cancelled() -> None:
    """It is made all the same, and ended as any other."""
    handled: list[bytes] = []

    class Listed(ListConsumer):
        items = "orders"

        async def handle(self, item: bytes) -> None:
            handled.append(item)

    runner, transport, _ = application(Listed)
    async with runner.running():
        await eventually(lambda: runner.ready)
        control = runner.health[0].control
        pause = asyncio.create_task(control.pause())
        await asyncio.sleep(0)
        pause.cancel()
        await asyncio.wait([pause])
        transport.put(b"1")
        assert control.paused

        await control.resume()
        await eventually(lambda: handled == [b"1"])


@pytest.mark.parametrize("is_async", [True, False])
async def test_another_concurrency(is_async: bool) -> None:
    """As many calls run at the same time, also of a method that is not asynchronous."""
    loop, gate = asyncio.get_running_loop(), asyncio.Event()
    handled: list[bytes] = []

    class Listed(ListConsumer):
        items = "orders"
        concurrency = 1

        async def handle(self, item: bytes) -> None:
            await gate.wait()
            handled.append(item)

    def handle(self: ListConsumer, item: bytes) -> None:
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()
        handled.append(item)

    if not is_async:
        Listed.handle = handle  # type: ignore[method-assign, assignment]
    runner, transport, _ = application(Listed)
    async with runner.running():
        await eventually(lambda: runner.ready)
        control, in_flight = runner.health[0].control, runner.health[0].in_flight
        transport.put(*(str(number).encode() for number in range(12)))
        await eventually(lambda: in_flight() == 1)

        await control.change_concurrency(4)
        await eventually(lambda: in_flight() == 4)
        await control.change_concurrency(2)
        assert (control.concurrency, in_flight(), len(transport.items)) == (2, 4, 8)
        gate.set()
        await eventually(lambda: len(handled) == 12)
        gate.clear()
        transport.put(*(str(number).encode() for number in range(12, 18)))
        await eventually(lambda: len(transport.items) == 4)
        assert in_flight() == 2
        gate.set()
        await eventually(lambda: len(handled) == 18)

    assert len(set(handled)) == 18
