"""Declarations of queues, exchanges and bindings: invalid ones raise when they are created."""

import re
from typing import Any

import pytest

from workerkit import Binding, Exchange, Queue


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"ttl": "60"}, "ttl is '60': write a number of seconds, 0 or more"),
        ({"ttl": -1}, "ttl is -1: write a number of seconds, 0 or more"),
        ({"ttl": True}, "ttl is True: write a number of seconds, 0 or more"),
        (
            {"ttl": float("nan")},
            "ttl is nan: write a number of seconds, 0 or more",
        ),
        ({"ttl": float("inf")}, "ttl is inf: write a number of seconds, 0 or more"),
        ({"expires": 0}, "expires is 0: write a number of seconds, 0.001 or more"),
        ({"expires": "1h"}, "expires is '1h': write a number of seconds, 0.001 or more"),
        ({"max_length": -1}, "max_length is -1: write a whole number, 0 or more"),
        ({"max_length": 1.5}, "max_length is 1.5: write a whole number, 0 or more"),
        ({"max_bytes": "1MB"}, "max_bytes is '1MB': write a whole number, 0 or more"),
        ({"max_priority": 256}, "max_priority is 256: write a whole number, 1 to 255"),
        (
            {"type": "quorum", "delivery_limit": -2},
            "delivery_limit is -2: write a whole number, -1 or more",
        ),
        (
            {"type": "quroum"},
            "type is 'quroum': did you mean 'quorum'? Write one of 'classic', 'quorum', 'stream'",
        ),
        ({"type": 3}, "type is 3: write one of 'classic', 'quorum', 'stream'"),
        (
            {"overflow": "drop"},
            (
                "overflow is 'drop': did you mean 'drop-head'? "
                "Write one of 'drop-head', 'reject-publish', 'reject-publish-dlx'"
            ),
        ),
        ({"retry_type": "stream"}, "retry_type is 'stream': write one of 'quorum', 'classic'"),
        ({"durable": "no"}, "durable is 'no': write True or False"),
        ({"exclusive": 1}, "exclusive is 1: write True or False"),
        ({"auto_delete": None}, "auto_delete is None: write True or False"),
        ({"single_active_consumer": 1}, "single_active_consumer is 1: write True or False"),
        ({"dead_letter_exchange": 3}, "dead_letter_exchange is 3: write its name as a string"),
        ({"dead_letter_routing_key": b"x"}, "dead_letter_routing_key is b'x': write a string"),
        (
            {"stream_offset": "begin"},
            (
                "stream_offset is 'begin': write one of 'first', 'last', 'next', or a whole "
                "number, 0 or more"
            ),
        ),
        (
            {"stream_offset": -1},
            (
                "stream_offset is -1: write one of 'first', 'last', 'next', or a whole number, "
                "0 or more"
            ),
        ),
        ({"arguments": ["x"]}, "arguments is ['x']: write a dict, such as {'x-max-length': 10}"),
        ({"bindings": ["x"]}, "bindings has 'x': write Binding('x')"),
        ({"bindings": [3]}, "bindings has 3: write Binding(exchange, routing_key)"),
        (
            {"bindings": "x"},
            "bindings is 'x': write a list, such as [Binding(exchange, routing_key)]",
        ),
        (
            {"bindings": Binding("x")},
            (
                "bindings is Binding(exchange='x', routing_key='', arguments={}): write a list, "
                "such as [Binding(exchange, routing_key)]"
            ),
        ),
    ],
)
def test_invalid_queues(arguments: dict[str, Any], text: str) -> None:
    """The error names the queue, the argument, its value, and a valid value."""
    with pytest.raises(ValueError, match=re.escape(text)) as raised:
        Queue("orders", **arguments)

    assert str(raised.value) == f"queue 'orders': {text}"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"type": "topics"},
            (
                "type is 'topics': did you mean 'topic'? "
                "Write one of 'direct', 'fanout', 'topic', 'headers'"
            ),
        ),
        ({"type": None}, "type is None: write one of 'direct', 'fanout', 'topic', 'headers'"),
        ({"durable": "yes"}, "durable is 'yes': write True or False"),
        ({"internal": 1}, "internal is 1: write True or False"),
        ({"alternate": 3}, "alternate is 3: write its name as a string"),
        ({"arguments": 3}, "arguments is 3: write a dict, such as {'x-max-length': 10}"),
    ],
)
def test_invalid_exchanges(arguments: dict[str, Any], text: str) -> None:
    """As for queues."""
    with pytest.raises(ValueError, match=re.escape(text)) as raised:
        Exchange("shop", **arguments)

    assert str(raised.value) == f"exchange 'shop': {text}"


def test_the_type_of_a_plugin() -> None:
    """Types that begin with `x-` belong to plugins of RabbitMQ."""
    plugins: Any = "x-delayed-message"

    assert Exchange("later", plugins).type == plugins


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"exchange": 3}, "binding: exchange is 3: write an Exchange, or its name"),
        ({"exchange": "x", "routing_key": 3}, "binding to x: routing_key is 3: write a string"),
        (
            {"exchange": "x", "arguments": "y"},
            "binding to x: arguments is 'y': write a dict, such as {'x-match': 'all'}",
        ),
    ],
)
def test_invalid_bindings(arguments: dict[str, Any], text: str) -> None:
    """As for queues."""
    with pytest.raises(ValueError, match=re.escape(text)) as raised:
        Binding(**arguments)

    assert str(raised.value) == text


@pytest.mark.parametrize("kind", [Queue, Exchange])
@pytest.mark.parametrize("name", [None, 3, b"orders", "", "x" * 256, "ü" * 128, "\udce4"])
def test_invalid_names(kind: Any, name: Any) -> None:
    """A name that is not a text is refused, like one that is too long."""
    with pytest.raises(ValueError, match=r"cannot be the name of a \w+: write 1 to 255 bytes"):
        kind(name)


@pytest.mark.parametrize("kind", [Queue, Exchange])
@pytest.mark.parametrize("name", ["a\nb", "a\r"])
def test_fr22_names_with_line_breaks_are_refused(kind: Any, name: str) -> None:
    """RabbitMQ would declare a queue with another name."""
    with pytest.raises(ValueError, match="write it without line breaks, which RabbitMQ drops"):
        kind(name)


@pytest.mark.parametrize("name", ["ü" * 127, "x" * 255, " ", "a*;=$[]~&`\t\0"])
def test_fr22_any_other_text_is_a_name(name: str) -> None:
    """The broker decides which characters it accepts."""
    assert (Queue(name).name, Exchange(name).name) == (name, name)
    assert Binding(name, name).routing_key == name


def test_fr22_routing_keys_have_at_most_255_bytes() -> None:
    """Their size is encoded as one byte, as that of names."""
    for wrong in ("x" * 256, "\udce4"):
        with pytest.raises(ValueError, match="write at most 255 bytes of text"):
            Binding("shop", wrong)
        with pytest.raises(ValueError, match="write at most 255 bytes of text"):
            Queue("q", dead_letter_exchange="", dead_letter_routing_key=wrong)


def test_valid_queues() -> None:
    """Declarations that RabbitMQ accepts are accepted."""
    queue = Queue(
        "orders",
        "quorum",
        ttl=0.5,
        expires=3600,
        max_length=0,
        max_bytes=10**9,
        overflow="reject-publish",
        delivery_limit=-1,
        dead_letter_exchange="",
        stream_offset=0,
        bindings=(Binding(Exchange("shop", "topic"), "order.*"),),
    )

    assert queue.declared_arguments["x-message-ttl"] == 500
