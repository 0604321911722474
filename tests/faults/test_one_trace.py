"""One trace through HTTP, AMQP, a retry, a dead letter, its replay and an event stream."""

from tests.one_trace import TREE, one_order, tree
from tests.rabbit import PrivateRabbit
from tests.tracing import recorded


async def test_one_trace_through_rabbitmq(rabbit: PrivateRabbit, vhost: str) -> None:
    """The same tree as on the embedded broker."""
    with recorded() as spans:
        await one_order(rabbit.url(vhost))

    assert tree(spans.all) == TREE
