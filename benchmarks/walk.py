"""Count the files and functions that one delivery passes, in a real application.

    python -m benchmarks.walk [--list NAME] [--json]

The application of `benchmarks.walked` runs on the embedded broker. `sys.setprofile` records which
functions of the package the thread of the event loop enters for one delivery. For each walk, this
prints three figures:

- files: the number of files with such a function
- functions: the number of these functions
- passages: how often a function is entered in another file than the function before it

`--list` prints the files of one walk, in the order in which they are first entered, each with the
functions entered there. `--json` prints both as JSON.

The embedded broker and the SSE server play the outside world and do not count. aio-pika publishes
the messages, so only the consumer's side counts. A coroutine that continues counts only if it was
not entered before. Handlers do not count. Each walk is repeated three times to warm up, and then
recorded five times. The functions that all five have in common count, so timers and heartbeats do
not, and so does the smallest number of passages.

Comprehensions are functions of their own before Python 3.12: compare figures of one version only.
"""

import argparse
import asyncio
import inspect
import json
import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import aio_pika

import workerkit
from benchmarks import walked
from workerkit import Consumer, Publisher, Runner, WorkerContainer, WorkerSettings
from workerkit.testing import SSEServer, embedded_broker, override, sse_server

RUNS = 5
WARM_UPS = 3
PACKAGE = Path(inspect.getfile(workerkit)).parent
OUTSIDE = {"embedded", "testing"}
HANDLERS = "(handler)"
SSE_SERVER = inspect.getfile(SSEServer)
ONE_OF_EACH = (walked.Failing, walked.Placed, walked.Orders, walked.Yearly)
OUTBOX = "walk.outbox"
DEADLINE = 10.0
QUIET_TURNS = 40
BODY = json.dumps({"id": 1, "item": "book"}).encode()
REQUEST = (
    b"POST %b HTTP/1.1\r\nHost: walk\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"\r\n%b" % (walked.ROUTE.encode(), len(BODY), BODY)
)

Run = list[CodeType]


@cache
def file_of(code: CodeType) -> str | None:
    """Return the file of a function that counts, relative to the package; None for all others."""
    path = Path(code.co_filename)
    if code.co_filename == walked.__file__:
        return HANDLERS
    if code.co_filename == SSE_SERVER or not path.is_relative_to(PACKAGE):
        return None
    relative = path.relative_to(PACKAGE)
    return None if relative.parts[0] in OUTSIDE else str(relative)


class Recorder:
    """Records the functions that this thread enters inside a block of `recording`."""

    def __init__(self) -> None:
        self.entered: Run = []

    @contextmanager
    def recording(self) -> Iterator[Run]:
        """Record inside the block, into a list."""
        self.entered = []
        before = sys.getprofile()
        sys.setprofile(self._note)
        try:
            yield self.entered
        finally:
            sys.setprofile(before)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing inside the block."""
        before = sys.getprofile()
        self.stop()
        try:
            yield
        finally:
            sys.setprofile(before)

    def stop(self) -> None:
        """Stop recording this walk."""
        sys.setprofile(None)

    @property
    def handled(self) -> bool:
        """Whether a handler was called."""
        return any(file_of(code) == HANDLERS for code in self.entered)

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event != "call" or file_of(code) is None:
            return
        if code not in self.entered or not _continues(code, frame.f_lasti):
            self.entered.append(code)


@cache
def _continues(code: CodeType, instruction: int) -> bool:
    """Return whether a coroutine or generator continues at this instruction, where others begin."""
    # It is a RESUME. The two lowest bits of its argument are 0 where a function begins.
    return code.co_code[instruction + 1] & 3 != 0


@dataclass(frozen=True, slots=True)
class Walk:
    """The common part of several records of one walk.

    Attributes:
        entered: The names of the functions by file, both in the order in which they are first
            entered; that of the handler, too.
        passages: Changes of the file; a handler in between does not count.
    """

    entered: dict[str, list[str]]
    passages: int

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Walk":
        """Return the common part of the records."""
        common = set.intersection(*map(set, runs))
        steps = min(([each for each in run if each in common] for run in runs), key=_passages)
        entered: dict[str, list[str]] = {}
        for code in dict.fromkeys(steps):
            entered.setdefault(str(file_of(code)), []).append(code.co_qualname)
        return cls(entered, _passages(steps))

    @property
    def files(self) -> int:
        """How many files of the package are entered."""
        return len(self.entered.keys() - {HANDLERS})

    @property
    def functions(self) -> int:
        """How many functions of the package are entered."""
        return sum(len(names) for file, names in self.entered.items() if file != HANDLERS)


def _passages(run: Iterable[CodeType]) -> int:
    files = [file_of(code) for code in run if file_of(code) != HANDLERS]
    return sum(before != after for before, after in pairwise(files))


async def turn() -> None:
    """Run everything else that is ready in the event loop once."""
    await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class World:
    """The servers of the application, and the recorder of its walks."""

    recorder: Recorder
    broker: Any
    exchange: aio_pika.abc.AbstractExchange
    events: SSEServer
    port: int
    settings: WorkerSettings

    async def send(self, queue: str) -> None:
        """Publish a message as another process would."""
        await self.exchange.publish(aio_pika.Message(BODY), queue)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Run the event loop until the condition holds and no more functions are entered."""
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await turn()
        entered, quiet = self.recorder.entered, 0
        while quiet < QUIET_TURNS:
            count = len(entered)
            await turn()
            quiet = quiet + 1 if len(entered) == count else 0

    def is_settled(self, queue: str) -> bool:
        """Return whether a message of the queue was handled, and the broker has removed it."""
        found = self.broker.queue(queue)
        return self.recorder.handled and not found.ready and not found.unacked

    def copies(self, queue: str) -> list[str]:
        """Return the queues of its retries and dead letters that hold a message."""
        names = [each for each in self.broker.queues() if each.startswith(f"{queue}.")]
        return [each for each in names if self.broker.queue(each).ready]

    @asynccontextmanager
    async def application(self, *only: type[Consumer]) -> AsyncIterator[WorkerContainer]:
        """Run these classes of the application, or all, inside the block. They are ready then."""
        container: Any = WorkerContainer()
        with override(container, settings=self.settings):
            runner = Runner(container, packages=[walked.__name__], only=only)
            async with runner.running():
                async with asyncio.timeout(DEADLINE):
                    while not self._is_ready(runner):
                        await turn()
                yield container

    def _is_ready(self, runner: Runner) -> bool:
        with self.recorder.paused():
            return runner.ready


@asynccontextmanager
async def outside() -> AsyncIterator[World]:
    """Run a broker, an SSE server and an AMQP client inside the block."""
    with socket.socket() as reserved:
        # This one does not listen: it keeps the port for the application, which may share it.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        async with (
            embedded_broker() as broker,
            sse_server() as events,
            await aio_pika.connect(broker.url) as client,
        ):
            channel = await client.channel()
            await channel.declare_queue(OUTBOX, durable=True)
            given: dict[str, Any] = {
                "amqp": {"default": {"url": broker.url}},
                "sse": {"default": {"url": events.url}},
                "http": {"host": "127.0.0.1", "port": port, "reuse_port": True},
            }
            settings = WorkerSettings(**given)
            exchange = channel.default_exchange
            yield World(Recorder(), broker, exchange, events, port, settings)


Act = Callable[[], Awaitable[None]]


@asynccontextmanager
async def message(world: World) -> AsyncIterator[Act]:
    """Consume a message, until the broker has received the acknowledgement."""

    async def act() -> None:
        await world.send(walked.SUCCEEDING)
        await world.until(lambda: world.is_settled(walked.SUCCEEDING))

    async with world.application():
        yield act


@asynccontextmanager
async def failure(queue: str, world: World) -> AsyncIterator[Act]:
    """Fail to handle a message, until its copy is published and the original acknowledged."""

    async def act() -> None:
        await world.send(queue)
        await world.until(lambda: world.is_settled(queue))
        [copy] = world.copies(queue)
        world.broker.purge(copy)

    async with world.application():
        yield act


@asynccontextmanager
async def publish(world: World) -> AsyncIterator[Act]:
    """Publish a message, until the broker has confirmed it."""
    async with world.application() as container:
        publisher: Publisher = container.publisher()
        order = walked.Order(id=1, item="book")

        async def act() -> None:
            await publisher.publish(order, OUTBOX)

        yield act


@asynccontextmanager
async def event(world: World) -> AsyncIterator[Act]:
    """Receive an event of an open stream, until nothing more happens after its handler."""

    async def act() -> None:
        await world.events.raw(b"id: 1\ndata: %b\n\n" % BODY)
        await world.until(lambda: world.recorder.handled)

    async with world.application():
        yield act


@asynccontextmanager
async def request(world: World) -> AsyncIterator[Act]:
    """Answer a request with a JSON body on an open connection."""
    async with world.application():
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)

        async def act() -> None:
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            await world.until(lambda: world.recorder.handled)

        try:
            yield act
        finally:
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def start(world: World) -> AsyncIterator[Act]:
    """Start a class of each kind until they are ready; the queues exist."""

    async def act() -> None:
        async with world.application(*ONE_OF_EACH):
            world.recorder.stop()

    yield act


WALKS: dict[str, Callable[[World], AbstractAsyncContextManager[Act]]] = {
    "success": message,
    "dead-letter": partial(failure, walked.FAILING),
    "retry": partial(failure, walked.RETRIED),
    "publish": publish,
    "event": event,
    "request": request,
    "start": start,
}


async def measure(name: str, runs: int = RUNS) -> Walk:
    """Record one of the `WALKS`."""
    records = []
    async with outside() as world, WALKS[name](world) as act:
        for _ in range(WARM_UPS + runs):
            with world.recorder.recording() as record:
                await act()
            records.append(record)
    return Walk.of(records[WARM_UPS:])


def main() -> None:
    """Print the figures of all walks, or the functions of one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.walk")
    parser.add_argument("--list", choices=WALKS, help="print the functions of one walk")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    chosen = parser.parse_args()
    # The log of failures is not of interest here.
    logging.getLogger(workerkit.__name__).addHandler(logging.NullHandler())
    names = [chosen.list] if chosen.list else list(WALKS)
    walks = {name: asyncio.run(measure(name)) for name in names}
    if chosen.json:
        print(json.dumps({name: _as_json(walk) for name, walk in walks.items()}, indent=2))
        return
    print(f"{'':12}{'files':>10}{'functions':>10}{'passages':>10}")
    for name, walk in walks.items():
        print(f"{name:12}{walk.files:10}{walk.functions:10}{walk.passages:10}")
        if chosen.list:
            for file, functions in walk.entered.items():
                print(f"\n{file}", *functions, sep="\n    ")


def _as_json(walk: Walk) -> dict[str, object]:
    return {
        "files": walk.files,
        "functions": walk.functions,
        "passages": walk.passages,
        "entered": walk.entered,
    }


if __name__ == "__main__":
    main()
