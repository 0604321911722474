"""How far a stream is settled: the prefix without a gap, by place and not by id."""

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from workerkit import SSEEvent
from workerkit.sse.receiver import CursorTracker

# What comes: an id, and whether somebody handles it. Ids come again, or are empty.
COMING = st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.booleans()), max_size=60)


@settings(max_examples=500)
@given(coming=COMING, seed=st.integers())
def test_the_cursor_is_the_end_of_the_prefix(coming: list[tuple[str, bool]], seed: int) -> None:
    """In whatever order events are settled, while others come: never past one that is not."""
    dice = random.Random(seed)
    tracker = CursorTracker("begin")
    model: list[list[Any]] = []  # Each place: its id, and whether it is settled.
    unsettled: list[tuple[SSEEvent[Any], list[Any]]] = []

    while coming or unsettled:
        if coming and (not unsettled or dice.random() < 0.6):
            id_, wanted = coming.pop(0)
            place = [id_, not wanted]
            model.append(place)
            if wanted:
                event: SSEEvent[Any] = SSEEvent("", id=id_)
                tracker.add([event])
                unsettled.append((event, place))
            else:
                tracker.skip(id_)
        else:
            event, place = unsettled.pop(dice.randrange(len(unsettled)))
            tracker.settle(event.sequence)
            place[1] = True
        expected = "begin"
        for id_, done in model:
            if not done:
                break
            expected = id_
        assert tracker.cursor == expected

    assert len(tracker) == 0


def test_what_nobody_handles_takes_no_room() -> None:
    """A million of them behind an event that is not settled are one place."""
    tracker = CursorTracker()
    event: SSEEvent[Any] = SSEEvent("", id="0")
    tracker.add([event])

    for number in range(1_000_000):
        tracker.skip(str(number))

    assert (len(tracker), tracker.cursor) == (2, "")
    tracker.settle(event.sequence)
    assert (len(tracker), tracker.cursor) == (0, "999999")
