"""CPU per message of a workerkit consumer against bare aio-pika, in one run.

    python -m benchmarks.consume [MESSAGES] [ROUNDS]

Each side consumes the same 204-byte JSON bodies with prefetch 256 in a separate process, reads
them into the same pydantic model, and acknowledges each. Rounds alternate between the sides, the
order drawn each time; the ratio is taken within a round, and the median of the rounds counts.
workerkit runs with metrics, as it does by default, and without, which shows their cost.
"""

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time

import aio_pika
from pydantic import BaseModel

from tests.rabbit import PrivateRabbit
from workerkit import AMQPConsumer, Runner, WorkerContainer

QUEUE = "benchmark"
WITHOUT_METRICS = "workerkit without metrics"
PREFETCH = 256
BODY = json.dumps({"id": 1, "item": "x" * 100, "quantity": 3, "note": "y" * 44}).encode()


class Order(BaseModel):
    """The body."""

    id: int
    item: str
    quantity: int
    note: str


class Count(AMQPConsumer, abstract=len(sys.argv) > 1 and sys.argv[1] != "workerkit"):
    """Counts messages, and stops the clock at the last one."""

    queues = [QUEUE]
    prefetch = PREFETCH

    def __init__(self) -> None:
        self.clock = Clock(int(sys.argv[2]))

    async def handle(self, order: Order) -> None:
        """Count."""
        self.clock.tick(order)


class Clock:
    """CPU from the first message to the last."""

    def __init__(self, wanted: int) -> None:
        self.left = wanted
        self.wanted = wanted
        self.began = 0.0
        self.done = asyncio.Event()

    def tick(self, order: Order) -> None:
        """Count a handled message."""
        assert order.quantity == 3
        if self.left == self.wanted:
            self.began = time.process_time()
        self.left -= 1
        if not self.left:
            micros = (time.process_time() - self.began) / self.wanted * 1e6
            print(f"{micros:.2f}", flush=True)
            self.done.set()


async def bare(url: str, wanted: int) -> None:
    """aio-pika alone: consume, decode, ack."""
    clock = Clock(wanted)
    connection = await aio_pika.connect(url)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=PREFETCH)
    queue = await channel.declare_queue(QUEUE, durable=True)

    async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        clock.tick(Order.model_validate_json(message.body))
        await message.ack()

    await queue.consume(handle)
    await clock.done.wait()
    await connection.close()


async def ours() -> None:
    """The same with workerkit, in a complete application."""
    async with Runner(WorkerContainer(), packages=["benchmarks.consume"]).running():
        await asyncio.sleep(3600)


async def fill(url: str, count: int) -> None:
    """Put *count* messages into the queue."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=False)
        queue = await channel.declare_queue(QUEUE, durable=True)
        await queue.purge()
        for _ in range(count):
            await channel.default_exchange.publish(aio_pika.Message(BODY), QUEUE)


def measure(side: str, url: str, count: int) -> float:
    """Return microseconds of CPU per message that a process of this *side* takes."""
    asyncio.run(fill(url, count))
    environment = {**os.environ, "WORKERKIT_AMQP__DEFAULT__URL": url}
    if side == WITHOUT_METRICS:
        side, environment["WORKERKIT_METRICS__ENABLED"] = "workerkit", "false"
    command = [sys.executable, "-m", "benchmarks.consume", side, str(count), url]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        micros = float(process.stdout.readline())
        process.kill()
    return micros


def main(count: int = 30_000, rounds: int = 5) -> None:
    """Print the figures of each round, and the ratio."""
    ratios = []
    metrics = []
    with PrivateRabbit() as rabbit:
        for _ in range(rounds):
            sides = ["workerkit", WITHOUT_METRICS, "aio-pika"]
            random.shuffle(sides)
            micros = {side: measure(side, rabbit.url(), count) for side in sides}
            ratios.append(micros["workerkit"] / micros["aio-pika"])
            metrics.append(micros["workerkit"] - micros[WITHOUT_METRICS])
            print({side: micros[side] for side in sorted(micros)}, f"ratio {ratios[-1]:.3f}")
    print(f"metrics: median {statistics.median(metrics):.2f} microseconds a message")
    print(f"ratio: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["aio-pika"]:
        asyncio.run(bare(sys.argv[3], int(sys.argv[2])))
    elif sys.argv[1:2] == ["workerkit"]:
        asyncio.run(ours())
    else:
        main(*(int(each) for each in sys.argv[1:]))
