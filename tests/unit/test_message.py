"""Reading a message is total: no bytes that a sender can choose raise."""

import logging
from dataclasses import fields
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workerkit import Action, AMQPMessage
from workerkit.amqp import table
from workerkit.amqp.acks import Acks
from workerkit.amqp.properties import Properties, decode, encode, find
from workerkit.amqp.requeue import same_queue_copies

ATTRIBUTES = (
    "headers message_id correlation_id reply_to content_type type priority timestamp exchange"
    " routing_key redelivered attempt delivery_count properties"
).split()


def message(
    envelope: bytes = b"\0\0\x03key", properties: bytes = b"\0\0", raw: bytes = b"body"
) -> AMQPMessage[Any]:
    acks = Acks(1, lambda data: True, lambda flush: None)
    return AMQPMessage(
        raw, queue="orders", tag=1, envelope=envelope, properties=properties, acks=acks
    )


@given(st.binary(max_size=300), st.sampled_from([each.name for each in fields(Properties)]))
@example(b"\xff\xfc" + b"\x01a" * 2 + b"\0\0\0\0" + b"\x01" * 40, "type")
@example(b"\x00\x60\0\0\0\0\0\0\0\x09\x02ab", "type")
@example(b"\x20\x00\xff\xff\xff\xff", "table")
@example(b"\x30\x20\xff\xff\xff\xff\x01\x01a", "type")
def test_one_property_is_as_decoded(raw: bytes, name: str) -> None:
    """No matter which bytes there are."""
    assert find(raw, name) == getattr(decode(raw), name)


texts = st.text(max_size=40).filter(lambda text: len(text.encode()) < 256)


@given(st.binary(max_size=80), st.binary(max_size=300))
@example(b"", b"")
@example(b"\x01", b"\xff\xff")
@example(b"\0\xff", b"\x20\x00\xff\xff\xff\xff")
@example(b"\0\0\0", b"\x00\x40" + b"\xff" * 8)
def test_any_envelope_and_properties_can_be_read(envelope: bytes, properties: bytes) -> None:
    """Whatever bytes come, every attribute and the repr have a value of their type."""
    read = message(envelope, properties)

    values = {name: getattr(read, name) for name in ATTRIBUTES}

    assert isinstance(values["headers"], dict)
    assert isinstance(values["attempt"], int)
    assert isinstance(values["exchange"], str)
    assert isinstance(values["routing_key"], str)
    assert repr(read).startswith("<AMQPMessage ")
    assert str(read).startswith("message ")


@given(
    st.builds(
        Properties,
        **{
            name: st.none() | texts
            for name in (
                "content_type content_encoding correlation_id reply_to expiration message_id type"
                " user_id app_id cluster_id"
            ).split()
        },
        delivery_mode=st.none() | st.integers(0, 255),
        priority=st.none() | st.integers(0, 255),
        timestamp=st.none() | st.integers(0, 2**64 - 1),
    )
)
def test_properties_survive_a_round_trip(properties: Properties) -> None:
    """All other properties come back as they were."""
    assert decode(encode(properties)) == properties


def test_headers_that_cannot_be_decoded_leave_the_rest_readable() -> None:
    """A broken table costs the headers, not the message id behind it."""
    read = message(properties=b"\x20\x80" + b"\0\0\0\x03\x01a\xfe" + b"\x02id")

    assert read.headers == {}
    assert read.message_id == "id"


def test_text_that_is_not_utf8_keeps_its_readable_part() -> None:
    """Bytes that are no text are U+FFFD for the handler, and themselves when moved."""
    raw = b"\x00\x80\x04a\xff\xfeb"

    assert message(properties=raw).message_id == "a\ufffd\ufffdb"
    assert encode(decode(raw)) == raw


@pytest.mark.parametrize(
    ("value", "attempt"),
    [(3, 3), (1, 1), (0, 1), (-4, 1), ("3", 1), (None, 1), (2.5, 1), (10**12, 1), (True, 1)],
)
def test_the_attempt_is_a_sane_number(value: object, attempt: int) -> None:
    """A header that no workerkit wrote counts as the first attempt."""
    properties = encode(Properties(table=table.encode({"x-workerkit-attempt": value})))

    assert message(properties=properties).attempt == attempt


def test_d1_a_copy_for_the_same_queue_has_no_past_that_cannot_be_written() -> None:
    """Of headers like ours that a sender has made up, those that make no sense are replaced."""
    made_up = b"T" + b"\xff" * 8
    names = (b"x-workerkit-attempt", b"x-workerkit-first-failed-at", b"x-workerkit-returns")
    entries = b"".join(bytes([len(name)]) + name + made_up for name in names)
    raw = encode(Properties(table=len(entries).to_bytes(4, "big") + entries))

    copy = next(same_queue_copies(message(properties=raw), failed=True)).table

    assert copy is not None
    told = table.decode(copy)
    assert (told["x-workerkit-attempt"], told["x-workerkit-returns"]) == (1, 1)
    assert datetime.fromisoformat(told["x-workerkit-first-failed-at"]).tzinfo is UTC


def test_everything_of_a_message() -> None:
    """Envelope and properties are where a handler looks for them."""
    properties = Properties(
        content_type="application/json",
        table=table.encode({"x": Decimal("1.50")}),
        priority=4,
        correlation_id="c",
        reply_to="r",
        message_id="m",
        timestamp=86_400,
        type="t",
    )
    read = message(b"\x01\x04shop\x06orders", encode(properties))

    found = {name: getattr(read, name) for name in ATTRIBUTES if name != "properties"}

    assert found == {
        "headers": {"x": Decimal("1.50")},
        "message_id": "m",
        "correlation_id": "c",
        "reply_to": "r",
        "content_type": "application/json",
        "type": "t",
        "priority": 4,
        "timestamp": datetime(1970, 1, 2, tzinfo=UTC),
        "exchange": "shop",
        "routing_key": "orders",
        "redelivered": True,
        "attempt": 1,
        "delivery_count": 0,
    }


def test_the_first_decision_counts(caplog: pytest.LogCaptureFixture) -> None:
    """A second settlement is logged and ignored."""
    read = message()

    read.accept()
    with caplog.at_level(logging.WARNING):
        read.reject()

    assert read.fate is Action.ACK
    assert [record.message for record in caplog.records] == ["second settlement ignored"]


def test_fr22_a_timestamp_in_milliseconds_stays_readable() -> None:
    """No datetime holds so many seconds, and what the sender meant is for the handler to decide."""
    sent = encode(Properties(timestamp=1_732_900_000_123))

    found = message(properties=sent)

    assert found.timestamp is None
    assert found.properties.timestamp == 1_732_900_000_123


def test_fr18_a_body_is_hashed_once() -> None:
    """Each redelivered message is compared with all whose handlers run: 7 s of CPU for 100 kB."""
    read = message(raw=b"large")

    assert read.fingerprint is read.fingerprint
