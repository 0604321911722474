"""Requests: what is sent, how replies are read, and the fake publisher."""

import json
from time import process_time, time
from typing import Any, assert_type

import pytest
from pydantic import BaseModel

from workerkit import (
    Exchange,
    InvalidReply,
    Publisher,
    RequestError,
    RequestFailed,
    RequestTimeout,
    WorkerkitError,
)
from workerkit.amqp import table
from workerkit.amqp.outgoing import is_reply_address
from workerkit.amqp.properties import Properties, encode
from workerkit.amqp.requests import Reply, encode_request, reply_reader
from workerkit.codec import UnknownType
from workerkit.testing import FakePublisher


class Order(BaseModel):
    id: int


def reply(body: bytes, content_type: str | None = None, encoding: str | None = None) -> Reply:
    """A reply as it arrives."""
    properties = Properties(content_type=content_type, content_encoding=encoding)
    return Reply(encode(properties), body, len(body))


def test_a_request_has_an_address_a_deadline_and_an_own_id() -> None:
    """The deadline is that of the call, in a header for consumers and as an expiration."""
    before = time() * 1000
    raw, sent, to = encode_request(
        Order(id=1), "prices", 2.5, {"headers": {"a": 1, "x-workerkit-deadline": 5}, "vhost": "v"}
    )
    headers = table.decode(sent.table or b"")

    assert raw == b'{"id":1}'
    assert sent.reply_to == "amq.rabbitmq.reply-to"
    assert sent.correlation_id == sent.message_id
    assert sent.expiration == "2500"
    assert headers["a"] == 1
    assert before + 2500 - 1 <= headers["x-workerkit-deadline"] <= time() * 1000 + 2500
    assert (to.routing_key, to.vhost, to.mandatory) == ("prices", "v", True)


def test_the_message_id_and_a_shorter_expiration_are_kept() -> None:
    """The correlation id is always a new one."""
    ids = set()
    for expiration, expected in [(1.0, "1000"), (100.0, "2500"), (0.0, "0"), (None, "2500")]:
        more = {"message_id": "m", "expiration": expiration, "exchange": Exchange("shop")}
        _, sent, to = encode_request(b"", "prices", 2.5, more)
        ids.add(sent.correlation_id)
        assert (sent.message_id, sent.expiration) == ("m", expected)
        assert str(to.exchange) == "shop"

    assert len(ids) == 4
    assert encode_request(b"", "prices", 0.0001, {})[1].expiration == "1"


@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        ({"correlation_id": "c"}, TypeError, "a request has no correlation_id: it is a new one"),
        ({"reply_to": "q"}, TypeError, "a request has no reply_to: replies are sent to the chan"),
        ({"headrs": {}}, TypeError, "unexpected keyword argument 'headrs'"),
        ({"headers": 5}, TypeError, "headers is of type int: write a dict"),
        ({"timeout": 0}, ValueError, "timeout is 0: it must be above 0"),
        ({"timeout": float("nan")}, ValueError, "timeout is nan: it must be above 0"),
        ({"timeout": 1e10}, ValueError, "to 4294967 s"),
        ({"timeout": None}, TypeError, "timeout is None: write seconds"),
        ({"timeout": "5"}, TypeError, "timeout is of type str: write seconds"),
        ({"expiration": float("nan")}, ValueError, "expiration is nan: it must be 0"),
        ({"returns": object()}, TypeError, ""),
    ],
)
async def test_invalid_arguments(more: dict[str, Any], error: type[Exception], text: str) -> None:
    """An error names the argument, before anything is sent; the fake raises the same."""
    with pytest.raises(error) as raised:
        await FakePublisher().request(b"", "prices", **more)

    assert text in str(raised.value)


def test_replies_are_read_like_bodies() -> None:
    """By the type, and by the properties of the message."""
    assert reply_reader(Order)(reply(b'{"id": 1}'), "") == Order(id=1)
    assert reply_reader(bytes)(reply(b"\xff"), "") == b"\xff"
    assert reply_reader(str)(reply("é".encode("latin-1"), "text/plain; charset=latin-1"), "") == "é"
    assert reply_reader(Any)(reply(b"[1]"), "") == [1]
    assert reply_reader(Order | None)(reply(b"null"), "") is None
    with pytest.raises(UnknownType, match=r"^returns is 'Order', which is no type of a reply: "):
        reply_reader("Order")
    with pytest.raises(UnknownType, match=r"^returns is <object .*>, which is no type of a reply"):
        reply_reader(object())


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        (b'{"id": "secret"}', "application/json", "id: Input should be a valid integer"),
        (b"secret", None, "the body: Invalid JSON"),
        (b"secret", "application/problem+json", "the body: Invalid JSON"),
        (b"[1]", "application/problem+json; charset=utf-8", "the body: Input should be"),
    ],
)
def test_an_invalid_reply(body: bytes, content_type: str | None, text: str) -> None:
    """The error names the request and the place, and not what was sent."""
    with pytest.raises(InvalidReply) as raised:
        reply_reader(Order)(reply(body, content_type), "request 'r'")

    assert str(raised.value).startswith("request 'r': the reply is invalid: ")
    assert text in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_reply_that_is_too_large() -> None:
    """Its body was discarded when it arrived."""
    with pytest.raises(InvalidReply, match="the reply has 99 bytes, which is too large"):
        reply_reader(bytes)(Reply(b"\0\0", None, 99), "r")


def test_a_problem() -> None:
    """All of its members can be read."""
    problem = {"title": "Gone", "status": 410, "detail": "sold", "type": "t", "stock": 0}
    with pytest.raises(RequestFailed) as raised:
        reply_reader(Order)(reply(json.dumps(problem).encode(), "Application/Problem+JSON"), "r")

    failed = raised.value
    assert failed.problem == problem
    assert (failed.status, failed.title, failed.detail) == (410, "Gone", "sold")
    assert str(failed) == "r: 410 Gone: sold"


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        ({}, "r: a problem"),
        ({"status": True, "title": 5, "detail": []}, "r: a problem"),
        ({"status": 10**30, "title": "T"}, "r: T"),
        ({"status": -1, "title": "T"}, "r: T"),
        ({"title": "a\nERROR forged \x1b[2J"}, "r: a\\nERROR forged \\x1b[2J"),
        ({"title": "no amqp://u:secret@h/"}, "r: no amqp://u:***@h/"),
    ],
)
def test_a_hostile_problem(problem: dict[str, Any], text: str) -> None:
    """It forges no log line, and its members have the types that are promised."""
    with pytest.raises(RequestFailed) as raised:
        reply_reader(Order)(reply(json.dumps(problem).encode(), "application/problem+json"), "r")

    assert str(raised.value) == text
    assert raised.value.status == 0
    assert isinstance(raised.value.title + raised.value.detail, str)


def test_a_long_problem_is_shortened() -> None:
    """In the text of the error, not in its members."""
    problem = json.dumps({"detail": "x" * 1_000_000}).encode()
    with pytest.raises(RequestFailed) as raised:
        reply_reader(Order)(reply(problem, "application/problem+json"), "r")

    assert len(str(raised.value)) < 2_000
    assert len(raised.value.detail) == 1_000_000


def test_a_problem_of_megabytes_costs_no_time() -> None:
    """Only what is shown of it is escaped: otherwise 60 MB occupy the event loop for a minute."""
    body = json.dumps({"detail": "\n" * 20_000_000}).encode()
    began = process_time()
    with pytest.raises(RequestFailed) as raised:
        reply_reader(str)(reply(body, "application/problem+json"), "request '1'")

    assert process_time() - began < 5.0
    assert str(raised.value).startswith("request '1': a problem: \\n\\n")
    assert len(str(raised.value)) < 1_200
    assert len(raised.value.detail) == 20_000_000


def test_the_tree_of_errors() -> None:
    """One class catches all of them; a timeout is a `TimeoutError` as well."""
    assert issubclass(RequestError, WorkerkitError)
    assert issubclass(RequestTimeout, TimeoutError)


# Real addresses: RabbitMQ 3.10, 4.0 and 4.3.
REAL = [
    "g1h2AA5yZXBseUA4NTc3NzQyOAAAArUAAAAAaw2O5w==.PS2OPTdc7P+DmbuHPvJVoQ==",
    "g1h2AA5yZXBseUAxOTk5MTYwNAAAAmsAAAAAaw2O7g==.mx6idQVrvmJcbEL7VzH0Mw==",
    "g1h2AA5yZXBseUAxMzYyNzYzNgAAAvcAAAAAaw2O8g==.Xudo9ROa4zMxuKGxvR35HQ==",
]


@pytest.mark.parametrize("rest", [*REAL, "", "x", ".", "..", "one-token", "a.b.c"])
def test_addresses_that_every_broker_can_read(rest: str) -> None:
    """Those of RabbitMQ, and all that it does not try to decode."""
    assert is_reply_address(f"amq.rabbitmq.reply-to.{rest}")


@pytest.mark.parametrize("rest", ["x.y", "g1h3.abc", "g2EF.x", "é.x", REAL[0][4:], "A" * 40 + ".x"])
def test_addresses_that_would_close_a_connection(rest: str) -> None:
    """Two parts, of which the first one is not the id of a process."""
    assert not is_reply_address(f"amq.rabbitmq.reply-to.{rest}")


async def test_scripted_replies() -> None:
    """By routing key: a value, an exception, or a function of the body; all requests are kept."""
    publisher = FakePublisher()
    publisher.replies["prices"] = Order(id=5)
    publisher.replies["stock"] = lambda body: {"id": body.id + 1}
    publisher.replies["slow"] = RequestTimeout("no reply")

    assert await publisher.request(b"a", "prices", returns=Order, priority=3) == Order(id=5)
    assert await publisher.request(Order(id=1), "stock", returns=Order) == Order(id=2)
    assert publisher.request_threadsafe(Order(id=1), "stock", returns=Order) == Order(id=2)
    with pytest.raises(RequestTimeout, match="no reply"):
        await publisher.request(b"c", "slow")
    with pytest.raises(InvalidReply):
        await publisher.request(b"d", "prices", returns=list[int])
    with pytest.raises(LookupError, match=r"set FakePublisher.replies\['other'\]"):
        await publisher.request(b"e", "other")

    keys = [each.routing_key for each in publisher.published]
    assert keys == ["prices", "stock", "stock", "slow", "prices"]
    assert publisher.published[0].body == b"a"
    assert publisher.published[0].options == {"priority": 3}


async def test_the_types_of_replies() -> None:
    """A type checker knows them: bytes by default, else what the caller asks for."""
    fake = FakePublisher()
    fake.replies["prices"] = b'{"id": 1}'
    publisher: Publisher = fake

    assert_type(await publisher.request(b"", "prices"), bytes)
    assert_type(await publisher.request(b"", "prices", returns=Order, timeout=1.0), Order)
    assert_type(await publisher.request(b"", "prices", returns=dict[str, int]), dict[str, int])
    assert_type(await publisher.request(b"", "prices", returns=Order | None), Any)
    assert_type(publisher.request_threadsafe(b"", "prices", returns=Order), Order)


async def test_the_error_of_the_fake() -> None:
    """It is raised by requests as by publishes."""
    publisher = FakePublisher()
    publisher.error = ConnectionError("away")

    with pytest.raises(ConnectionError):
        await publisher.request(b"", "prices")
