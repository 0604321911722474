"""The tests that every transport must pass: subclass `TransportContract` in your own tests.

```python
class TestQueueTransport(TransportContract):
    @asynccontextmanager
    async def source(self) -> AsyncIterator[ContractSource]:
        async with a_server() as server:
            yield QueueSource(server)
```

The tests use a real Runner, and only what a `ContractSource` offers. They need pytest, and none of
its plugins. A test that needs a `Capability` which the transport does not have is not collected.
"""

import asyncio
import functools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from itertools import count
from types import ModuleType
from typing import Any, ClassVar

from dependency_injector import providers

from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.delivery import Action
from workerkit.errors import HandlerTimeout, InvalidBody
from workerkit.health import State
from workerkit.retry import RetryPolicy
from workerkit.runner import Runner
from workerkit.testing.contract_source import (
    Call,
    Capability,
    ContractRun,
    ContractSource,
    eventually,
)

__all__ = ["Call", "Capability", "ContractSource", "TransportContract"]

_LOAD = 60
_numbers = count(1)


def _scenario(
    *needs: Capability,
) -> Callable[
    [Callable[["TransportContract"], Coroutine[Any, Any, None]]],
    Callable[["TransportContract"], None],
]:
    """Make a test of a coroutine function; it is collected where the transport has *needs*."""

    def decorate(
        test: Callable[["TransportContract"], Coroutine[Any, Any, None]],
    ) -> Callable[["TransportContract"], None]:
        @functools.wraps(test)
        def run(self: "TransportContract") -> None:
            asyncio.run(test(self))

        function: Any = run
        function.needs = frozenset(needs)
        del function.__wrapped__  # Plugins would take it for a coroutine function.
        return run

    return decorate


class TransportContract:
    """The tests of one transport.

    Attributes:
        capabilities: What the transport can do; everything by default.
    """

    capabilities: ClassVar[Collection[Capability]] = frozenset(Capability)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Leave out the tests of what this transport cannot do."""
        super().__init_subclass__(**kwargs)
        for name in dir(cls):
            needs: frozenset[Capability] = getattr(getattr(cls, name), "needs", frozenset())
            if not needs <= frozenset(cls.capabilities):
                setattr(cls, name, None)

    def source(self) -> AbstractAsyncContextManager[ContractSource]:
        """Open an empty source for one test. Every subclass overrides this."""
        raise NotImplementedError

    @_scenario()
    async def test_deliveries_are_acknowledged(self) -> None:
        """What `handle` returned from is acknowledged, once."""
        async with self.source() as source, self._running(source) as run:
            await source.put(b"1", b"2", b"3")
            await run.until(lambda run: len(run.records) >= 3, "three deliveries are settled")
            await self._remaining(source, 0)

        assert set(run.actions) == {"ack"}
        assert len(run.records) == len(run.handled)
        if Capability.BODIES in self.capabilities:
            assert sorted(run.handled) == [b"1", b"2", b"3"]

    @_scenario()
    async def test_a_failure_is_settled_and_the_next_delivery_is_handled(self) -> None:
        """The record has the exception, and the consumer continues."""

        async def fail_first(run: ContractRun) -> None:
            if len(run.handled) == 1:
                raise KeyError("contract")

        async with self.source() as source, self._running(source, fail_first) as run:
            await source.put(b"1", b"2")
            await run.until(lambda run: "ack" in run.actions, "the second one is acknowledged")

        errors = [each.outcome.error for each in run.records if each.outcome.error]
        assert [type(each) for each in errors] == [KeyError]

    @_scenario(Capability.ON_EXCEPTION, Capability.BODIES)
    async def test_on_exception_ack(self) -> None:
        """A failed delivery can be acknowledged."""
        assert await self._failed(Action.ACK) == ["ack"]

    @_scenario(Capability.ON_EXCEPTION, Capability.BODIES)
    async def test_on_exception_reject(self) -> None:
        """A failed delivery can be rejected; where that is impossible, it is acknowledged."""
        assert await self._failed(Action.REJECT) in (["reject"], ["ack"])

    @_scenario(Capability.ON_EXCEPTION, Capability.BODIES)
    async def test_on_exception_dead_letter(self) -> None:
        """A failed delivery is dead-lettered; where that is impossible, it is rejected."""
        assert await self._failed(Action.DEAD_LETTER) in (["dead_letter"], ["reject"], ["ack"])

    @_scenario(Capability.REQUEUE, Capability.BODIES)
    async def test_on_exception_requeue(self) -> None:
        """A failed delivery that is requeued is handled again."""
        assert await self._failed(Action.REQUEUE) == ["requeue", "ack"]

    @_scenario(Capability.RETRY)
    async def test_a_retry_has_an_end(self) -> None:
        """After the last attempt a delivery is dead-lettered or rejected."""

        async def fail(run: ContractRun) -> None:
            raise KeyError("contract")

        retry = RetryPolicy(delays=(0, 0))
        async with self.source() as source, self._running(source, fail, retry=retry) as run:
            await source.put(b"1")
            await run.until(lambda run: len(run.records) >= 3, "three attempts")
            await self._remaining(source, 0)

        assert run.actions[:2] == ["retry", "retry"]
        assert run.actions[2] in ("dead_letter", "reject", "ack")

    @_scenario()
    async def test_a_late_handler_is_a_failure(self) -> None:
        """A call that takes longer than `timeout` is cancelled, and settled as a failure."""

        async def block_first(run: ContractRun) -> None:
            if len(run.handled) == 1:
                await asyncio.Event().wait()

        async with (
            self.source() as source,
            self._running(source, block_first, timeout=0.1) as run,
        ):
            await source.put(b"1", b"2")
            await run.until(
                lambda run: len(run.records) >= 2 and "ack" in run.actions, "both are settled"
            )

        errors = [each.outcome.error for each in run.records if each.outcome.error]
        assert [type(each) for each in errors] == [HandlerTimeout]

    @_scenario(Capability.BODIES)
    async def test_an_invalid_body(self) -> None:
        """A body that does not fit the annotation is settled, and `handle` is not called."""
        async with (
            self.source() as source,
            self._running(source, body=dict[str, int]) as run,
        ):
            await source.put(b"no JSON")
            await run.until(lambda run: run.records, "it is settled")
            await source.put(b'{"id": 1}')
            await run.until(lambda run: "ack" in run.actions, "the next one is handled")
            await self._remaining(source, 0)

        assert isinstance(run.records[0].outcome.error, InvalidBody)
        assert len(run.handled) == 1

    @_scenario(Capability.CONCURRENCY)
    async def test_the_concurrency_is_reached_and_not_exceeded(self) -> None:
        """With `concurrency = 2` two calls run at the same time, never three."""
        gate = asyncio.Event()

        async def wait(run: ContractRun) -> None:
            await gate.wait()

        async with self.source() as source, self._running(source, wait, concurrency=2) as run:
            await source.put(*(str(number).encode() for number in range(6)))
            await run.until(lambda run: run.running == 2, "two calls run")
            in_flight = run.runner.health[0].in_flight()
            gate.set()
            await run.until(lambda run: len(run.records) >= 6, "six deliveries are settled")

        assert in_flight == 2
        assert run.most == 2

    @_scenario()
    async def test_stop_waits_for_running_handlers(self) -> None:
        """They finish and are settled, and nothing new begins."""
        gate = asyncio.Event()

        async def wait(run: ContractRun) -> None:
            await gate.wait()

        async with self.source() as source, AsyncExitStack() as stack:
            run = await stack.enter_async_context(self._running(source, wait))
            await source.put(b"1")
            await run.until(lambda run: run.running, "a call runs")
            health = run.runner.health[0]
            stopping = asyncio.create_task(stack.aclose())
            await run.until(lambda _: health.state is State.STOPPING, "the process stops")
            begun = len(run.handled)
            gate.set()
            await stopping

            assert run.actions == ["ack"] * begun
            assert len(run.handled) == begun
            await self._remaining(source, 0)

    @_scenario()
    async def test_cancel_settles_nothing(self) -> None:
        """Handlers that run after the grace period are cancelled; the source redelivers."""

        async def block(run: ContractRun) -> None:
            await asyncio.Event().wait()

        async with self.source() as source:
            async with self._running(source, block, grace=0.1) as run:
                await source.put(b"1")
                await run.until(lambda run: run.running, "a call runs")

            assert run.records == []
            assert run.running == 0
            if Capability.REDELIVERS in self.capabilities:
                await self._remaining(source, 1)
                async with self._running(source) as again:
                    await again.until(lambda run: run.records, "it is delivered again")
                assert again.handled == [b"1"]

    @_scenario(Capability.RECONNECTS)
    async def test_a_lost_connection_is_opened_again(self) -> None:
        """After the connection was lost, deliveries are handled, and health is ready again."""
        async with self.source() as source, self._running(source) as run:
            await source.put(b"1")
            await run.until(lambda run: run.records, "the first one is settled")
            await source.interrupt()
            await source.put(b"2")
            await run.until(lambda run: b"2" in run.handled, "the second one is handled")
            await run.until(lambda run: run.runner.ready, "it is ready again")
            await self._remaining(source, 0)

    @_scenario()
    async def test_stop_under_load_loses_nothing(self) -> None:
        """What was handled is settled, and what was not handled remains at the source."""
        bodies = [str(number).encode() for number in range(_LOAD)]

        async def give_way(run: ContractRun) -> None:
            await asyncio.sleep(0)

        async with self.source() as source:
            async with self._running(source, give_way) as run:
                await source.put(*bodies)
                await run.until(lambda run: len(run.records) >= _LOAD // 6, "some are settled")

            assert set(run.actions) == {"ack"}
            assert len(run.records) == len(run.handled)
            if Capability.REDELIVERS in self.capabilities:
                await self._remaining(source, _LOAD - len(run.handled))
                async with self._running(source) as again:
                    await self._remaining(source, 0)
                assert sorted(run.handled + again.handled) == sorted(bodies)

    @_scenario()
    async def test_health(self) -> None:
        """A consumer is ready before the first delivery, busy with one, and stopping at the end."""
        gate = asyncio.Event()

        async def wait(run: ContractRun) -> None:
            await gate.wait()

        async with self.source() as source:
            async with self._running(source, wait) as run:
                [health] = run.runner.health
                state = health.state
                await source.put(b"1")
                await run.until(lambda _: health.in_flight() >= 1, "a call is in flight")
                gate.set()
                await run.until(lambda run: run.records, "it is settled")
                await run.until(lambda _: health.in_flight() == 0, "none is in flight")

            assert state is State.READY
            assert (health.consumer, health.state) == ("Contract", State.STOPPING)

    async def _failed(self, action: Action) -> list[str]:
        """Handle a delivery that fails at first; return the actions, once nothing remains."""

        async def fail_first(run: ContractRun) -> None:
            if len(run.handled) == 1:
                raise KeyError("contract")

        async with (
            self.source() as source,
            self._running(source, fail_first, on_exception=action) as run,
        ):
            await source.put(b"1")
            expected = 2 if action is Action.REQUEUE else 1
            await run.until(lambda run: len(run.records) >= expected, "it is settled")
            await self._remaining(source, 0)
        return run.actions

    async def _remaining(self, source: ContractSource, expected: int) -> None:
        """Wait until the source has this number of deliveries left, where it keeps any."""
        if Capability.REDELIVERS not in self.capabilities:
            return
        found = -1

        async def as_expected() -> bool:
            nonlocal found
            found = await source.remaining()
            return found == expected

        await eventually(as_expected, lambda: f"{expected} deliveries remain; {found} do")

    @asynccontextmanager
    async def _running(
        self,
        source: ContractSource,
        behave: Callable[[ContractRun], Awaitable[None]] | None = None,
        *,
        body: Any = bytes,
        grace: float = 10.0,
        **attributes: Any,
    ) -> AsyncIterator[ContractRun]:
        """Run one consumer inside the block, ready when it begins."""
        container = source.container()

        async def call(delivery: Any) -> None:
            run.handled.append(delivery)
            run.running += 1
            run.most = max(run.most, run.running)
            try:
                if behave is not None:
                    await behave(run)
            finally:
                run.running -= 1

        handle = source.handle(call, body)
        package = _package(source.base, {**source.attributes, **attributes, "handle": handle})
        run = ContractRun(Runner(container, packages=[package]))
        settings: WorkerSettings = container.providers["settings"]()
        settings = settings.model_copy(update={"shutdown_grace": grace})
        observers = [*container.providers["observers"](), run.records.append]
        container.providers["settings"].override(providers.Object(settings))
        container.providers["observers"].override(providers.Object(observers))
        async with run.runner.running():
            await run.until(lambda run: run.runner.ready, "the consumer is ready")
            yield run


def _package(base: type[Consumer], attributes: Mapping[str, Any]) -> str:
    """Create a package of one consumer, and return its name."""
    module = ModuleType(f"transport_contract_{next(_numbers)}")
    consumer = type("Contract", (base,), {"__module__": module.__name__, **attributes})
    vars(module)["Contract"] = consumer
    sys.modules[module.__name__] = module
    return module.__name__
