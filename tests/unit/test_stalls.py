"""FR8. Frames and messages that make no progress."""

import pytest

from workerkit.amqp.frames import StallDetector, UnfinishedInput

LIMIT = 2.5


def frame(received: int, key: object = "a") -> list[UnfinishedInput]:
    """Return a frame of which *received* bytes have arrived."""
    return [UnfinishedInput(key, received, 1024, "a frame")]


def first_stall(comes: list[int], step: float = 0.5) -> int | None:
    """Return the number of the check that finds the stall; None if there is none."""
    stalls = StallDetector(LIMIT)
    for number, come in enumerate(comes):
        if stalls.check(frame(come), number * step):
            return number
    return None


def test_fr8_no_progress() -> None:
    """It stalls after 2.5 heartbeats, and not before."""
    assert first_stall([10] * 20) == 5


def test_fr8_heartbeats_are_not_progress() -> None:
    """Heartbeats inside a frame of a wrong size have eight bytes each."""
    assert first_stall(list(range(10, 1000, 8))) == 5


def test_fr8_a_slow_connection_makes_progress() -> None:
    """A frame of any size that grows by a kilobyte within 2.5 heartbeats does not stall."""
    assert first_stall(list(range(0, 100_000, 300))) is None


def test_fr8_the_time_starts_at_the_last_progress() -> None:
    """Earlier progress does not matter."""
    assert first_stall([0, 0, 0, 0, 2000, *[2000] * 10]) == 9


def test_fr8_each_frame_is_counted_separately() -> None:
    """A busy connection always has an incomplete frame."""
    stalls = StallDetector(LIMIT)

    assert not any(stalls.check(frame(10, key), key * 0.5) for key in range(100))


def test_fr8_a_process_that_could_not_check_reports_no_stall() -> None:
    """After a handler that blocked the event loop, more checks are needed."""
    stalls = StallDetector(LIMIT)
    stalls.check(frame(10), 0.0)

    assert not stalls.check(frame(10), 60.0)
    assert stalls.check(frame(10), 60.5) == ""


@pytest.mark.parametrize("received", [0, 1])
def test_fr8_each_byte_of_a_message_is_progress(received: int) -> None:
    """Complete frames of its body are progress; frames of other channels are not."""
    stalls = StallDetector(LIMIT)
    results = [
        stalls.check([UnfinishedInput("m", number * received, 1, "a message")], number * 0.5)
        for number in range(10)
    ]

    assert any(results) == (received == 0)
