"""The cursor of a stream: the end of all settled events without a gap."""

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from workerkit import SSEEvent
from workerkit.sse.receiver import CursorTracker

# Events: an id, and whether it is handled. Ids occur several times, or are empty.
EVENTS = st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.booleans()), max_size=60)


@settings(max_examples=500)
@given(events=EVENTS, seed=st.integers())
def test_the_cursor_is_the_end_of_the_prefix(events: list[tuple[str, bool]], seed: int) -> None:
    """In any order of settlement, while others arrive: never past an unsettled event."""
    dice = random.Random(seed)
    tracker = CursorTracker("begin")
    model: list[list[Any]] = []  # Each entry: its id, and whether it is settled.
    unsettled: list[tuple[SSEEvent[Any], list[Any]]] = []

    while events or unsettled:
        if events and (not unsettled or dice.random() < 0.6):
            id_, wanted = events.pop(0)
            entry = [id_, not wanted]
            model.append(entry)
            if wanted:
                event: SSEEvent[Any] = SSEEvent("", id=id_)
                tracker.add([event])
                unsettled.append((event, entry))
            else:
                tracker.skip(id_)
        else:
            event, entry = unsettled.pop(dice.randrange(len(unsettled)))
            tracker.settle(event.sequence)
            entry[1] = True
        expected = "begin"
        for id_, done in model:
            if not done:
                break
            expected = id_
        assert tracker.cursor == expected

    assert len(tracker) == 0


def test_skipped_events_take_no_memory() -> None:
    """A million skipped events after an unsettled one are one entry."""
    tracker = CursorTracker()
    event: SSEEvent[Any] = SSEEvent("", id="0")
    tracker.add([event])

    for number in range(1_000_000):
        tracker.skip(str(number))

    assert (len(tracker), tracker.cursor) == (2, "")
    tracker.settle(event.sequence)
    assert (len(tracker), tracker.cursor) == (0, "999999")
