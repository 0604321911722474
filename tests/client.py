"""A simple AMQP client, with which tests declare, publish and take messages.

It uses aiormq only and shares no code with workerkit. What it sends is confirmed, so a test
that continues knows that the broker has it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiormq
from aiormq.abc import AbstractChannel
from pamqp.commands import Basic

from tests.waiting import eventually


@dataclass(frozen=True, slots=True)
class Letter:
    """A message taken from a queue."""

    body: bytes
    properties: Basic.Properties

    @property
    def headers(self) -> dict[str, Any]:
        """Its headers; empty if it has none."""
        return dict(self.properties.headers or {})

    @property
    def evidence(self) -> dict[str, Any]:
        """The evidence headers of a dead letter, without their prefix."""
        prefix = "x-workerkit-"
        found = self.headers.items()
        return {name[len(prefix) :]: value for name, value in found if name.startswith(prefix)}

    @property
    def original_headers(self) -> dict[str, Any]:
        """The headers of the sender."""
        found = self.headers.items()
        return {name: value for name, value in found if not name.startswith("x-workerkit-")}


class RawProperties(Basic.Properties):
    """Properties as bytes, valid or not."""

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self.raw = raw

    def marshal(self) -> bytes:
        """Return the bytes, as they are."""
        return self.raw


class Client:
    """One channel with confirms; open it with `connected`."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel

    async def declare(self, *queues: str, **arguments: Any) -> None:
        """Declare durable queues; underscores in the names of *arguments* become hyphens."""
        table = {name.replace("_", "-"): value for name, value in arguments.items()}
        for queue in queues:
            await self._channel.queue_declare(queue, durable=True, arguments=table)

    async def delete(self, queue: str) -> None:
        """Delete a queue with its messages, even if it has consumers."""
        await self._channel.queue_delete(queue)

    async def declare_exchange(self, name: str, *queues: str) -> None:
        """Declare a direct exchange, with *queues* bound to it by their names."""
        await self._channel.exchange_declare(name, exchange_type="direct", durable=True)
        for queue in queues:
            await self._channel.queue_bind(queue, name, routing_key=queue)

    async def bind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Bind *queue* to an existing *exchange*."""
        await self._channel.queue_bind(queue, exchange, routing_key=routing_key)

    async def delete_exchange(self, name: str) -> None:
        """Delete an exchange, even if it is in use."""
        await self._channel.exchange_delete(name)

    async def send(
        self, queue: str, *bodies: bytes, properties: Basic.Properties | None = None
    ) -> None:
        """Publish to a queue, and return when the broker has all of them."""
        for body in bodies:
            await self._channel.basic_publish(body, routing_key=queue, properties=properties)

    async def publish(
        self, exchange: str, routing_key: str, body: bytes, properties: Basic.Properties
    ) -> None:
        """Publish to an exchange, and return when the broker has it."""
        await self._channel.basic_publish(
            body, exchange=exchange, routing_key=routing_key, properties=properties
        )

    async def take(self, queue: str, deadline: float = 10.0) -> Letter:
        """Remove and return the first message of a queue; wait if it is empty."""

        async def first() -> Letter | None:
            message = await self._channel.basic_get(queue, no_ack=True)
            if isinstance(message.delivery, Basic.GetEmpty):
                return None
            return Letter(bytes(message.body), message.header.properties)

        letter = await eventually(first, deadline, what=f"a message in {queue!r}")
        assert letter is not None
        return letter

    async def count(self, queue: str) -> int:
        """Return the number of ready messages in a queue that exists."""
        declared = await self._channel.queue_declare(queue, passive=True)
        assert declared.message_count is not None
        return declared.message_count

    async def give_back(self, queue: str) -> None:
        """Take the first message of a queue and return it."""
        message = await self._channel.basic_get(queue)
        assert message.delivery_tag is not None
        await self._channel.basic_nack(message.delivery_tag, requeue=True)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    """Connect a client inside the block."""
    connection = await aiormq.connect(url)
    try:
        yield Client(await connection.channel(publisher_confirms=True))
    finally:
        await connection.close()
