"""A transport from another package: a base class, options and an object in `transports`."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pytest
from dependency_injector import providers

from tests.application import Recorder, container_of, package_of
from tests.records import errors
from tests.waiting import eventually
from workerkit import (
    Action,
    Consumer,
    DeclarationError,
    PeriodicTask,
    RunError,
    Runner,
    Settled,
    WorkerSettings,
)
from workerkit.runner import banner
from workerkit.transport import (
    Context,
    Declared,
    Delivery,
    Endpoint,
    Health,
    Options,
    Part,
    Workers,
    notify,
)

# What the other package has


@dataclass(frozen=True, slots=True, kw_only=True)
class PipeOptions(Options):
    """The options of a `PipeConsumer`."""

    pipe: str
    on_exception: Action = Action.REQUEUE


class PipeConsumer(Consumer, abstract=True):
    """Handles what comes through a pipe in memory."""

    options: ClassVar[type[Options]] = PipeOptions
    pipe: ClassVar[str]
    on_exception: ClassVar[Action]


class Drop(Delivery):
    """One thing that came through a pipe."""

    body: Any

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        self.body = None


class PipeTransport:
    """Feeds every `PipeConsumer`."""

    kind = "pipe"
    delivery: type[Delivery] | None = Drop

    def __init__(self) -> None:
        self.pipes: dict[str, list[bytes]] = {}
        self.calls: list[str] = []
        self._parts: list[Part] = []
        self._endpoints: dict[str, Endpoint] = {}
        self._workers: list[Workers] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._context: Context | None = None

    def check(self, declared: Declared, settings: WorkerSettings) -> list[str]:
        """A pipe has a name."""
        return [] if _pipe(declared.options) else [f"{declared.options.name}: an empty pipe"]

    def source(self, options: Options) -> str:
        """The pipe."""
        return _pipe(options)

    def via(self, options: Options, settings: WorkerSettings) -> str:
        """Nothing is between."""
        return "memory"

    def endpoint(self, declared: Declared, consumer: Consumer) -> Endpoint:
        """The endpoint of one consumer."""
        assert isinstance(declared.options, PipeOptions)
        return Endpoint(
            consumer,
            declared.options,
            declared.signature,
            on_success=Action.ACK,
            on_exception=declared.options.on_exception,
            on_invalid=Action.REJECT,
        )

    async def start(self, endpoints: Sequence[Endpoint], context: Context) -> list[Health]:
        """Begin to feed."""
        self.calls.append("start")
        self._context = context
        health = []
        for endpoint in endpoints:
            pipe = _pipe(endpoint.options)
            self._endpoints[pipe] = endpoint
            self.pipes.setdefault(pipe, [])
            work = partial(self._work, pipe)
            workers = Workers(endpoint.name, endpoint.options.concurrency, work)
            self._workers.append(workers)
            self._tasks += [context.keep(task, name) for name, task in workers.tasks()]
            part = Part(context.changed)
            part.ready()
            self._parts.append(part)
            health.append(Health(endpoint.name, [part], outside=False))
        return health

    def put(self, pipe: str, *bodies: bytes) -> None:
        """Send through a pipe."""
        self.pipes.setdefault(pipe, []).extend(bodies)
        for workers in self._workers:
            workers.wake()

    async def stop(self) -> None:
        """Take nothing new."""
        self.calls.append("stop")
        self._stopping = True
        for part in self._parts:
            part.stopping()

    async def drain(self) -> None:
        """Wait for the handlers."""
        self.calls.append("drain")
        await asyncio.gather(*(each.quiet() for each in self._workers))

    async def cancel(self) -> None:
        """Cancel the handlers."""
        self.calls.append("cancel")
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    def busy(self) -> list[str]:
        """Who still runs."""
        return [
            endpoint.name
            for endpoint, workers in zip(self._endpoints.values(), self._workers, strict=True)
            if workers.busy
        ]

    async def close(self) -> None:
        """Nothing is left."""
        self.calls.append("close")
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _work(self, pipe: str) -> None:
        assert self._context is not None
        endpoint, waiting = self._endpoints[pipe], self.pipes[pipe]
        while waiting and not self._stopping:
            drop = Drop(waiting.pop(0))
            outcome = await endpoint.process(drop)
            if outcome.action is Action.REQUEUE:
                waiting.append(drop.raw)
            record = Settled(endpoint.name, pipe, drop, outcome, outcome.action, 0.0)
            notify(self._context.observers, record)


def _pipe(options: Options) -> str:
    assert isinstance(options, PipeOptions)
    return options.pipe


# What the application has


def application(
    *consumers: type[Consumer], **settings: Any
) -> tuple[Runner, PipeTransport, Recorder]:
    """A runner of *consumers* whose container has the other transport beside its own."""
    recorder = Recorder()
    transport = PipeTransport()
    container = container_of("amqp://127.0.0.1:1/", recorder, **settings)
    container.extra_transports.add_kwargs({PipeConsumer: providers.Object(transport)})
    return Runner(container, packages=[package_of(*consumers)]), transport, recorder


async def test_another_transport_delivers_and_settles() -> None:
    """Bodies are read as `handle` declares, failures follow the options, observers are called."""
    seen: list[dict[str, int]] = []

    class Piped(PipeConsumer):
        pipe = "orders"
        concurrency = 2
        on_exception = Action.REJECT

        async def handle(self, order: dict[str, int], drop: Drop) -> None:
            seen.append(order)
            if drop.raw == b'{"id": 2}':
                raise KeyError("two")
            if drop.raw == b'{"id": 3}':
                drop.decide(Action.REQUEUE if seen.count(order) == 1 else Action.ACK)

    runner, transport, recorder = application(Piped)
    async with runner.running():
        ready = runner.ready
        transport.put("orders", b'{"id": 1}', b'{"id": 2}', b'{"id": 3}', b"bad")
        await eventually(lambda: len(recorder.settled) == 5)

    assert ready
    assert seen == [{"id": 1}, {"id": 2}, {"id": 3}, {"id": 3}]
    assert sorted(recorder.actions) == ["ack", "ack", "reject", "reject", "requeue"]
    assert transport.calls == ["start", "stop", "drain", "close"]


async def test_another_transport_is_drained_and_stopped(caplog: pytest.LogCaptureFixture) -> None:
    """Handlers that run finish, and nothing new is begun."""
    gate = asyncio.Event()
    begun: list[bytes] = []

    class Piped(PipeConsumer):
        pipe = "orders"

        async def handle(self, body: bytes) -> None:
            begun.append(body)
            await gate.wait()

    runner, transport, recorder = application(Piped)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(runner.running())
        transport.put("orders", b"a", b"b")
        await eventually(lambda: begun)
        stopping = asyncio.create_task(stack.aclose())
        await eventually(lambda: "drain" in transport.calls)
        gate.set()
        await stopping

    assert begun == [b"a"]
    assert recorder.actions == ["ack"]
    assert transport.pipes["orders"] == [b"b"]
    assert transport.calls == ["start", "stop", "drain", "close"]
    assert errors(caplog) == []


async def test_another_transport_is_cancelled_after_the_grace() -> None:
    """Handlers that do not end are cancelled by its own `cancel`."""

    class Piped(PipeConsumer):
        pipe = "orders"

        async def handle(self, body: bytes) -> None:
            await asyncio.Event().wait()

    runner, transport, recorder = application(Piped, shutdown_grace=0.1)
    async with runner.running():
        transport.put("orders", b"a")
        await eventually(transport.busy)

    assert recorder.actions == []
    assert transport.calls == ["start", "stop", "drain", "cancel", "close"]


async def test_transports_run_beside_each_other() -> None:
    """A task of the clock and a consumer of another transport run in one process."""
    ticks: list[int] = []
    seen: list[bytes] = []

    class Piped(PipeConsumer):
        pipe = "orders"

        async def handle(self, body: bytes) -> None:
            seen.append(body)

    class Ticking(PeriodicTask):
        every = 0.05

        async def handle(self) -> None:
            ticks.append(1)

    runner, transport, _ = application(Piped, Ticking)
    async with runner.running():
        transport.put("orders", b"a")
        await eventually(lambda: seen and len(ticks) >= 2)

    assert seen == [b"a"]


def test_options_of_another_transport_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment, the banner and the faults of the transport's own check know them."""
    monkeypatch.setenv("TESTS_ONLY_CONSUMERS__PIPED__PIPE", "others")
    monkeypatch.setenv("TESTS_ONLY_CONSUMERS__PIPED__CONCURRENCY", "5")
    monkeypatch.setenv("TESTS_ONLY_CONSUMERS__PIPED__ON_EXCEPTION", "reject")

    class Piped(PipeConsumer):
        pipe = "orders"

        async def handle(self, body: bytes) -> None: ...

    runner, _, _ = application(Piped)
    assembly = runner.assemble()
    [declared] = assembly.declared

    assert isinstance(declared.options, PipeOptions)
    assert (declared.options.pipe, declared.options.concurrency) == ("others", 5)
    assert declared.options.on_exception is Action.REJECT
    assert "Piped: pipe others, memory" in banner(assembly)


@pytest.mark.parametrize("pipe", ["", None], ids=["empty", "missing"])
def test_faults_that_another_transport_finds(pipe: str | None) -> None:
    """What is missing, and what the own `check` of the transport finds, is reported at once."""

    async def handle(self: PipeConsumer, body: bytes) -> None: ...

    attributes: dict[str, object] = {"handle": handle} | ({} if pipe is None else {"pipe": pipe})
    runner, _, _ = application(type("Piped", (PipeConsumer,), attributes))

    with pytest.raises(DeclarationError, match=r"pipe"):
        runner.assemble()


def test_without_its_transport_a_base_class_is_a_fault() -> None:
    """The bases that would do are named."""

    class Piped(PipeConsumer):
        pipe = "orders"

        async def handle(self, body: bytes) -> None: ...

    container = container_of("amqp://127.0.0.1:1/")
    runner = Runner(container, packages=[package_of(Piped)])

    with pytest.raises(
        DeclarationError,
        match=r"does not know this kind .*; .* AMQPConsumer, HTTPView, SSEConsumer, Periodic",
    ):
        runner.assemble()


async def test_a_transport_that_fails_while_stopping_does_not_keep_the_others() -> None:
    """Its error is a fault of the run, and everything stops all the same."""

    class Piped(PipeConsumer):
        pipe = "orders"
        stopped = False

        async def handle(self, body: bytes) -> None: ...

        async def on_stop(self) -> None:
            Piped.stopped = True

    class Failing(PipeTransport):
        async def stop(self) -> None:
            raise OSError("the pipe burst")

    transport = Failing()
    container = container_of("amqp://127.0.0.1:1/")
    container.extra_transports.add_kwargs({PipeConsumer: providers.Object(transport)})
    with pytest.raises(RunError, match="the pipe burst"):
        async with Runner(container, packages=[package_of(Piped)]).running():
            pass

    assert Piped.stopped
    assert transport.calls == ["start", "drain", "close"]


async def test_a_transport_that_fails_to_close_does_not_keep_the_others() -> None:
    """Consumers are told, and the container's resources close, whatever a transport does."""
    closed: list[str] = []

    class Piped(PipeConsumer):
        pipe = "orders"

        async def handle(self, body: bytes) -> None: ...

        async def on_stop(self) -> None:
            closed.append("on_stop")

    class Failing(PipeTransport):
        async def close(self) -> None:
            await super().close()
            raise OSError("the pipe burst")

    container = container_of("amqp://127.0.0.1:1/")
    container.extra_transports.add_kwargs({PipeConsumer: providers.Object(Failing())})
    with pytest.raises(RunError, match="the pipe burst"):
        async with Runner(container, packages=[package_of(Piped)]).running():
            pass

    assert closed == ["on_stop"]


class Outbox:
    """A publisher of the user's own, which takes no attributes."""

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls: list[str] = []

    def open(self, settings: WorkerSettings) -> None:
        """Record the call."""
        self.calls.append(type(settings).__name__)

    async def close(self) -> None:
        """Record the call."""
        self.calls.append("close")


async def test_a_publisher_without_observers() -> None:
    """Only a `Publisher` gets the observers; any other object is opened and closed."""

    class Piped(PipeConsumer):
        pipe = "orders"

        async def handle(self, body: bytes) -> None: ...

    outbox = Outbox()
    container = container_of("amqp://127.0.0.1:1/")
    container.extra_transports.add_kwargs({PipeConsumer: providers.Object(PipeTransport())})
    container.publisher.override(providers.Object(outbox))
    runner = Runner(container, packages=[package_of(Piped)])

    async with runner.running():
        opened = list(outbox.calls)

    assert opened == ["_Settings"]
    assert outbox.calls == ["_Settings", "close"]
