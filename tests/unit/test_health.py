"""Health: whether a process can still become ready."""

from workerkit.health import Health, Part, State, abort_reasons


def health(*parts: Part, outside: bool = True) -> Health:
    """A consumer that reads from these."""
    return Health("Consumer", list(parts), outside)


def refused(times: int) -> Part:
    """Something that was refused this often in a row."""
    part = Part()
    for _ in range(times):
        part.refused("no such user")
    return part


def test_three_refusals_of_all_that_there_is_are_the_end() -> None:
    """Two are not yet; a reason that several parts have is reported once."""
    assert abort_reasons([health(refused(2))]) == []
    assert abort_reasons([health(refused(3)), health(refused(4), refused(3))]) == ["no such user"]


def test_there_is_hope_where_anything_was_ready_or_waits() -> None:
    """For a broker that is down, a queue that is missing, or what worked before."""
    waiting, before = Part(), Part()
    waiting.waiting("queue 'q' is missing")
    before.ready()
    for _ in range(5):
        before.refused("no such user")

    assert abort_reasons([health(refused(3), waiting)]) == []
    assert abort_reasons([health(refused(3)), health(before)]) == []
    assert abort_reasons([]) == []


def test_what_needs_nothing_from_outside_gives_no_hope() -> None:
    """A task of the clock is always ready, and is not what the process is for."""
    ticking = Part()
    ticking.ready()

    assert abort_reasons([health(ticking, outside=False), health(refused(3))]) == ["no such user"]
    assert abort_reasons([health(ticking, outside=False)]) == []


def test_only_refusals_in_a_row_count() -> None:
    """Another failure between two of them, such as a restart of the broker, resets the count."""
    part = refused(2)
    part.waiting("connection refused")
    part.refused("no such user")

    assert part.refusals == 1
    assert abort_reasons([health(part)]) == []


def test_a_consumer_is_as_ready_as_the_worst_of_its_parts() -> None:
    """Its reason names each cause once."""
    ready, waiting = Part(), Part()
    ready.ready()
    waiting.waiting("queue 'q' is missing")

    assert health(ready).state is State.READY
    assert health(ready, waiting).state is State.WAITING
    assert health(ready, waiting, waiting).reason == "queue 'q' is missing"
    assert not health(ready, waiting).was_ready
    ready.stopping()
    assert health(ready, waiting).state is State.STOPPING
