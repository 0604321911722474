"""Coalesced acks against a model of what RabbitMQ does with them."""

from struct import unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerkit.amqp.acks import Acks
from workerkit.amqp.frames import MalformedFrame


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


class Line:
    """A channel whose acks may get lost on the way.

    Attributes:
        in_doubt: What was told when the channel was lost.
    """

    def __init__(self, prefetch: int) -> None:
        self.in_doubt: list[int] = []
        self.acks = Acks(5, lambda data: True, lambda flush: None)
        self.acks.prefetch = prefetch
        self.acks.in_doubt = self.in_doubt.extend
        self.tag = 0

    def deliver(self, number: int) -> None:
        """The broker sends so many messages."""
        for _ in range(number):
            self.tag += 1
            self.acks.expect(self.tag)

    def ack(self, *tags: int) -> None:
        """One turn of the event loop in which these are acknowledged."""
        for tag in tags:
            self.acks.ack(tag, tag)
        self.acks.flush()


@pytest.mark.parametrize("tag", [0, 1, 2, 4])
def test_fr23_tags_count_without_gaps(tag: int) -> None:
    """What repeats, goes backwards or leaves one out is no stream to go on with."""
    line = Line(10)
    line.deliver(2)

    with pytest.raises(MalformedFrame, match=f"channel 5 with tag {tag} after tag 2"):
        line.acks.expect(tag)

    line.acks.expect(3)


def test_fr7_acks_are_in_doubt_until_the_broker_is_heard() -> None:
    """Bytes that come at once may have been on their way; those a second later were not."""
    line = Line(10)
    line.deliver(5)
    line.ack(1)
    line.acks.on_bytes_received()
    line.ack(2, 3)
    line.acks.on_bytes_received()
    line.ack(4)

    line.acks.fence()

    assert line.in_doubt == [2, 3, 4]


def test_fr7_more_deliveries_than_the_prefetch_allows_show_that_acks_arrived() -> None:
    """The broker has sent six, and leaves three unsettled at most: it has three acks."""
    line = Line(3)
    line.deliver(3)
    for tag in (1, 2, 3):
        line.ack(tag)
    line.deliver(3)
    line.ack(4)

    line.acks.fence()

    assert line.in_doubt == [4]


@given(st.integers(1, 8), st.lists(st.integers(0, 8), max_size=60))
def test_fr7_the_broker_s_own_view(prefetch: int, steps: list[int]) -> None:
    """Whatever has not arrived is in doubt, and fewer are kept than twice the prefetch."""
    line = Line(prefetch)
    sent: list[int] = []  # In order.
    arrived = 0
    for step in steps:
        # The broker takes any number of acks in, and fills the prefetch up again.
        arrived = min(arrived + step, len(sent))
        line.deliver(prefetch - (line.tag - arrived))
        unsettled = sorted(set(range(1, line.tag + 1)) - set(sent))
        chosen = unsettled[: step + 1] if step % 2 else unsettled[-step - 1 :]
        line.ack(*chosen)
        sent += chosen

    line.acks.fence()

    assert set(sent[arrived:]) <= set(line.in_doubt)
    assert len(line.in_doubt) < 2 * prefetch
    assert set(line.in_doubt) <= set(sent)


@pytest.mark.parametrize("answered", [True, False])
def test_fr7_a_channel_that_we_close(answered: bool) -> None:
    """The broker's answer to that comes after all acks; without it they stay in doubt."""
    line = Line(10)
    line.deliver(2)
    line.acks.ack(1, 1)

    line.acks.finish()
    late = line.acks.ack(2, 2)
    if answered:
        line.acks.mark_received()
    line.acks.fence()

    assert not late
    assert line.in_doubt == ([] if answered else [1])


def test_fr7_what_was_moved_is_not_told() -> None:
    """Of a message that was copied elsewhere another copy does no harm, and to skip it would."""
    line = Line(10)
    line.deliver(2)
    line.acks.ack(1)
    line.ack(2)

    line.acks.fence()

    assert line.in_doubt == [2]
