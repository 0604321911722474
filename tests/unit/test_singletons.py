"""FP2. The declarations, the schedules and the tokens of singleton tasks."""

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.application import container_of, package_of
from workerkit import Consumer, PeriodicTask, Run
from workerkit.amqp.lease import lease_queue
from workerkit.amqp.lease_term import Token, Tokens
from workerkit.app.assembly import assemble
from workerkit.errors import StartError
from workerkit.periodic.schedule import Schedule
from workerkit.testing import running

NOW = datetime(2026, 3, 4, 5, 6, 30, tzinfo=UTC)
HEARTBEAT = 15.0


def each_minute(after: datetime) -> datetime:
    """Return the next full minute."""
    return after.replace(second=0, microsecond=0) + timedelta(minutes=1)


def schedule(every: float | None) -> Schedule:
    return Schedule(every, each_minute, UTC, 0.0, HEARTBEAT)


# Schedules


@given(st.floats(0.01, 100_000.0), st.floats(-1e6, 1e6, allow_nan=False, allow_infinity=False))
def test_fp2_a_takeover_neither_doubles_nor_delays_a_run(every: float, ago: float) -> None:
    """The next run is after the last one, in the same interval, and at most `every` later."""
    last = NOW.timestamp() - ago

    due = schedule(every).next(last, NOW).timestamp()

    assert due <= NOW.timestamp() + every + 1e-3
    if ago >= 0:
        assert due > last
        steps = (due - last) / every
        assert math.isclose(steps, round(steps), abs_tol=2e-6 / every + 1e-6)
        assert due > NOW.timestamp() - every - 1e-3


@pytest.mark.parametrize(
    ("ago", "ahead"),
    [
        pytest.param(None, 0, id="the first run at once"),
        pytest.param(10, 50, id="60 s after the last one"),
        pytest.param(60, 0, id="due now"),
        pytest.param(70, -10, id="one missed: at once"),
        pytest.param(200, -20, id="of three missed the latest"),
        pytest.param(-10_000, 60, id="the other clock was ahead"),
    ],
)
def test_fp2_every_continues_from_the_last_run(ago: float | None, ahead: float) -> None:
    """Of any process."""
    last = 0.0 if ago is None else NOW.timestamp() - ago

    assert schedule(60.0).next(last, NOW) == NOW + timedelta(seconds=ahead)


@pytest.mark.parametrize(
    ("ago", "ahead"),
    [
        pytest.param(None, 30, id="the first run when it is time"),
        pytest.param(30, 30, id="run this minute"),
        pytest.param(90, -30, id="missed during a takeover: at once"),
        pytest.param(100_000, -30, id="of many that are missed the latest"),
        pytest.param(-30, 90, id="run already, by a clock that is a little ahead"),
        pytest.param(-100_000, 30, id="the other clock was wrong"),
    ],
)
def test_fp2_a_crontab_line_continues_from_the_last_run(ago: float | None, ahead: float) -> None:
    """A time that passed during a takeover is run late."""
    last = 0.0 if ago is None else NOW.timestamp() - ago

    assert schedule(None).next(last, NOW) == NOW + timedelta(seconds=ahead)


def test_fp2_a_crontab_time_long_past_is_skipped() -> None:
    """More than four heartbeats ago: the next time is used."""

    def at_three(after: datetime) -> datetime:
        return after.replace(hour=3, minute=0, second=0) + timedelta(days=after.hour >= 3)

    daily = Schedule(None, at_three, UTC, 0.0, HEARTBEAT)
    last = (NOW - timedelta(days=1)).replace(hour=3, minute=0, second=0).timestamp()

    assert daily.next(last, NOW).day == NOW.day + 1


# Tokens


_VALUES = st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=5))
_OBJECTS = st.dictionaries(st.sampled_from(["number", "id", "scheduled"]), _VALUES)


@given(st.one_of(st.binary(max_size=20), _OBJECTS.map(lambda found: json.dumps(found).encode())))
def test_fp2_any_message_is_a_token_or_counts_as_zero(raw: bytes) -> None:
    """A message of another publisher cannot stop a process."""
    token = Token.decode(raw)

    assert 0 <= token.number < 2**62
    assert Token.decode(token.encode()) == token


def test_fp2_the_highest_token_is_kept() -> None:
    """Lower ones can be acknowledged; the last one is never acknowledged."""
    tokens = Tokens()

    assert tokens.add(1, Token())
    assert tokens.add(2, Token(5, "a", 1.0))
    assert not tokens.add(3, Token(5, "b", 2.0))
    assert not tokens.add(4, Token(4, "c", 3.0))
    assert (tokens.highest, tokens.scheduled) == (5, 1.0)
    assert tokens.pop_all_but("a") == [1, 3, 4]
    assert tokens.pop_all_but("a") == []


def test_fp2_the_queue_is_declared_for_one_consumer_without_a_limit() -> None:
    """For each type; a classic queue has no limits."""
    single = {"x-single-active-consumer": True}
    no_limit = {"x-delivery-limit": -1}

    assert lease_queue("shop.Cleanup", None).name == "workerkit.singleton.shop.Cleanup"
    assert lease_queue("x", None).declared_arguments == {**single, **no_limit}
    assert lease_queue("x", "classic").declared_arguments == {"x-queue-type": "classic", **single}
    quorum = {"x-queue-type": "quorum", **single, **no_limit}
    assert lease_queue("x", "quorum").declared_arguments == quorum
    assert lease_queue("x", "quorum").arguments_for((3, 10)) == {"x-queue-type": "quorum", **single}


# Declarations


def errors(*classes: type[Consumer], **settings: Any) -> str:
    """Return the errors of the declaration."""
    with pytest.raises(StartError) as caught:
        assemble(container_of("amqp://127.0.0.1:1", **settings), [package_of(*classes)])
    return str(caught.value)


def test_fp2_a_connection_without_singleton_is_an_error() -> None:
    """It would have no effect."""

    class Cleanup(PeriodicTask):
        every = 1.0
        connection = "other"
        vhost = "v"

        async def handle(self) -> None: ...

    found = errors(Cleanup, amqp={"other": {"url": "amqp://127.0.0.1:1"}})

    assert found.count("Cleanup") == 2
    for name in ("connection", "vhost"):
        assert f"option {name!r} has no effect: it is for tasks with singleton = True" in found


def test_fp2_a_task_of_a_base_with_a_connection_need_not_have_a_lease() -> None:
    """The base class has other subclasses, and an operator may disable the lease."""

    class Shared(PeriodicTask, abstract=True):
        every = 1.0
        connection = "other"

        async def handle(self) -> None: ...

    without = type("Without", (Shared,), {})
    with_one = type("WithOne", (Shared,), {"singleton": True, "connection": "other"})
    amqp = {"other": {"url": "amqp://127.0.0.1:1"}}
    off = {"with_one": {"singleton": False}}
    package = package_of(without, with_one)

    assemble(container_of("amqp://127.0.0.1:1", amqp=amqp), [package])
    assemble(container_of("amqp://127.0.0.1:1", amqp=amqp, consumers=off), [package])


def test_fp2_an_unknown_connection_is_an_error() -> None:
    """As for consumers of queues."""

    class Cleanup(PeriodicTask):
        every = 1.0
        singleton = True
        connection = "other"

        async def handle(self) -> None: ...

    assert "the settings have no connection 'other', only default" in errors(Cleanup)


def test_fp2_two_tasks_with_one_lease_are_an_error() -> None:
    """The second would never run in the process of the first."""

    class One(PeriodicTask):
        every = 1.0
        singleton = "same"

        async def handle(self) -> None: ...

    class Two(One):
        pass

    found = errors(One, Two)

    assert "have the same lease 'same': rename one of them" in found


def test_fp2_a_run_without_singleton_is_an_error() -> None:
    """There is no number that a database could compare."""

    class Cleanup(PeriodicTask):
        every = 1.0

        async def handle(self, run: Run) -> None: ...

    found = errors(Cleanup)

    assert "parameter 'run' is a Run, which only a task with singleton = True has" in found


@pytest.mark.parametrize("wrong", [7, "", "x" * 201])
def test_fp2_singleton_is_a_flag_or_a_name(wrong: object) -> None:
    """Any other value is an error."""

    class Cleanup(PeriodicTask):
        every = 1.0

        async def handle(self) -> None: ...

    Cleanup.singleton = wrong  # type: ignore[assignment]

    assert "option 'singleton' is" in errors(Cleanup)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("true", True),
        ("Yes", True),
        ("0", False),
        ("False", False),
        ("off", False),
        ("shop", "shop"),
    ],
)
def test_fp2_the_environment_may_set_it(
    monkeypatch: pytest.MonkeyPatch, text: str, right: object
) -> None:
    """With `…CONSUMERS__CLEANUP__SINGLETON`."""

    class Cleanup(PeriodicTask):
        every = 1.0

        async def handle(self) -> None: ...

    monkeypatch.setenv("TESTS_ONLY_CONSUMERS__CLEANUP__SINGLETON", text)
    container = container_of("amqp://127.0.0.1:1")
    [declared] = assemble(container, [package_of(Cleanup)]).declared

    assert getattr(declared.options, "singleton") == right  # noqa: B009


def test_fp2_the_lease_is_named_after_the_top_level_package() -> None:
    """Two applications on one virtual host may have tasks with the same name."""

    class Cleanup(PeriodicTask):
        every = 1.0
        singleton = True

        async def handle(self) -> None: ...

    assembly = assemble(container_of("amqp://127.0.0.1:1"), [package_of(Cleanup)])
    [(transport, [declared])] = assembly.transports

    assert transport.via(declared.options, assembly.settings).startswith(
        "singleton, lease on amqp://"
    )


# Tests of users


async def test_fp2_a_singleton_runs_in_tests_of_users() -> None:
    """`tick` runs it with an increasing number, and `idle` does not wait for its token."""
    runs: list[Run] = []

    class Cleanup(PeriodicTask):
        every = 3600.0
        singleton = True
        vhost = "other"

        async def handle(self, run: Run) -> None:
            runs.append(run)

    container = container_of("amqp://127.0.0.1:1")
    async with running(container, packages=[package_of(Cleanup)]) as app:
        await app.tick("cleanup")
        await app.tick("cleanup")
        await app.idle()
        [health] = app.runner.health
        role = health.role()
        settled = [record.action for record in app.settled("Cleanup")]

    assert runs[0].number < runs[1].number
    assert runs[0].scheduled.tzinfo is not None
    assert settled == ["ack", "ack"]
    assert role == "leader"


async def test_fp2_a_sync_singleton_gets_its_run() -> None:
    """In a thread, too."""
    runs: list[Run] = []

    class Cleanup(PeriodicTask):
        every = 3600.0
        singleton = True

        def handle(self, run: Run) -> None:
            runs.append(run)

    container = container_of("amqp://127.0.0.1:1")
    async with running(container, packages=[package_of(Cleanup)]) as app:
        await app.tick("cleanup")

    assert len(runs) == 1


async def test_fp2_a_test_can_call_handle_with_its_own_run() -> None:
    """Nothing else of workerkit is needed."""
    seen: list[int] = []

    class Cleanup(PeriodicTask):
        every = 1.0
        singleton = True

        async def handle(self, run: Run) -> None:
            seen.append(run.number)

    await Cleanup().handle(Run(7, NOW))

    assert seen == [7]
