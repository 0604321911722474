"""Orders, and their repository."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import func, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from workerkit import Reject

from shop.models import Base, NotificationRow, OrderRow

# What a column of 64 bits holds, and a number of JavaScript exactly.
Number = Annotated[int, Field(ge=0, lt=2**53)]

Insert = postgresql.Insert | sqlite.Insert
INSERT: dict[str, Callable[[type[Base]], Insert]] = {
    "postgresql": postgresql.insert,
    "sqlite": sqlite.insert,
}


class Order(BaseModel):
    """The body of an order message; `handle` is not called for a body that is not valid."""

    id: Number
    item: Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]{1,200}$")]
    quantity: Annotated[int, Field(gt=0, lt=2**31)] = 1

    def check(self, largest: int) -> None:
        """Reject an order that is too large: a dead letter, or a 422."""
        if self.quantity > largest:
            raise Reject(f"the quantity {self.quantity} is too large")


class BookedOrder(Order):
    """An order with its number in the stream."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    booked_at: datetime


class OrderRepository:
    """The booked orders, in the session of one call."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def book(self, order: Order) -> None:
        """Book an order; nothing changes if it is booked, because a message may arrive twice."""
        if self._dialect == "postgresql":
            # Until the commit: else number 8 could be visible before number 7, and a stream that
            # goes on after number 8 would miss it. SQLite has one writer anyway.
            await self._session.execute(text("SELECT pg_advisory_xact_lock(hashtext('orders'))"))
        await self._insert(OrderRow, **order.model_dump())
        self._session.info.setdefault("booked", []).append(order)

    async def find(self, order_id: int) -> BookedOrder | None:
        """Return the order with this id, if it is booked."""
        found = await self._session.scalar(select(OrderRow).where(OrderRow.id == order_id))
        return None if found is None else BookedOrder.model_validate(found)

    async def latest(self, limit: int) -> list[BookedOrder]:
        """Return the last orders, the newest first."""
        query = select(OrderRow).order_by(OrderRow.number.desc()).limit(limit)
        return [BookedOrder.model_validate(each) for each in await self._session.scalars(query)]

    async def after(self, number: int, limit: int = 100) -> list[BookedOrder]:
        """Return the orders after this number, the oldest first."""
        query = select(OrderRow).where(OrderRow.number > number).order_by(OrderRow.number)
        found = await self._session.scalars(query.limit(limit))
        return [BookedOrder.model_validate(each) for each in found]

    async def sales(self, since: datetime) -> dict[str, int]:
        """Return the quantity that was booked of each item."""
        query = select(OrderRow.item, func.sum(OrderRow.quantity)).group_by(OrderRow.item)
        found = await self._session.execute(query.where(OrderRow.booked_at >= since))
        return {item: int(quantity) for item, quantity in found}

    async def note_notification(self, order_id: int) -> bool:
        """Note that a customer is notified of an order; return False if that was noted before."""
        return await self._insert(NotificationRow, order_id=order_id)

    async def _insert(self, row: type[Base], **values: object) -> bool:
        """Insert a row unless its unique key exists, also if another process does so right now."""
        insert = INSERT[self._dialect](row).values(**values).on_conflict_do_nothing()
        inserted = await self._session.scalar(insert.returning(*row.__table__.primary_key))
        return inserted is not None

    @property
    def _dialect(self) -> str:
        return self._session.get_bind().dialect.name
