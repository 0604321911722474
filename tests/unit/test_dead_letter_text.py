"""Dead letters as text and as JSON, and what a replay makes of their properties."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerkit import Action, AMQPMessage, Reject, Retry
from workerkit.amqp import table
from workerkit.amqp.acks import Acks
from workerkit.amqp.dead_letters import Evidence, evidence
from workerkit.amqp.properties import Properties, encode
from workerkit.amqp.replay import replay_properties
from workerkit.cli.dead_letters.text import as_json, body_as_json, in_full, lines, row
from workerkit.delivery import Outcome

EVIDENCE = {
    "x-workerkit-reason": "no\nway",
    "x-workerkit-error": "KeyError",
    "x-workerkit-consumer": "OrderPlaced",
    "x-workerkit-queue": "orders",
    "x-workerkit-attempt": 3,
    "x-workerkit-failed-at": "2026-01-31T12:00:00.123+00:00",
}


def letter(raw: bytes = b"", properties: bytes | None = None, **more: Any) -> AMQPMessage[Any]:
    """Return a dead letter; *more* are its properties."""
    encoded = encode(Properties(**more)) if properties is None else properties
    acks = Acks(1, lambda data: True, lambda flush: None)
    return AMQPMessage(
        raw,
        queue="orders.dlq",
        tag=1,
        envelope=b"\0\0\x0aorders.dlq",
        properties=encoded,
        acks=acks,
    )


def with_headers(headers: dict[str, Any], raw: bytes = b"", **more: Any) -> AMQPMessage[Any]:
    """Return a dead letter with *headers*."""
    return letter(raw, table=table.encode(headers), **more)


def test_a_line() -> None:
    """A line has time, consumer, error, attempts, replays, id, size and the reason."""
    message = with_headers(EVIDENCE | {"x-workerkit-replays": 2}, b"1234", message_id="m-1")

    head, line = lines([row(message)])

    assert head.split("  ")[0] == "FAILED AT (UTC)"
    assert line.split() == [
        "2026-01-31", "12:00:00", "OrderPlaced", "KeyError", "3", "2", "m-1", "4", "no",
    ]  # fmt: skip


def test_a_line_of_a_message_without_evidence() -> None:
    """Unknown values are dashes."""
    assert row(letter(b"x")) == ("-", "-", "-", "-", "0", "-", "1", "-")


def test_the_broker_s_own_evidence() -> None:
    """The broker's header `x-death` is evidence; its first entry is the last death."""
    time = datetime(2026, 1, 31, tzinfo=UTC)
    deaths = [{"reason": "expired", "queue": "orders", "time": time}, {"reason": "rejected"}]

    found = Evidence.of(with_headers({"x-death": deaths}))

    assert found.reason == "dead-lettered by the broker: expired in 'orders'"
    assert found.failed_at == time
    assert found.queue is None


@pytest.mark.parametrize("name", ["", "q" * 256, "\u00e4" * 128, "a\nb"])
def test_d1_a_queue_that_cannot_exist_is_no_evidence(name: str) -> None:
    """A replay would stop at such a message, which any client can send."""
    assert Evidence.of(with_headers(EVIDENCE | {"x-workerkit-queue": name})).queue is None


def test_d1_a_number_of_replays_that_cannot_be_counted_on() -> None:
    """It starts at 0, because no header can hold the next number."""
    message = with_headers(EVIDENCE | {"x-workerkit-replays": 2**63 - 1})

    assert Evidence.of(message).replays == 0
    headers = replay_properties(message, "orders").table
    assert headers is not None
    assert table.decode(headers)["x-workerkit-replays"] == 1


class NoSuchOrder(Reject):
    """One of the user's own, which takes no reason."""

    def __init__(self) -> None:
        """Say nothing to `Reject`."""


def found_in(error: Exception | None, cause: BaseException | None = None) -> Evidence:
    """Return what is found in a message that is dead-lettered because of *error*."""
    if error is not None:
        error.__cause__ = cause
    told = evidence(letter(), Outcome(Action.DEAD_LETTER, error), "Orders")
    return Evidence.of(with_headers(told))


@pytest.mark.parametrize(
    ("error", "cause", "kind", "reason"),
    [
        (Reject("bad"), KeyError("id"), "KeyError", "bad"),
        (Reject(), KeyError("id"), "KeyError", "'id'"),
        (Reject(), TimeoutError(), "TimeoutError", "TimeoutError"),
        (Retry("busy"), OSError("refused"), "OSError", "busy"),
        (Retry(after=1), OSError("refused"), "OSError", "refused"),
        (NoSuchOrder(), KeyError("id"), "KeyError", "'id'"),
        (ValueError("no number"), KeyError("id"), "ValueError", "no number"),
    ],
)
def test_evidence_of_a_cause(
    error: Exception, cause: BaseException, kind: str, reason: str
) -> None:
    """The cause of a signal is the error; the reason is the signal's, if it has one."""
    found = found_in(error, cause)

    assert (found.error, found.reason) == (kind, reason)
    assert f"{type(cause).__name__}" in (found.traceback or "")


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (Reject("bad"), "Reject", "bad"),
        (Reject(), "Reject", "Reject"),
        (Retry("busy"), "Retry", "busy"),
        (Retry(after=1), "Retry", "the handler requested another attempt"),
        (NoSuchOrder(), "NoSuchOrder", "NoSuchOrder"),
        (None, "Reject", "dead-lettered by the handler"),
    ],
)
def test_evidence_without_a_cause(error: Exception | None, kind: str, reason: str) -> None:
    """The signal itself is the error, without a traceback."""
    found = found_in(error)

    assert (found.error, found.reason, found.traceback) == (kind, reason, None)


def test_as_json() -> None:
    """Evidence, properties and the sender's headers are separate."""
    headers = EVIDENCE | {"trace": "t-1", "bytes": b"\xff", "nested": {"at": [1.5, None]}}
    told = as_json(with_headers(headers, b"1234", message_id="m-1", priority=3))

    assert json.loads(json.dumps(told)) == told
    assert told["headers"] == {"trace": "t-1", "bytes": "\\xff", "nested": {"at": [1.5, None]}}
    assert told["properties"] == {"message_id": "m-1", "priority": 3}
    assert told["evidence"]["failed-at"] == "2026-01-31T12:00:00.123+00:00"
    assert (told["error"], told["attempt"], told["size"]) == ("KeyError", 3, 4)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"caf\xc3\xa9", {"body": "café", "body_encoding": "utf-8"}),
        (b"\xff\x00", {"body": "/wA=", "body_encoding": "base64"}),
        (b"", {"body": "", "body_encoding": "utf-8"}),
    ],
)
def test_a_body_as_json(raw: bytes, expected: dict[str, str]) -> None:
    """Text if it is UTF-8, else base64."""
    assert body_as_json(raw) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"id": 1}', ["body (9 bytes, JSON):", "{", '  "id": 1', "}"]),
        (b"two\nlines", ["body (9 bytes, text):", "two", "lines"]),
        (b"\xff\x00", ["body (2 bytes, in base64):", "/wA="]),
        (b"[" * 100_000, ["body (100000 bytes, text):", "[" * 100_000]),
        (b"\x1b[2J", ["body (4 bytes, text):", "\\x1b[2J"]),
    ],
    ids=["json", "text", "bytes", "deep", "escape"],
)
def test_a_body_for_people(raw: bytes, expected: list[str]) -> None:
    """JSON is indented, and control characters are escaped."""
    assert list(in_full(letter(raw)))[-len(expected) :] == expected


@given(st.binary(max_size=300), st.binary(max_size=40))
def test_any_message_can_be_formatted(properties: bytes, raw: bytes) -> None:
    """A message of any bytes has a line, a page, a JSON object and a replay."""
    message = letter(raw, properties)

    assert all(cell.isprintable() for cell in row(message))
    assert "".join(in_full(message)).isprintable()
    assert json.dumps(as_json(message))
    assert replay_properties(message, "orders").delivery_mode == 2


names = st.text("abc-", min_size=1, max_size=8)
values = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8)


@given(st.dictionaries(names, values), st.integers(0, 5))
def test_a_replay_keeps_what_the_sender_wrote(headers: dict[str, Any], replays: int) -> None:
    """Every header of the sender is kept, evidence is removed, and replays are counted."""
    before = {"x-workerkit-replays": replays} if replays else {}
    message = with_headers({**headers, **EVIDENCE, **before, "x-death": [], "x-delivery-count": 9})

    properties = replay_properties(message, "orders")

    kept = table.encode(headers)[4:]
    assert properties.table is not None
    assert properties.table[4:].startswith(kept)
    assert table.decode(properties.table) == {**headers, "x-workerkit-replays": replays + 1}


def test_a_replay_keeps_the_first_destination() -> None:
    """The first exchange and routing key are kept if they differ from the queue."""
    there = {"x-workerkit-exchange": "shop", "x-workerkit-routing-key": "order.placed"}
    plain = {"x-workerkit-exchange": "", "x-workerkit-routing-key": "orders"}

    remembered = replay_properties(with_headers(EVIDENCE | there), "orders").table
    forgotten = replay_properties(with_headers(EVIDENCE | plain), "orders").table

    assert table.decode(remembered or b"") == {"x-workerkit-replays": 1, **there}
    assert table.decode(forgotten or b"") == {"x-workerkit-replays": 1}


def test_a_replay_of_headers_that_cannot_be_read_leaves_them_alone() -> None:
    """They cannot be added to, so this replay is not counted."""
    malformed = b"\0\0\0\x05hello"

    assert replay_properties(letter(table=malformed), "orders").table == malformed
