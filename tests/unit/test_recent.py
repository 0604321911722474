"""The last failures, the state of connections, and what was counted for each consumer."""

import gc
import logging
import weakref
from time import perf_counter
from typing import Any

import pytest

from workerkit import (
    Action,
    InvalidBody,
    Reject,
    RequestExpired,
    Retry,
    Settled,
)
from workerkit.config.sections import MetricsSettings
from workerkit.delivery import Delivery, FailedCall, Outcome
from workerkit.health import Readiness
from workerkit.observe import ConnectionEvent, notify
from workerkit.ops.metrics import Metrics
from workerkit.ops.recent import ConnectionState
from workerkit.testing import fake_message


class Refused(Delivery):
    """A request that was refused because of its client."""

    def log_failure(self, action: Action, error: Exception | None) -> tuple[int, str]:
        """Return the level of what nobody has to act on."""
        return logging.INFO, "refused"


class Broken(Delivery):
    """A delivery of a transport with an error of its own."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def made() -> Metrics:
    """Return the metrics of a process that has just begun."""
    return Metrics(MetricsSettings(), Readiness())


def raised(error: Exception) -> Exception:
    """Return an exception with a traceback."""
    try:
        raise error
    except Exception as found:
        return found


def settled(
    action: Action = Action.RETRY,
    error: Exception | None = None,
    *,
    delivery: Delivery | None = None,
    lost: bool = False,
) -> Settled:
    """Return the record of a delivery."""
    delivery = delivery or fake_message(b"x", message_id="m-1")
    return Settled("Orders", "orders", delivery, Outcome(action, error), action, 0.5, lost)


def test_a_failure_is_kept_as_text() -> None:
    """With the place in the application, the delivery, and its trace."""
    metrics, message = made(), fake_message(b"x", message_id="m-1", attempt=3)
    message.trace = {"trace_id": "abc", "span_id": "def"}
    metrics(settled(Action.DEAD_LETTER, raised(KeyError("item")), delivery=message))

    [found] = metrics.recent.failures
    assert (found.consumer, found.source, found.action) == ("Orders", "orders", "dead_letter")
    assert (found.error, found.text) == ("KeyError", "'item'")
    assert found.place.startswith("test_recent.py:")
    assert (found.delivery, found.attempt, found.trace_id) == ("m-1", 3, "abc")
    assert metrics.recent.failed == {"Orders": 1}


def test_nothing_of_a_delivery_is_kept_in_memory() -> None:
    """Neither the message, nor the exception, nor its frames."""

    class Large(Exception):
        pass

    metrics = made()
    message = fake_message(b"x" * 1000)
    error = raised(Large("large"))
    gone: list[weakref.ref[Any]] = [weakref.ref(message), weakref.ref(error)]
    metrics(settled(error=error, delivery=message))
    del message, error
    gc.collect()

    assert [each() for each in gone] == [None, None]
    assert len(metrics.recent.failures) == 1


@pytest.mark.parametrize(
    ("action", "error", "counts"),
    [
        (Action.ACK, None, False),
        (Action.DEAD_LETTER, None, False),
        (Action.RETRY, KeyError("x"), True),
        (Action.ACK, KeyError("x"), True),
        (Action.DEAD_LETTER, InvalidBody("x"), True),
        (Action.DEAD_LETTER, Reject("x"), True),
        (Action.RETRY, Retry(), False),
        (Action.REQUEUE, Retry(), False),
        (Action.DEAD_LETTER, Retry(), True),
        (Action.ACK, RequestExpired("x"), False),
    ],
)
def test_what_counts_as_a_failure(action: Action, error: Exception | None, counts: bool) -> None:
    """An exception, but not `Retry` while it is tried again, nor one that nobody waits for."""
    metrics = made()
    metrics(settled(action, error))

    assert metrics.recent.failed == ({"Orders": 1} if counts else {})
    assert len(metrics.recent.failures) == counts
    assert metrics.by_consumer()["Orders"].handled == 1


def test_refused_requests_are_no_failures() -> None:
    """Their clients would fill the list."""
    metrics = made()
    metrics(settled(Action.REJECT, InvalidBody("x"), delivery=Refused(b"")))

    assert metrics.recent.failed == {}


def test_lost_deliveries_are_not_handled() -> None:
    """The source delivers them again."""
    metrics = made()
    metrics(settled(Action.RETRY, KeyError("x"), lost=True))
    metrics(settled(Action.ACK))

    counts = metrics.by_consumer()["Orders"]
    assert (counts.handled, counts.retried, counts.dead) == (1, 0, 0)
    assert metrics.recent.failed == {}


def test_a_delivery_without_a_text_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """An error of another transport is logged, and does not change the counts."""
    metrics = made()
    notify([metrics], settled(Action.DEAD_LETTER, KeyError("x"), delivery=Broken(b"")))

    assert metrics.by_consumer()["Orders"].dead == 1
    assert metrics.recent.failed == {"Orders": 1}
    assert [each.message for each in caplog.records] == ["observer failed"]


def test_the_list_of_failures_ends() -> None:
    """The last fifty stay, with short texts."""
    metrics = made()
    for number in range(200):
        metrics(settled(error=KeyError(f"{number} {'x' * 100_000}")))

    failures = metrics.recent.failures
    assert [each.text[:4] for each in failures] == [f"'{number}" for number in range(150, 200)]
    assert max(len(each.text) for each in failures) == 2000


def test_many_failures_are_cheap() -> None:
    """Less than 50 µs each, also on a slow machine; they take about 5."""
    metrics, error = made(), raised(KeyError("x"))
    call = FailedCall(1000)
    record = settled()._replace(outcome=Outcome(Action.RETRY, error, call=call))
    started = perf_counter()
    for _ in range(5000):
        metrics(record)
    seconds = perf_counter() - started

    assert seconds / 5000 < 50e-6


def event(reason: str = "") -> ConnectionEvent:
    """Return an event of a connection."""
    return ConnectionEvent("default", "consumers", "/", 1, reason)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (["failed"], ConnectionState(False, 0, 0, 1, "why 0")),
        (["failed", "connected"], ConnectionState(True, 1, 0, 1, "")),
        (["connected", "lost"], ConnectionState(False, 1, 1, 0, "why 1")),
        (["connected", "lost", "failed"], ConnectionState(False, 1, 1, 1, "why 2")),
        (["connected", "lost", "connected"], ConnectionState(True, 2, 1, 0, "")),
    ],
    ids=["failed", "late", "lost", "lost and failed", "back"],
)
def test_connections(events: list[str], expected: ConnectionState) -> None:
    """Each has the state and the reason of its last event."""
    metrics = made()
    for number, each in enumerate(events):
        reason = "" if each == "connected" else f"why {number}"
        name = each if each == "connected" else f"connection_{each}"
        observe: Any = getattr(metrics, name)
        observe(event(reason))

    assert metrics.recent.connections == {("default", "consumers", "/"): expected}


def test_connections_of_each_virtual_host() -> None:
    """They are different ones."""
    metrics = made()
    metrics.connected(event())
    metrics.connection_lost(event()._replace(vhost="other", reason="x" * 100_000))

    states = metrics.recent.connections
    assert [each.connected for each in states.values()] == [True, False]
    assert max(len(each.reason) for each in states.values()) == 2000
