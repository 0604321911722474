"""An application whose work crosses everything that can carry a trace.

A client posts to a view, which publishes. The consumer fails, is retried after a delay, and fails
again: the message becomes a dead letter. Somebody replays it. Now the consumer succeeds, and it
notifies an event stream, which another consumer reads.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import ReadableSpan
from pydantic import BaseModel

from tests.application import Recorder, container_of, package_of
from tests.tracing import ids, parent_of
from tests.waiting import eventually
from workerkit import AMQPConsumer, HTTPView, Publisher, RetryPolicy, Runner, SSEConsumer
from workerkit.cli.dead_letters.clear import REPLAY, clear
from workerkit.cli.dead_letters.selection import Selection
from workerkit.cli.dead_letters.target import DeadLetterQueue
from workerkit.testing.http_client import HTTPClient
from workerkit.testing.sse import SSEServer

TRACE, CLIENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331

TREE = {
    "POST /orders": None,
    "publish orders": "POST /orders",
    "process orders 1": "publish orders",
    "retry orders": "process orders 1",
    "process orders 2": "retry orders",
    "dead_letter orders": "process orders 2",
    "process orders 3": "dead_letter orders",
    "process /moves": "process orders 3",
}
"""Each span of the trace, and its parent. The calls of one consumer are numbered in order."""


class Order(BaseModel):
    id: int


async def one_order(url: str) -> None:
    """Run the application on a broker, until the event is handled."""
    async with SSEServer() as server:
        done = asyncio.Event()
        failures: list[int] = []

        class All(HTTPView):
            routes = ["/orders"]

            def __init__(self, publisher: Publisher) -> None:
                self.publisher = publisher

            async def post(self, order: Order) -> None:
                await self.publisher.publish(order, "orders")

        class Orders(AMQPConsumer):
            queues = ["orders"]
            retry = RetryPolicy(delays=(0.05,))

            async def handle(self, order: Order) -> None:
                if len(failures) < 2:
                    failures.append(order.id)
                    raise KeyError("customer")
                # As a CloudEvent in JSON has it.
                event: dict[str, Any] = {"id": order.id}
                inject(event)
                await server.send(event, route="/moves")

        class Moves(SSEConsumer):
            url = f"{server.url}"
            routes = ["/moves"]

            async def handle(self, order: Order) -> None:
                done.set()

        recorder = Recorder()
        container = container_of(url, recorder, http={"port": 0})
        package = package_of(All, Orders, Moves)
        async with Runner(container, packages=[package]).running() as runner:
            await eventually(lambda: runner.ready)
            client = HTTPClient()
            client.open(container.transports()[HTTPView].url)
            headers = {"traceparent": f"00-{TRACE:032x}-{CLIENT:016x}-01"}
            assert (await client.post("/orders", json={"id": 1}, headers=headers)).status == 204
            await client.close()
            await eventually(lambda: "dead_letter" in recorder.actions)
            # As the command `workerkit dead-letters replay` does it.
            letters = DeadLetterQueue(container.settings(), "default", None, "orders")
            now = datetime.now(UTC)
            await clear(REPLAY, letters, Selection(), limit=None, rate=None, until=now)
            await asyncio.wait_for(done.wait(), 30.0)


def tree(spans: Sequence[ReadableSpan]) -> Mapping[str, str | None]:
    """Return the parent of each span of the trace, both by name, as in `TREE`."""
    ours = sorted(
        (each for each in spans if ids(each)[0] == TRACE), key=lambda e: e.start_time or 0
    )
    names: dict[tuple[int, int], str] = {}
    for span in ours:
        earlier = [each for each in names.values() if each.startswith(f"{span.name} ")]
        several = span.name == "process orders"
        names[ids(span)] = f"{span.name} {len(earlier) + 1}" if several else span.name
    parents = {names[ids(each)]: parent_of(each) for each in ours}
    return {name: names.get(parent or (0, 0)) for name, parent in parents.items()}
