"""One consumer of each kind, whose settings and options the reference lists."""

from workerkit import AMQPConsumer, HTTPView, PeriodicTask, SSEConsumer


class OrderPlaced(AMQPConsumer):
    """A consumer of RabbitMQ."""

    queues = ["orders"]

    async def handle(self, body: bytes) -> None: ...


class Deployments(SSEConsumer):
    """A consumer of an event stream."""

    connection = "marathon"
    routes = ["/v2/events"]

    async def handle(self, data: str) -> None: ...


class OrderView(HTTPView):
    """A view."""

    routes = ["/orders"]

    async def get(self) -> None: ...


class Cleanup(PeriodicTask):
    """A periodic task."""

    every = 60.0

    async def handle(self) -> None: ...
