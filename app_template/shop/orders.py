"""What the shop knows of orders."""

from collections.abc import AsyncIterator, MutableMapping
from dataclasses import dataclass

from pydantic import BaseModel, PositiveInt


class Order(BaseModel):
    """An order as its message has it; a body that does not fit never reaches `handle`."""

    id: int
    item: str
    quantity: PositiveInt = 1


@dataclass(frozen=True)
class OrderRepository:
    """Books orders. A real one would keep them in a database."""

    booked: MutableMapping[int, Order]

    async def add(self, order: Order) -> None:
        """Book an order; booking it twice is booking it once, as messages may come twice."""
        self.booked[order.id] = order

    async def find(self, order_id: int) -> Order | None:
        """The order of that id, if it is booked."""
        return self.booked.get(order_id)


async def open_book() -> AsyncIterator[dict[int, Order]]:
    """Open the book before the first consumer starts, close it behind the last one."""
    book: dict[int, Order] = {}
    yield book
    book.clear()
