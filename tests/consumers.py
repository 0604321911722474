"""Consumers that several tests use."""

from typing import Any

from workerkit import AMQPConsumer, Queue


def collector(
    *queues: str | Queue, name: str = "Collector", **options: Any
) -> tuple[type[AMQPConsumer], list[bytes]]:
    """Create a consumer that only records bodies.

    Args:
        options: Class attributes, such as `concurrency`.

    Returns:
        The class, and the list into which its instance puts what it gets.
    """
    bodies: list[bytes] = []

    async def handle(self: AMQPConsumer, body: bytes) -> None:
        bodies.append(body)

    attributes = {"queues": list(queues), "handle": handle, **options}
    return type(name, (AMQPConsumer,), attributes), bodies
