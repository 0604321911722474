"""CPU per confirmed publish, 100 in flight: workerkit's Publisher against aio-pika, in one run.

python -m benchmarks.publish [MESSAGES] [ROUNDS]
"""

import asyncio
import random
import statistics
import subprocess
import sys
import time
from itertools import repeat

import aio_pika

from tests.rabbit import PrivateRabbit
from workerkit import Publisher, WorkerSettings

QUEUE = "benchmark"
BODY = b"x" * 204
WINDOW = 100


async def ours(url: str, count: int) -> None:
    """`publish_many` with a window of 100."""
    publisher = Publisher()
    publisher.open(WorkerSettings(amqp={"default": {"url": url}}))
    await publisher.publish(BODY, QUEUE)
    began = time.process_time()
    await publisher.publish_many(repeat(BODY, count), QUEUE, window=WINDOW)
    print(f"{(time.process_time() - began) / count * 1e6:.2f}", flush=True)
    await publisher.close()


async def bare(url: str, count: int) -> None:
    """aio-pika with the same number of publishes in flight."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        left = iter(range(count))

        async def publish() -> None:
            for _ in left:
                message = aio_pika.Message(BODY, delivery_mode=2)
                await channel.default_exchange.publish(message, QUEUE)

        await channel.default_exchange.publish(aio_pika.Message(BODY), QUEUE)
        began = time.process_time()
        await asyncio.gather(*(publish() for _ in range(WINDOW)))
        print(f"{(time.process_time() - began) / count * 1e6:.2f}", flush=True)


def measure(side: str, url: str, count: int) -> float:
    """Return microseconds of CPU per message that a process of this *side* takes."""
    command = [sys.executable, "-m", "benchmarks.publish", side, str(count), url]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


async def prepare(url: str) -> None:
    """Declare the queue, empty."""
    async with await aio_pika.connect(url) as connection:
        queue = await (await connection.channel()).declare_queue(QUEUE, durable=True)
        await queue.purge()


def main(count: int = 20_000, rounds: int = 5) -> None:
    """Print the figures of each round, and the ratio."""
    ratios = []
    with PrivateRabbit() as rabbit:
        for _ in range(rounds):
            sides = ["workerkit", "aio-pika"]
            random.shuffle(sides)
            micros = {}
            for side in sides:
                asyncio.run(prepare(rabbit.url()))
                micros[side] = measure(side, rabbit.url(), count)
            ratios.append(micros["workerkit"] / micros["aio-pika"])
            print({side: micros[side] for side in sorted(micros)}, f"ratio {ratios[-1]:.3f}")
    print(f"ratio: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] in (["aio-pika"], ["workerkit"]):
        side = bare if sys.argv[1] == "aio-pika" else ours
        asyncio.run(side(sys.argv[3], int(sys.argv[2])))
    else:
        main(*(int(each) for each in sys.argv[1:]))
