"""Consumers that tests have in common."""

from typing import Any

from workerkit import AMQPConsumer, Queue


def collector(
    *queues: str | Queue, name: str = "Collector", **options: Any
) -> tuple[type[AMQPConsumer], list[bytes]]:
    """Make a consumer that does nothing but keep the bodies.

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
