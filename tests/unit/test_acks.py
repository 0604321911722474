"""Coalesced acks against a model of what RabbitMQ does with them."""

from struct import unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerkit.amqp.acks import Acks


class Broker:
    """The unacknowledged deliveries of one channel; it closes the channel on an unknown tag."""

    def __init__(self, delivered: int) -> None:
        self.outstanding = set(range(1, delivered + 1))
        self.acked: set[int] = set()
        self.rejected: dict[int, bool] = {}
        self.frames = 0
        self.writes = 0
        self.refuses = False

    def write(self, data: bytes) -> bool:
        if self.refuses:
            return False
        self.writes += 1
        for start in range(0, len(data), 21):
            self._frame(*unpack(">BHIHHQBB", data[start : start + 21]))
        return True

    def _frame(
        self,
        kind: int,
        channel: int,
        size: int,
        cls: int,
        method: int,
        tag: int,
        bit: int,
        end: int,
    ) -> None:
        assert (kind, channel, size, cls, end) == (1, 5, 13, 60, 0xCE)
        assert tag in self.outstanding, f"406 PRECONDITION_FAILED - unknown delivery tag {tag}"
        self.frames += 1
        if method == 90:
            self.rejected[tag] = bool(bit)
            self.outstanding.discard(tag)
            return
        assert method == 80
        tags = {each for each in self.outstanding if each <= tag} if bit else {tag}
        self.acked |= tags
        self.outstanding -= tags


def turn_of(broker: Broker) -> tuple[Acks, list[object]]:
    later: list[object] = []
    acks = Acks(5, broker.write, later.append)
    for tag in sorted(broker.outstanding):
        acks.expect(tag)
    return acks, later


@given(st.permutations(range(1, 13)), st.lists(st.sampled_from("anrf"), min_size=12, max_size=12))
def test_every_settlement_reaches_the_broker_once(order: list[int], what: str) -> None:
    """Whatever the order of acks, rejects and flushes, nothing is settled twice or otherwise."""
    broker = Broker(12)
    acks, _ = turn_of(broker)
    wanted: dict[int, str] = {}

    for tag, action in zip(order, what, strict=True):
        if action == "f":
            acks.flush()
        if action == "r":
            acks.reject(tag, requeue=True)
        if action == "n":
            acks.reject(tag, requeue=False)
        if action in "af":
            acks.ack(tag)
        wanted[tag] = action
    acks.flush()

    assert broker.outstanding == set()
    assert broker.acked == {tag for tag, action in wanted.items() if action in "af"}
    assert broker.rejected == {tag: a == "r" for tag, a in wanted.items() if a in "rn"}


@given(st.lists(st.integers(1, 12), unique=True))
def test_a_part_of_the_deliveries(tags: list[int]) -> None:
    """Deliveries whose handlers still run stay unacknowledged."""
    broker = Broker(12)
    acks, _ = turn_of(broker)

    for tag in tags:
        acks.ack(tag)
    acks.flush()

    assert broker.acked == set(tags)


def test_a_run_without_a_gap_takes_one_frame() -> None:
    """A thousand messages handled in one turn are acknowledged with 21 bytes."""
    broker = Broker(1000)
    acks, later = turn_of(broker)

    for tag in range(1, 1001):
        acks.ack(tag)
    acks.flush()

    assert (broker.frames, broker.writes, len(later)) == (1, 1, 1)
    assert broker.outstanding == set()


def test_a_straggler_holds_nobody_back() -> None:
    """While the first message is still handled, the others are acknowledged one by one at once."""
    broker = Broker(4)
    acks, _ = turn_of(broker)

    for tag in (2, 3, 4):
        acks.ack(tag)
    acks.flush()
    held = set(broker.outstanding)
    acks.ack(1)
    acks.flush()

    assert held == {1}
    assert broker.outstanding == set()
    assert broker.writes == 2


def test_a_lost_channel_hears_nothing() -> None:
    """After `fence` an ack says that it was not sent, and what was pending is dropped."""
    broker = Broker(3)
    acks, _ = turn_of(broker)
    acks.ack(1)

    acks.fence()
    sent = acks.ack(2), acks.reject(3, requeue=True)
    acks.flush()

    assert sent == (False, False)
    assert broker.writes == 0


@pytest.mark.parametrize(
    "settle", [lambda acks: acks.flush(), lambda acks: acks.reject(2, requeue=True)]
)
def test_a_closed_socket_fences(settle: object) -> None:
    """When nothing can be written any more, the channel counts as lost."""
    broker = Broker(2)
    broker.refuses = True
    acks, _ = turn_of(broker)
    acks.ack(1)

    assert callable(settle)
    settle(acks)

    assert acks.lost
