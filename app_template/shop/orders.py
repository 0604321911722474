"""What the shop knows of orders."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import dataclass, field
from itertools import islice
from uuid import uuid4

from pydantic import BaseModel, PositiveInt


class Order(BaseModel):
    """An order as its message has it; a body that does not fit never reaches `handle`."""

    id: int
    item: str
    quantity: PositiveInt = 1


class OrderRepository:
    """Books orders. A real one would keep them in a database."""

    def __init__(self, booked: MutableMapping[int, Order]) -> None:
        self.booked = booked
        self.name = uuid4().hex[:8]  # Another book, such as that after a restart, has other orders.
        self._news = asyncio.Condition()

    async def add(self, order: Order) -> None:
        """Book an order; booking it twice is booking it once, as messages may come twice."""
        async with self._news:
            self.booked[order.id] = order
            self._news.notify_all()

    async def find(self, order_id: int) -> Order | None:
        """The order of that id, if it is booked."""
        return self.booked.get(order_id)

    def seen(self, mark: str) -> int:
        """How many orders somebody has seen who got as far as *mark*; none in another book."""
        name, _, count = mark.partition("-")
        return int(count) if name == self.name and count.isdecimal() else 0

    async def after(self, count: int) -> list[Order]:
        """The orders booked after the first *count*, as soon as there is one."""
        async with self._news:
            await self._news.wait_for(lambda: len(self.booked) > count)
            return list(islice(self.booked.values(), count, None))


@dataclass(frozen=True)
class Customers:
    """Tells customers. Real ones would get a mail."""

    told: list[Order] = field(default_factory=list)

    async def tell(self, order: Order) -> None:
        """Tell whoever has ordered that the order is booked."""
        self.told.append(order)


async def open_book() -> AsyncIterator[dict[int, Order]]:
    """Open the book before the first consumer starts, close it behind the last one."""
    book: dict[int, Order] = {}
    yield book
    book.clear()
