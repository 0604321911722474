"""Orders, their repository, and notifications to customers."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import dataclass, field
from itertools import islice
from uuid import uuid4

from pydantic import BaseModel, PositiveInt


class Order(BaseModel):
    """The body of an order message; `handle` is not called for a body that is not valid."""

    id: int
    item: str
    quantity: PositiveInt = 1


class OrderRepository:
    """The booked orders. A real repository would use a database."""

    def __init__(self, booked: MutableMapping[int, Order]) -> None:
        self.booked = booked
        self.id = uuid4().hex[:8]  # A new one after each restart.
        self._changed = asyncio.Condition()

    async def add(self, order: Order) -> None:
        """Book an order; calling this twice has no further effect, because messages may repeat."""
        async with self._changed:
            self.booked[order.id] = order
            self._changed.notify_all()

    async def find(self, order_id: int) -> Order | None:
        """Return the order with this id, if it is booked."""
        return self.booked.get(order_id)

    def position(self, event_id: str) -> int:
        """Return the number of orders up to the event with this id; 0 for another repository."""
        repository, _, count = event_id.partition("-")
        return int(count) if repository == self.id and count.isdecimal() else 0

    async def after(self, count: int) -> list[Order]:
        """Return the orders after the first *count*, as soon as there is one."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.booked) > count)
            return list(islice(self.booked.values(), count, None))


@dataclass(frozen=True)
class Notifier:
    """Notifies customers. A real one would send e-mails."""

    notified: list[Order] = field(default_factory=list)

    async def notify(self, order: Order) -> None:
        """Notify the customer that the order is booked."""
        self.notified.append(order)


async def open_storage() -> AsyncIterator[dict[int, Order]]:
    """Open the storage before the first consumer starts, and close it after the last one stops."""
    storage: dict[int, Order] = {}
    yield storage
    storage.clear()
