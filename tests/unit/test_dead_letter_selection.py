"""The filters of dead letters: values, times and ages."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from workerkit import AMQPMessage
from workerkit.amqp import table
from workerkit.amqp.acks import Acks
from workerkit.amqp.properties import Properties, encode
from workerkit.cli.dead_letters.selection import Selection, parse_since

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def letter(message_id: str | None = "m-1", **evidence: Any) -> AMQPMessage[Any]:
    """Return a dead letter with that evidence; underscores become hyphens."""
    headers = {f"x-workerkit-{name.replace('_', '-')}": each for name, each in evidence.items()}
    properties = encode(Properties(table=table.encode(headers), message_id=message_id))
    acks = Acks(1, lambda data: True, lambda flush: None)
    return AMQPMessage(
        b"", queue="q.dlq", tag=1, envelope=b"\0\0\0", properties=properties, acks=acks
    )


@pytest.mark.parametrize(
    ("selection", "matches"),
    [
        (Selection(), True),
        (Selection(errors=["KeyError"]), True),
        (Selection(errors=["Key"]), False),
        (Selection(errors=["keyerror"]), False),
        (Selection(consumers=["OrderPlaced"]), True),
        (Selection(consumers=["order_placed"]), True),
        (Selection(consumers=["Order"]), False),
        (Selection(since=NOW), True),
        (Selection(since=NOW + timedelta(seconds=1)), False),
        (Selection(message_ids=["m-1"]), True),
        (Selection(message_ids=["m"]), False),
        (Selection(errors=["KeyError"], consumers=["Other"]), False),
        (Selection(errors=["ValueError", "KeyError"], consumers=["Other", "ORDERPLACED"]), True),
        (Selection(errors=["ValueError", "TypeError"], consumers=["OrderPlaced"]), False),
        (Selection(message_ids=["m-2", "m-1"]), True),
        (
            Selection(
                errors=["KeyError"], consumers=["OrderPlaced"], since=NOW, message_ids=["m-1"]
            ),
            True,
        ),
    ],
    ids=str,
)
def test_filters(selection: Selection, matches: bool) -> None:
    """A message has to pass every given filter."""
    message = letter(error="KeyError", consumer="OrderPlaced", failed_at=NOW.isoformat())

    assert selection.matches(message) is matches


def test_a_message_that_its_handler_rejected() -> None:
    """It has a reason but no class, and is selected as `Reject`; others are not."""
    rejected = letter(reason="no such customer", consumer="OrderPlaced")

    assert Selection(errors=["Reject"]).matches(rejected)
    assert not Selection(errors=["Reject"]).matches(letter(error="KeyError", reason="'x'"))
    assert not Selection(errors=["Reject"]).matches(letter())


def test_the_last_part_of_a_nested_class_is_enough() -> None:
    """An exception that is written inside a class or function has dots in its name."""
    message = letter(error="Orders.handle.<locals>.TooLate")

    assert Selection(errors=["TooLate"]).matches(message)
    assert Selection(errors=["Orders.handle.<locals>.TooLate"]).matches(message)


@pytest.mark.parametrize(
    "selection",
    [Selection(errors=["KeyError"]), Selection(consumers=["Orders"]), Selection(since=NOW)],
    ids=str,
)
def test_a_message_without_evidence_passes_no_filter(selection: Selection) -> None:
    """Missing evidence, or evidence of the wrong type, does not match."""
    assert not selection.matches(letter())
    assert not selection.matches(letter(error=1, consumer=None, failed_at="soon"))


def test_filters_in_words() -> None:
    """The text in questions and summaries; empty filters do not count."""
    given = Selection(errors=["KeyError", "app.Late"], since=NOW)

    assert str(given) == "error KeyError or app.Late, since 2026-01-31 12:00:00 UTC"
    assert given
    assert not Selection()
    assert not Selection(errors=[], consumers=[], message_ids=[])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30s", NOW - timedelta(seconds=30)),
        ("30m", NOW - timedelta(minutes=30)),
        ("2h", NOW - timedelta(hours=2)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("1d", NOW - timedelta(days=1)),
        ("2w", NOW - timedelta(weeks=2)),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T10:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ("2026-01-31T10:00:00Z", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ("2026-01-31T10:00+02:00", datetime(2026, 1, 31, 8, tzinfo=UTC)),
    ],
)
def test_times_and_ages(text: str, expected: datetime) -> None:
    """A time in ISO 8601, in UTC unless it has an offset, or an age."""
    assert parse_since(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "h", "2", "2 h", "2y", "-2h", "soon", "9" * 30 + "w"])
def test_an_invalid_time(text: str) -> None:
    """The error states the value and both formats."""
    with pytest.raises(ValueError, match=r"write a time such as .* or an age such as 2h") as raised:
        parse_since(text, NOW)

    assert repr(text) in str(raised.value)
