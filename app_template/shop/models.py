"""The tables. After a change, `alembic revision --autogenerate -m "what changed"` migrates them."""

from datetime import UTC, datetime

from sqlalchemy import BigInteger, DateTime, Dialect, Integer
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class Base(DeclarativeBase):
    """Has the tables."""


class Time(TypeDecorator[datetime]):
    """A time in UTC. PostgreSQL keeps the time zone, SQLite does not."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Add the time zone."""
        return value and value.replace(tzinfo=UTC)


class OrderRow(Base):
    """A booked order.

    Attributes:
        number: Increases from order to order; the position in the stream of booked orders.
        id: Chosen by the customer. As it is unique, an order that arrives twice is booked once.
    """

    __tablename__ = "orders"
    __table_args__ = {"sqlite_autoincrement": True}  # Never the number of a deleted order.

    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True
    )
    id: Mapped[int] = mapped_column(BigInteger, unique=True)
    item: Mapped[str]
    quantity: Mapped[int]
    booked_at: Mapped[datetime] = mapped_column(Time, default=lambda: datetime.now(UTC), index=True)


class NotificationRow(Base):
    """A customer who was notified of an order."""

    __tablename__ = "notifications"

    order_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
