"""Run for a long time with failures of every kind, and check that nothing is lost or grows.

`make soak` runs `main` for `SOAK_SECONDS`; `tests/faults/test_soak.py` runs a few rounds. A round
publishes messages with every result, resets all connections at random, waits until all is settled,
draws up the account, and looks at what the process occupies then.
"""

import asyncio
import gc
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.application import running
from tests.proxy import Proxy
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit, QueueState
from tests.waiting import eventually
from workerkit import Action, AMQPConsumer, AMQPMessage, Consumer, Publisher, RetryPolicy, Runner
from workerkit.tasks import Backoff

QUEUES = (
    *("steady", "flaky", "batches", "relayed", "forwarded"),
    *("flaky.dlq", "batches.dlq"),
)
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MEGABYTE = 2**20
_MOST_GROWTH = 12 * _MEGABYTE
_SETTLING = 60.0
# The channel on which messages are moved is there only if one was moved since the last reset.
_SPARE = {"channels": 1, "tasks": 1}


@dataclass(slots=True)
class Ledger:
    """The results of the messages of one round, by their bodies.

    Attributes:
        expected: Those that have to be handled.
        doomed: Those that have to end as dead letters.
        failures: How often a handler or a body failed.
    """

    expected: set[bytes] = field(default_factory=set)
    doomed: set[bytes] = field(default_factory=set)
    handled: Counter[bytes] = field(default_factory=Counter)
    dead_lettered: Counter[bytes] = field(default_factory=Counter)
    failures: int = 0

    @property
    def settled(self) -> bool:
        """Return whether every message has a result."""
        return len(self.handled) >= len(self.expected) and len(self.dead_lettered) >= len(
            self.doomed
        )

    @property
    def lost(self) -> set[bytes]:
        """Messages without a result, or with a wrong one."""
        return (self.expected - set(self.handled)) | (self.doomed - set(self.dead_lettered))

    @property
    def duplicates(self) -> int:
        """Calls and dead letters beyond the first one."""
        return sum(count - 1 for count in (*self.handled.values(), *self.dead_lettered.values()))

    def clear(self) -> None:
        """Start the next round."""
        for each in (self.expected, self.doomed, self.handled, self.dead_lettered):
            each.clear()
        self.failures = 0


@dataclass(frozen=True, slots=True)
class Size:
    """The resources of the idle process.

    Attributes:
        running: The tasks, by the coroutine that they run.
    """

    rss: int
    running: Counter[str]
    files: int
    connections: int
    channels: int

    @classmethod
    def of(cls, rabbit: PrivateRabbit, vhost: str) -> "Size":
        """Measure now."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            pages * _PAGE,
            Counter(getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()),
            len(list(Path("/proc/self/fd").iterdir())),
            rabbit.connections(vhost),
            rabbit.channels(vhost),
        )

    @property
    def tasks(self) -> int:
        """Return the number of tasks."""
        return self.running.total()

    def grown(self, before: "Size") -> list[str]:
        """Return what has grown since *before*; empty if nothing."""
        wrong = [
            f"{name}: {getattr(before, name)} before, {getattr(self, name)} now"
            for name in ("tasks", "files", "connections", "channels")
            if getattr(self, name) > getattr(before, name) + _SPARE.get(name, 0)
        ]
        if wrong:
            wrong.append(f"tasks that are new: {dict(self.running - before.running)}")
        if self.rss - before.rss > _MOST_GROWTH:
            wrong.append(f"memory: {before} before, {self} now")
        return wrong

    def __str__(self) -> str:
        return (
            f"{self.rss / _MEGABYTE:.1f} MB, {self.tasks} tasks, {self.files} descriptors, "
            f"{self.connections} connections, {self.channels} channels"
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """The result of a round.

    Attributes:
        recovery: Longest time from a reset until all consumers were ready again, in seconds.
    """

    messages: int
    failures: int
    resets: int
    duplicates: int
    lost: set[bytes]
    recovery: float
    seconds: float
    size: Size

    def __str__(self) -> str:
        return (
            f"{self.messages} messages, {self.failures} failures, {self.resets} resets, "
            f"{self.duplicates} duplicates, {len(self.lost)} lost, "
            f"recovery {self.recovery:.2f} s, in {self.seconds:.1f} s; {self.size}"
        )


class Soak:
    """An application behind a proxy, and its publishers."""

    def __init__(
        self,
        rabbit: PrivateRabbit,
        vhost: str,
        proxy: Proxy,
        runner: Runner,
        publisher: Publisher,
        ledger: Ledger,
    ) -> None:
        self._rabbit = rabbit
        self._vhost = vhost
        self._proxy = proxy
        self._runner = runner
        self._publisher = publisher
        self._ledger = ledger
        self._recovery = 0.0

    async def round(self, messages: int, failing: int, resets: int) -> Figures:
        """Publish a number of messages, some of which fail, while connections are reset."""
        began = time.monotonic()
        self._recovery = 0.0
        self._ledger.clear()
        bodies = _bodies(self._ledger, messages, failing)
        total = sum(map(len, bodies.values()))
        disturbing = asyncio.create_task(self._disturb(resets, total))
        async with asyncio.TaskGroup() as group:
            for queue, each in bodies.items():
                group.create_task(self._publisher.publish_many(each, queue, timeout=30.0))
        await disturbing
        await eventually(self._all_settled, _SETTLING)
        await eventually(self._at_rest, _SETTLING)
        size = Size.of(self._rabbit, self._vhost)
        ledger = self._ledger
        figures = Figures(
            total,
            ledger.failures,
            resets,
            ledger.duplicates,
            ledger.lost,
            self._recovery,
            time.monotonic() - began,
            size,
        )
        ledger.clear()
        return figures

    async def _disturb(self, resets: int, total: int) -> None:
        """Reset all connections, again and again, while some part of the messages is handled."""
        handled = self._ledger.handled
        for number in range(resets):
            due = total * number // (resets + 1)
            await eventually(lambda due=due: len(handled) >= due, _SETTLING, what="progress")  # type: ignore[misc]
            await asyncio.sleep(random.uniform(0.0, 0.05))
            before = self._proxy.accepted
            self._proxy.drop()
            began = time.monotonic()
            await eventually(lambda: self._proxy.accepted > before, _SETTLING, what="noticed")  # noqa: B023
            await eventually(lambda: self._runner.ready, _SETTLING, what="ready again")
            self._recovery = max(self._recovery, time.monotonic() - began)

    def _all_settled(self) -> bool:
        ledger = self._ledger
        missing = f"{len(ledger.lost)} messages are missing, such as {sorted(ledger.lost)[:3]}"
        assert ledger.settled, f"{missing}; {self._rabbit.queues(self._vhost)}"
        return True

    def _at_rest(self) -> bool:
        """Return whether no message is anywhere, and every consumer is there once.

        No channel is being opened or closed either.
        """
        assert self._runner.ready
        running = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
        assert "Channel.rpc" not in running, running
        for name, queue in self._rabbit.queues(self._vhost).items():
            assert queue == QueueState(0, 0, int(name in QUEUES)), name
        return True


def _bodies(ledger: Ledger, messages: int, failing: int) -> dict[str, list[bytes]]:
    """Return bodies for each queue, with every result; *failing* of them fail once or more."""
    fine, part = messages - failing, failing // 4
    flaky = [*_numbered(b"twice", part), *_numbered(b"never", part), *_numbered(b"ok", part)]
    batches = [
        *(b'{"once": 1, "n": %d}' % number for number in range(part)),
        *_numbered(b"invalid", part),
        *(b'{"once": 0, "n": %d}' % number for number in range(fine // 4)),
    ]
    for mixed in (flaky, batches):
        random.shuffle(mixed)
    bodies = {
        "steady": _numbered(b"steady", fine - fine // 4 - part),
        "relayed": _numbered(b"relayed", part),
        "flaky": flaky,
        "batches": batches,
    }
    for body in (body for each in bodies.values() for body in each):
        doomed = body.startswith((b"never", b"invalid"))
        (ledger.doomed if doomed else ledger.expected).add(body)
    return bodies


def _numbered(kind: bytes, count: int) -> list[bytes]:
    return [b"%b:%d" % (kind, number) for number in range(count)]


def consumers(ledger: Ledger) -> list[type[Consumer]]:
    """Return consumers of every kind, which write into *ledger*."""

    class Steady(AMQPConsumer):
        queues = ["steady"]

        async def handle(self, body: bytes) -> None:
            ledger.handled[body] += 1

    class Flaky(AMQPConsumer):
        queues = ["flaky"]
        retry = RetryPolicy(delays=(0, 0.2))

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            tries = {b"ok": 1, b"twice": 3}.get(message.body.partition(b":")[0], 4)
            if message.attempt < tries:
                ledger.failures += 1
                raise KeyError("not yet")
            ledger.handled[message.body] += 1

    class Batches(AMQPConsumer):
        queues = ["batches"]
        batch_size = 50
        batch_interval = 0.1
        retry = RetryPolicy(delays=(0.2, 0.2))

        async def handle(self, messages: list[AMQPMessage[dict[str, int]]]) -> None:
            for message in messages:
                if message.body["once"] and message.attempt == 1:
                    ledger.failures += 1
                    message.retry()
                else:
                    ledger.handled[message.raw] += 1

    class Relay(AMQPConsumer):
        queues = ["relayed"]

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            await self.publisher.publish(message.body, "forwarded", headers=message.headers)

    class Forwarded(AMQPConsumer):
        queues = ["forwarded"]

        async def handle(self, body: bytes) -> None:
            ledger.handled[body] += 1

    class Undertaker(AMQPConsumer):
        queues = ["flaky.dlq", "batches.dlq"]
        on_invalid = Action.REJECT

        async def handle(self, body: bytes) -> None:
            ledger.failures += 1
            ledger.dead_lettered[body] += 1

    return [Steady, Flaky, Batches, Relay, Forwarded, Undertaker]


@asynccontextmanager
async def soaking(rabbit: PrivateRabbit, vhost: str) -> AsyncIterator[Soak]:
    """Run an application inside the block that reconnects within a tenth of a second."""
    ledger = Ledger()
    url = rabbit.url(vhost)
    with pytest.MonkeyPatch.context() as patch:
        # Thousands of tracebacks would fill the memory of pytest, which keeps them.
        patch.setattr(logging.root.manager, "disable", logging.CRITICAL)
        patch.setattr("workerkit.amqp.connection.Backoff", partial(Backoff, first=0.02, cap=0.05))
        async with (
            Proxy("127.0.0.1", rabbit.port) as proxy,
            running(proxy.url(url), *consumers(ledger)) as runner,
            publishing(url) as publisher,
        ):
            yield Soak(rabbit, vhost, proxy, runner, publisher, ledger)


async def main(seconds: float) -> list[str]:
    """Soak for *seconds* and print the figures; return the problems at the end."""
    ends = time.monotonic() + seconds
    warm = time.monotonic() + min(60.0, seconds / 5)
    rounds: list[Figures] = []
    before: Size | None = None
    with PrivateRabbit() as rabbit:
        async with soaking(rabbit, "/") as soak:
            while time.monotonic() < ends:
                figures = await soak.round(20_000, 400, 10)
                rounds.append(figures)
                print(f"{ends - time.monotonic():6.0f} s left: {figures}", flush=True)
                if before is None and time.monotonic() > warm:
                    before = figures.size
    print(f"{len(rounds)} rounds: {_sum(rounds)}")
    wrong = [f"lost: {sorted(each.lost)[:10]}" for each in rounds if each.lost]
    return wrong + (rounds[-1].size.grown(before) if before else [])


def _sum(rounds: list[Figures]) -> str:
    names = ("messages", "failures", "resets", "duplicates")
    sums = [f"{sum(getattr(each, name) for each in rounds):,} {name}" for name in names]
    return f"{', '.join(sums)}, longest recovery {max(each.recovery for each in rounds):.2f} s"


if __name__ == "__main__":
    faults = asyncio.run(main(float(os.environ.get("SOAK_SECONDS", "600"))))
    print("\n".join(faults) or "nothing was lost, nothing has grown")
    sys.exit(bool(faults))
