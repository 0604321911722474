"""FR17 and FR1: counts in headers, and the limit that a class states without declaring it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerkit import AMQPMessage, Queue
from workerkit.amqp.queue_types import QueueTypes
from workerkit.testing import fake_message

# RabbitMQ has no infinite numbers.
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=9)
    | st.binary(max_size=9) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)  # fmt: skip


def types_of(version: tuple[int, ...]) -> QueueTypes:
    """What is known of no queue, on a broker of some version."""
    types = QueueTypes()
    types.version = version
    return types


@given(
    delivery=_VALUES,
    acquired=_VALUES,
    returns=_VALUES,
    redelivered=st.booleans(),
    version=st.sampled_from([(), (3, 10, 8), (4, 0, 5), (4, 3, 6)]),
)
def test_fr17_any_header_is_a_count_or_none(
    delivery: Any, acquired: Any, returns: Any, redelivered: bool, version: tuple[int, ...]
) -> None:
    """Whatever a sender writes, a count is a whole number, and 0 on a first delivery."""
    headers = {
        "x-delivery-count": delivery,
        "x-acquired-count": acquired,
        "x-workerkit-returns": returns,
    }
    message: AMQPMessage[Any] = fake_message(b"", headers=headers, redelivered=redelivered)

    counts = (types_of(version).delivery_count(message), message.returns)

    assert [type(each) for each in counts] == [int, int]
    assert all(0 <= each <= 1_000_000 for each in counts)
    if not redelivered or type(delivery) is not int:
        assert counts[0] == 0
    if version >= (4, 3) and type(acquired) is not int:
        assert counts[0] == 0
    if type(returns) is not int:
        assert message.redelivered is redelivered


def test_fr1_a_limit_is_stated_without_being_declared() -> None:
    """It is known, and no argument of the queue."""
    queue = Queue("orders", expected_delivery_limit=3)

    assert queue.known_delivery_limit == 3
    assert queue.declared_arguments == {}
    assert queue.is_plain
    assert Queue("orders", "quorum", delivery_limit=5).known_delivery_limit == 5
    assert Queue("orders", "quorum").known_delivery_limit is None


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"type": "classic", "expected_delivery_limit": 3}, "is for quorum queues"),
        ({"expected_delivery_limit": True}, "expected_delivery_limit is True: write a whole"),
        ({"expected_delivery_limit": -2}, "expected_delivery_limit is -2: write a whole"),
        (
            {"type": "quorum", "delivery_limit": 3, "expected_delivery_limit": 3},
            "for limits that others declare: write one limit",
        ),
    ],
)
def test_fr1_a_limit_that_cannot_be(options: Any, fault: str) -> None:
    """Each is refused where it is written."""
    with pytest.raises(ValueError, match=fault):
        Queue("orders", **options)
