"""What counts as not going on."""

import pytest

from workerkit.amqp.frames import StallDetector, UnfinishedInput

LIMIT = 2.5


def frame(received: int, key: object = "a") -> list[UnfinishedInput]:
    """A frame of which *received* bytes have arrived."""
    return [UnfinishedInput(key, received, 1024, "a frame")]


def first_stall(comes: list[int], step: float = 0.5) -> int | None:
    """The number of the check that finds the stall; None without one."""
    stalls = StallDetector(LIMIT)
    for number, come in enumerate(comes):
        if stalls.check(frame(come), number * step):
            return number
    return None


def test_fr8_no_progress() -> None:
    """It stalls after 2.5 heartbeats, and not before."""
    assert first_stall([10] * 20) == 5


def test_fr8_heartbeats_are_no_progress() -> None:
    """A broken head swallows them: eight bytes each."""
    assert first_stall(list(range(10, 1000, 8))) == 5


def test_fr8_a_slow_line_is_progress() -> None:
    """However large the frame, as long as it grows by a kilobyte within 2.5 heartbeats."""
    assert first_stall(list(range(0, 100_000, 300))) is None


def test_fr8_progress_begins_anew() -> None:
    """The time counts from the last progress on."""
    assert first_stall([0, 0, 0, 0, 2000, *[2000] * 10]) == 9


def test_fr8_another_frame_is_another_one() -> None:
    """A busy connection is always in the middle of some frame."""
    stalls = StallDetector(LIMIT)

    assert not any(stalls.check(frame(10, key), key * 0.5) for key in range(100))


def test_fr8_a_process_that_could_not_check_reports_no_stall() -> None:
    """After a handler that blocked the loop there are more checks before a stall is reported."""
    stalls = StallDetector(LIMIT)
    stalls.check(frame(10), 0.0)

    assert not stalls.check(frame(10), 60.0)
    assert stalls.check(frame(10), 60.5) == ""


@pytest.mark.parametrize("received", [0, 1])
def test_fr8_a_message_goes_on_with_each_byte(received: int) -> None:
    """Whole frames of a body are its progress, and nothing else comes into its count."""
    stalls = StallDetector(LIMIT)
    results = [
        stalls.check([UnfinishedInput("m", number * received, 1, "a message")], number * 0.5)
        for number in range(10)
    ]

    assert any(results) == (received == 0)
