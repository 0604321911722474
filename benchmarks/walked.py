"""The application whose walks `benchmarks.walk` measures: a class of each kind."""

from pydantic import BaseModel

from workerkit import AMQPConsumer, HTTPView, PeriodicTask, RetryPolicy, SSEConsumer

SUCCEEDING = "walk.succeeding"
FAILING = "walk.failing"
RETRIED = "walk.retried"
ROUTE = "/orders"
LATER = 3600.0


class Order(BaseModel):
    """The body of messages, events and requests."""

    id: int
    item: str


class Succeeding(AMQPConsumer):
    """Handles each message."""

    queues = [SUCCEEDING]

    async def handle(self, order: Order) -> None:
        """Return, so that the message is acknowledged."""


class Failing(AMQPConsumer):
    """Handles no message."""

    queues = [FAILING]
    retry = RetryPolicy(delays=(LATER,), fatal=(ValueError,))

    async def handle(self, order: Order) -> None:
        """Raise a fatal exception, so that the message is dead-lettered."""
        raise ValueError(f"no order {order.id}")


class Retried(AMQPConsumer):
    """Handles no message at the first attempt."""

    queues = [RETRIED]
    retry = RetryPolicy(delays=(LATER,))

    async def handle(self, order: Order) -> None:
        """Raise, so that the message waits in the broker for the next attempt."""
        raise ConnectionError(f"no warehouse for order {order.id}")


class Placed(SSEConsumer):
    """Handles each event."""

    async def handle(self, order: Order) -> None:
        """Return, so that the cursor moves on."""


class Orders(HTTPView):
    """Answers each request."""

    routes = [ROUTE]

    async def post(self, order: Order) -> Order:
        """Return what was sent."""
        return order


class Yearly(PeriodicTask):
    """A task for the measurement of the start."""

    cron = "0 0 1 1 *"

    async def handle(self) -> None:
        """Do nothing."""
