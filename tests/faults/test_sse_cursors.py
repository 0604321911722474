"""Row S6: a new process continues after the settled events, killed or not, with any store."""

import asyncio
import json
import logging
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dependency_injector import providers

from tests.application import Recorder, package_of
from tests.chaotic_stream import ChaoticStream
from tests.command import Application, running, write_package
from tests.records import fields
from tests.streams import collector, consuming
from tests.waiting import eventually
from workerkit import (
    RetryPolicy,
    RunError,
    Runner,
    SSEConsumer,
    SSEEvent,
    WorkerContainer,
    WorkerSettings,
)
from workerkit.sse.cursor import FileCursors, MemoryCursors
from workerkit.sse.subscription import StreamHealth
from workerkit.testing import sse_server

SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "4"))


@pytest.fixture(autouse=True)
def save_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow more time for the last save: RabbitMQ uses the disk during these tests."""
    monkeypatch.setattr("workerkit.sse.stored_cursor._LAST_DEADLINE", 30.0)
    monkeypatch.setattr("workerkit.app.process.CLOSE_DEADLINE", 40.0)


async def test_s6_a_new_process_resumes_after_the_settled_events(tmp_path: Path) -> None:
    """S6: with files it resumes after the last settled event, not the last received one."""
    gate = asyncio.Event()
    first, handled = collector(before=lambda event: gate.wait() if event.body == "3" else None)
    second, later = collector()

    async with sse_server() as server:
        for number in range(1, 6):
            await server.send(str(number))
        async with consuming(server, first, directory=tmp_path, ready=False) as runner:
            await eventually(lambda: handled == ["1", "2"])
            assert runner.health
            gate.set()
            await eventually(lambda: "3" in handled)
        done = len(handled)
        async with consuming(server, second, directory=tmp_path):
            await eventually(lambda: len(handled) + len(later) == 5)

    assert handled + later == ["1", "2", "3", "4", "5"]
    assert server.opened[1].last_event_id == str(done)


async def test_s6_a_handler_that_is_cancelled_settles_nothing(tmp_path: Path) -> None:
    """S6: an event that was not finished in the grace period is sent again."""
    gate = asyncio.Event()
    first, handled = collector(before=lambda event: gate.wait() if event.body == "2" else None)
    second, later = collector()

    async with sse_server() as server:
        await server.send("1")
        await server.send("2")
        async with consuming(server, first, directory=tmp_path, grace=0.05):
            await eventually(lambda: handled == ["1"])
        async with consuming(server, second, directory=tmp_path):
            await eventually(lambda: later == ["2"])


async def test_s6_a_slow_event_holds_the_cursor(tmp_path: Path) -> None:
    """S6: with concurrency the cursor stays before it, even if later events are settled."""
    gate = asyncio.Event()
    store = MemoryCursors()
    consumer, handled = collector(
        before=lambda event: gate.wait() if event.body == "2" else None, concurrency=3
    )

    async with sse_server() as server, consuming(server, consumer, cursors=store):
        for number in range(1, 5):
            await server.send(str(number), id="same" if number > 2 else None)
        await eventually(lambda: handled == ["1", "3", "4"])
        await eventually(lambda: cursor(store) == "1")
        gate.set()
        await eventually(lambda: cursor(store) == "same")


def cursor(store: MemoryCursors, consumer: str = "Collector", route: str = "/events") -> str | None:
    """Return the cursor in a store."""
    return store._cursors.get((consumer, route))


async def test_s6_filtered_events_settle_at_once() -> None:
    """S6: the cursor moves past events that are not handled, but not past one in progress."""
    gate = asyncio.Event()
    store = MemoryCursors()
    consumer, handled = collector(before=lambda event: gate.wait(), events=["wanted"])

    async with sse_server() as server, consuming(server, consumer, cursors=store):
        for number in range(100):
            await server.send(str(number), name="other")
        await eventually(lambda: cursor(store) == "100")
        await server.send("a", name="wanted")
        await server.send("b", name="other")
        await server.raw(b"id: without data\n\n")
        gate.set()
        await eventually(lambda: cursor(store) == "without data")

    assert handled == ["a"]


async def test_s6_each_stream_has_its_own_cursor() -> None:
    """S6: the key is consumer and route; without a route it is that of the server's URL."""
    store = MemoryCursors()
    one, _ = collector("One", routes=["/a", "/b?x=1"])
    two, _ = collector("Two", routes=[""])

    async with sse_server() as server, consuming(server, one, two, cursors=store):
        await server.client(3)
        await server.send("x", id="for a", route="/a")
        await server.send("x", id="for b", route="/b")
        await server.send("x", id="for two", route="/")
        await eventually(lambda: cursor(store, "One", "/a") == "for a")
        await eventually(lambda: cursor(store, "One", "/b?x=1") == "for b")
        await eventually(lambda: cursor(store, "Two", "") == "for two")


class FailingStore(MemoryCursors):
    """A store that raises."""

    def __init__(self) -> None:
        super().__init__()
        self.away = True
        self.calls = 0

    async def load(self, consumer: str, route: str) -> str | None:
        self.calls += 1
        if self.away:
            raise ConnectionError("store is away")
        return await super().load(consumer, route)

    async def save(self, consumer: str, route: str, cursor: str) -> None:
        self.calls += 1
        if self.away:
            raise ConnectionError("store is away")
        await super().save(consumer, route, cursor)


async def test_s6_a_store_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """S6: at the start the stream waits for it, later it continues; both are logged."""
    caplog.set_level(logging.INFO)
    store = FailingStore()
    consumer, handled = collector()

    async with sse_server() as server:
        await server.send("1")
        await server.send("2")
        async with consuming(server, consumer, cursors=store, ready=False) as runner:
            await eventually(lambda: store.calls > 1)
            assert not server.requests  # Without its cursor it would lose events.
            await store_back(store, "Collector", "1")
            await eventually(lambda: handled == ["2"])
            (stream,) = runner.health[0].parts
            assert isinstance(stream, StreamHealth)
            await eventually(lambda: cursor(store) == "2")
            store.away = True
            for number in range(3, 6):
                await server.send(str(number))
            await eventually(lambda: handled == ["2", "3", "4", "5"])
            await eventually(lambda: not stream.cursor_stored)
            assert runner.ready
            store.away = False
            await eventually(lambda: cursor(store) == "5")
            await eventually(lambda: stream.cursor_stored)

    assert len(fields(caplog, "cursor not loaded: the stream is waiting for it")) >= 1
    (failed, *_) = fields(caplog, "cursor not saved: trying again")
    assert (failed["consumer"], failed["route"]) == ("Collector", "/events")
    assert failed["exc_info"]
    assert failed["error"] == f"{type(failed['exc_info'][1]).__qualname__}: {failed['exc_info'][1]}"
    assert len(fields(caplog, "cursor store is available again")) == 2


async def store_back(store: FailingStore, consumer: str, saved: str) -> None:
    """Make the store work again, with a cursor in it."""
    store.away = False
    await store.save(consumer, "/events", saved)


async def test_s6_the_last_cursor_is_saved_when_the_process_stops() -> None:
    """S6: after a drain the store has the cursor, also between two saves."""
    store = MemoryCursors()
    consumer, handled = collector()

    async with sse_server() as server, consuming(server, consumer, cursors=store):
        for number in range(1, 21):
            await server.send(str(number))
        await eventually(lambda: len(handled) == 20)

    assert cursor(store) == "20"


async def test_a_provider_that_is_not_a_store() -> None:
    """The start fails, and names it."""
    consumer, _ = collector()

    with pytest.raises(
        Exception, match="provider 'cursors' returned a dict: it needs load and save"
    ):
        async with consuming("http://127.0.0.1:1", consumer, cursors={}):
            pass


async def test_a_store_whose_methods_are_not_async() -> None:
    """The start fails, and names the method."""

    class Blocking:
        def load(self, consumer: str, route: str) -> str | None: ...

        def save(self, consumer: str, route: str, cursor: str) -> None: ...

    consumer, _ = collector()

    with pytest.raises(RunError, match=r"'cursors': Blocking\.load has to be an `async def`"):
        async with consuming("http://127.0.0.1:1", consumer, cursors=Blocking()):
            pass


@pytest.mark.parametrize("name", ["file", "file/below", "/sys"])
async def test_a_directory_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The start fails with the name of the variable, and is not tried again."""
    (tmp_path / "file").write_text("taken")
    directory = tmp_path / name
    consumer, _ = collector()
    monkeypatch.setenv("WORKERKIT_CURSORS", str(directory))
    monkeypatch.setenv("WORKERKIT_SSE__SERVER__URL", "http://127.0.0.1:1")
    container: Any = WorkerContainer()
    container.settings.override(providers.Singleton(WorkerSettings))

    with pytest.raises(RunError) as raised:
        async with Runner(container, packages=[package_of(consumer)]).running():
            pass

    [fault] = raised.value.faults
    assert fault.startswith(f"WORKERKIT_CURSORS is {str(directory)!r}: ")
    assert fault.endswith("set it to a writable directory")


async def test_a_store_that_returns_bytes(caplog: pytest.LogCaptureFixture) -> None:
    """As some database clients do: it is logged, and the stream waits."""

    class Bytes(MemoryCursors):
        async def load(self, consumer: str, route: str) -> str | None:
            return b"1"  # type: ignore[return-value]

    consumer, _ = collector()
    async with (
        sse_server() as server,
        consuming(server, consumer, cursors=Bytes(), ready=False),
    ):
        await eventually(lambda: fields(caplog, "cursor not loaded: the stream is waiting for it"))

    assert "load returned bytes: a cursor is a str, or None" in caplog.text
    assert not server.requests


async def test_files_are_replaced_atomically(tmp_path: Path) -> None:
    """A file has its cursor as text, with any names; a reader never gets half of one."""
    store = FileCursors(tmp_path / "made" / "here")
    assert await store.load("A", "/x") is None

    await asyncio.gather(*(store.save(f"C{n}", "/../ü?a=b" * 50, f"é{n}") for n in range(20)))
    for round_ in range(30):
        _, found = await asyncio.gather(
            store.save("C0", "/../ü?a=b" * 50, f"round {round_}"),
            store.load("C0", "/../ü?a=b" * 50),
        )
        assert found in {"é0", f"round {round_ - 1}", f"round {round_}"}

    assert await store.load("C19", "/../ü?a=b" * 50) == "é19"
    files = list((tmp_path / "made" / "here").iterdir())
    assert len(files) == 20
    assert {json.loads(file.read_text())["consumer"] for file in files} == {
        f"C{n}" for n in range(20)
    }


async def test_a_file_without_a_cursor(tmp_path: Path) -> None:
    """It is an error that names the file, if it is not to be renamed."""
    store = FileCursors(tmp_path, fsync=False, set_aside=False)
    await store.save("A", "/x", "1")
    store.path("A", "/x").write_text('{"cursor": 1}')

    with pytest.raises(
        ValueError, match=r"A-x\..*json does not contain a cursor; correct or delete it"
    ):
        await store.load("A", "/x")


NUMBERS = """
    import asyncio

    from workerkit import SSEConsumer, SSEEvent


    class Numbers(SSEConsumer):
        connection = "chaos"
        routes = ["/numbers"]
        events = ["number"]

        async def handle(self, event: SSEEvent[int]) -> None:
            print("got", event.body, event.id, flush=True)
            await asyncio.sleep(0.001)
"""


def numbers(app: Application) -> list[int]:
    """Return the numbers that were handled; the last line of a killed process may be partial."""
    pairs = [line.split() for line in app.lines("got ")]
    return [int(pair[0]) for pair in pairs if len(pair) == 2 and pair[0] == pair[1]]


async def test_s6_killed_again_and_again(tmp_path: Path) -> None:
    """S6: a process that is killed repeatedly with -9 handles every event at least once."""
    name = write_package(tmp_path, consumers=NUMBERS)
    dice = random.Random(6)  # separate from that of the server, which depends on timing
    counts: Counter[int] = Counter()
    again = 0

    async with ChaoticStream(0, dice=random.Random(6), calm=True) as server:
        variables = {
            "WORKERKIT_SSE__CHAOS__URL": server.url,
            "WORKERKIT_CURSORS": str(tmp_path / "cursors"),
        }
        for round_ in range(5):
            server.last = 300 * (round_ + 2)
            async with running(name, cwd=tmp_path, uvloop=True, **variables) as app:
                wanted = dice.randint(1, 300)
                await eventually(lambda: len(numbers(app)) >= wanted, 60.0)  # noqa: B023
                app.send(signal.SIGKILL)
                await app.ended()
                got = numbers(app)
            assert got == list(range(got[0], got[0] + len(got))), "in order, without a gap"
            # Events since the last save are handled again, and none is missing.
            assert server.ids[-1] + 1 == got[0] <= max(counts, default=0) + 1
            again += sum(number in counts for number in got)
            counts.update(got)
        async with running(name, cwd=tmp_path, uvloop=True, **variables) as app:
            await eventually(lambda: f"got {server.last} {server.last}" in app.out, 60.0)
            app.send(signal.SIGTERM)
            assert await app.ended() == 0
            counts.update(numbers(app))

    assert set(counts) == set(range(1, server.last + 1))
    assert again < server.last


@pytest.mark.timeout(SOAK_SECONDS + 120)
@pytest.mark.parametrize(("batch", "concurrency"), [(False, 1), (True, 4)])
async def test_chaos(tmp_path: Path, batch: bool, concurrency: int) -> None:
    """Resets, stalls, errors, partial events and restarts at random: every id arrives.

    SOAK_SECONDS sets the duration.
    """
    dice = random.Random(os.environ.get("SOAK_SEED", "1"))
    counts: Counter[int] = Counter()
    failed: set[int] = set()

    def take(event: SSEEvent[int]) -> None:
        if event.body % 97 == 0 and event.body not in failed:
            failed.add(event.body)
            event.retry(after=0)
            return
        counts[event.body] += 1

    class Base(SSEConsumer, abstract=True):
        connection = "server"
        routes = ["/numbers"]
        events = ["number"]
        idle_timeout = 0.2
        retry = RetryPolicy(delays=(0, 0))

    class One(Base):
        async def handle(self, event: SSEEvent[int]) -> None:
            if not event.body % 50:
                await asyncio.sleep(0.001)
            take(event)

    class Many(Base):
        batch_size, batch_interval = 20, 0.01

        async def handle(self, events: list[SSEEvent[int]]) -> None:
            await asyncio.sleep(dice.random() / 1000)
            for event in events:
                take(event)

    consumer = type("Numbers", (Many if batch else One,), {"concurrency": concurrency})
    until = time.monotonic() + SOAK_SECONDS / 2
    processes = 0

    def missing() -> set[int]:
        return set(range(1, server.last + 1)) - counts.keys()

    async with ChaoticStream(10**9, dice=dice) as server:
        while time.monotonic() < until:
            processes += 1
            leave = min(until, time.monotonic() + dice.uniform(0.5, 3.0))
            async with consuming(server.url, consumer, directory=tmp_path, ready=False):
                while time.monotonic() < leave:
                    await asyncio.sleep(dice.uniform(0.05, 0.5))
                    if dice.random() < 0.2:
                        await server.restart()
        server.calm = True
        server.last = max(counts, default=0) + 100
        async with consuming(server.url, consumer, directory=tmp_path):
            await eventually(lambda: not missing(), 30.0, what=f"all of {server.last}")

    again = counts.total() - len(counts)
    print(
        f"{server.last} events, {len(server.ids)} connections, {processes} processes,",
        f"{again} handled again, {dict(sorted(server.fates.items()))}",
    )
    assert again == 0 if concurrency == 1 and not batch else again < server.last


async def test_records_of_a_stream_that_is_reset() -> None:
    """Each event is settled exactly once in one process, with any number of losses."""
    recorder = Recorder()
    consumer, handled = collector(concurrency=5)

    async with sse_server() as server, consuming(server, consumer, recorder=recorder):
        for number in range(200):
            await server.send(str(number))
            if number % 20 == 19:
                server.cut()
        await eventually(lambda: len(handled) == 200)

    assert Counter(handled) == Counter(map(str, range(200)))
    assert recorder.actions == ["ack"] * 200
