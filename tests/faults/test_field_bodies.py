"""FR15, FR16. Bodies of other senders, and every property of a message."""

import asyncio
import gzip
import zlib
from datetime import UTC, datetime

import pytest
from pamqp.commands import Basic
from pydantic import BaseModel

from tests.application import Recorder, running
from tests.client import Client
from tests.compression import brotli, zstd
from tests.publishing import publishing
from tests.waiting import eventually
from workerkit import AMQPConsumer, AMQPMessage, PublishRefused

JSON = '{"name": "grün"}'.encode()
JSON_TYPE = "application/json"


class Named(BaseModel):
    name: str


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(body) + stream.flush()


def said(content_type: str | None, content_encoding: str | None = None) -> Basic.Properties:
    return Basic.Properties(content_type=content_type, content_encoding=content_encoding)


# What other senders write: body, content type, content encoding.
READABLE = {
    "a byte order mark": (b"\xef\xbb\xbf" + JSON, JSON_TYPE, None),
    "a byte order mark, no type": (b"\xef\xbb\xbf" + JSON, None, None),
    "gzip": (gzip.compress(JSON), JSON_TYPE, "gzip"),
    "gzip of two members": (gzip.compress(JSON[:5]) + gzip.compress(JSON[5:]), JSON_TYPE, "gzip"),
    "GZIP": (gzip.compress(JSON), None, "GZIP"),
    "gzip with a byte order mark": (gzip.compress(b"\xef\xbb\xbf" + JSON), JSON_TYPE, "gzip"),
    "deflate": (zlib.compress(JSON), JSON_TYPE, "deflate"),
    "deflate without zlib's head": (raw_deflate(JSON), JSON_TYPE, "deflate"),
    "br": (brotli.compress(JSON), JSON_TYPE, "br"),
    "zstd": (zstd.compress(JSON), JSON_TYPE, "zstd"),
    "two": (zlib.compress(gzip.compress(JSON)), JSON_TYPE, "gzip, deflate"),
    "UTF-16 by its type": (JSON.decode().encode("utf-16"), f"{JSON_TYPE}; charset=utf-16", None),
    "UTF-16, no mark": (JSON.decode().encode("utf-16-le"), f'{JSON_TYPE};charset="UTF-16"', None),
    "UTF-16BE": (JSON.decode().encode("utf-16-be"), f"{JSON_TYPE}; charset=utf-16", None),
    "latin-1": (JSON.decode().encode("latin-1"), f"{JSON_TYPE}; charset=ISO-8859-1", None),
    "gzip and latin-1": (
        gzip.compress(JSON.decode().encode("latin-1")),
        f"{JSON_TYPE}; charset=latin1",
        "gzip",
    ),
    "a charset as encoding": (JSON, JSON_TYPE, "utf-8"),
    "latin-1 as encoding": (JSON.decode().encode("latin-1"), JSON_TYPE, "latin-1"),
    "binary": (JSON, JSON_TYPE, "binary"),
    "a wrong label": (JSON, f"{JSON_TYPE}; charset=none", "json"),
}

UNREADABLE = {
    "an unknown encoding": (
        b"\x80\x01",
        None,
        "aes",
        "content_encoding 'aes' is not known",
    ),
    "an unknown charset": (
        b"\x80\x01",
        "text/plain; charset=klingon",
        None,
        "charset 'klingon' is not known",
    ),
    "no gzip": (JSON, JSON_TYPE, "gzip", "does not match its content_encoding 'gzip'"),
    "gzip cut short": (gzip.compress(JSON)[:-3], JSON_TYPE, "gzip", "'gzip': it ends too early"),
    "nothing": (b"", JSON_TYPE, "gzip", "does not match its content_encoding 'gzip'"),
    "more behind gzip": (gzip.compress(JSON) + b"more", JSON_TYPE, "gzip", "'gzip'"),
    "no deflate": (JSON, JSON_TYPE, "deflate", "'deflate'"),
    "no br": (JSON, JSON_TYPE, "br", "'br'"),
    "no zstd": (JSON, JSON_TYPE, "zstd", "'zstd'"),
    "a bomb": (
        gzip.compress(bytes(200 * 1024 * 1024), 1),
        JSON_TYPE,
        "gzip",
        "more than 134217728",
    ),
    "UTF-16 without a word": (JSON.decode().encode("utf-16"), JSON_TYPE, None, "Invalid JSON"),
    "not UTF-16": (b"{}1", f"{JSON_TYPE}; charset=utf-16", None, "in charset 'utf-16'"),
    "many encodings": (JSON, JSON_TYPE, ", ".join(["gzip"] * 6), "has 6 parts, more than 5"),
}


async def test_fr15_json_of_other_senders_is_decoded(url: str, client: Client) -> None:
    """Byte order mark, compression and charset are handled; `raw` is the original body."""
    await client.declare("names")
    got: list[tuple[Named, bytes]] = []

    class Reader(AMQPConsumer):
        queues = ["names"]
        concurrency = 1

        async def handle(self, body: Named, message: AMQPMessage) -> None:
            got.append((body, message.raw))

    recorder = Recorder()
    async with running(url, Reader, recorder=recorder):
        for raw, content_type, encoding in READABLE.values():
            await client.send("names", raw, properties=said(content_type, encoding))
        await eventually(lambda: len(recorder.settled) == len(READABLE))
    faults = [str(each.outcome.error) for each in recorder.settled if each.outcome.error]

    assert faults == []
    assert got == [(Named(name="grün"), raw) for raw, _, _ in READABLE.values()]


async def test_fr15_bytes_are_decompressed_and_keep_their_charset(url: str, client: Client) -> None:
    """`bytes` is the body without its compression, or unchanged if that is unknown."""
    await client.declare("names")
    got: list[bytes] = []

    class Reader(AMQPConsumer):
        queues = ["names"]
        concurrency = 1

        async def handle(self, body: bytes) -> None:
            got.append(body)

    latin = "grün".encode("latin-1")
    async with running(url, Reader):
        await client.send("names", gzip.compress(latin), properties=said("a/b; charset=x", "gzip"))
        await client.send(
            "names", gzip.compress(latin), properties=said("text/plain; charset=latin-1", "gzip")
        )
        await client.send("names", latin, properties=said(None, "aes"))
        await client.send("names", latin, properties=said(None, "gzip"))
        await client.send("names", b"\xef\xbb\xbfx", properties=said("text/plain"))
        await eventually(lambda: len(got) == 5)

    assert got == [latin] * 4 + [b"\xef\xbb\xbfx"]


async def test_fr15_text_is_decoded_from_its_charset(url: str, client: Client) -> None:
    """`str` has neither byte order mark nor compression, in each charset."""
    await client.declare("lines")
    got: list[str] = []

    class Reader(AMQPConsumer):
        queues = ["lines"]
        concurrency = 1

        async def handle(self, body: str) -> None:
            got.append(body)

    async with running(url, Reader):
        for charset in ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1", "cp1252"):
            properties = said(f"text/plain; charset={charset}")
            await client.send("lines", "grün".encode(charset), properties=properties)
        await client.send("lines", "grün".encode("utf-8-sig"), "grün".encode())
        await client.send("lines", gzip.compress("grün".encode()), properties=said(None, "gzip"))
        await eventually(lambda: len(got) == 10)

    assert got == ["grün"] * 10


async def test_fr15_the_dead_letter_names_why_a_body_was_not_decoded(
    url: str, client: Client
) -> None:
    """It is dead-lettered at once and unchanged; the next message is handled."""
    await client.declare("names")

    class Reader(AMQPConsumer):
        queues = ["names"]
        concurrency = 1

        async def handle(self, body: Named) -> None: ...

    recorder = Recorder()
    reasons, bodies = [], []
    async with running(url, Reader, recorder=recorder):
        for raw, content_type, encoding, _ in UNREADABLE.values():
            await client.send("names", raw, properties=said(content_type, encoding))
            letter = await client.take("names.dlq")
            reasons.append(letter.evidence["reason"])
            bodies.append((letter.body, letter.properties.content_encoding))
        await client.send("names", JSON)
        await eventually(lambda: recorder.actions[-1:] == ["ack"])

    for reason, (_, _, _, right) in zip(reasons, UNREADABLE.values(), strict=True):
        assert right in reason
    assert bodies == [(raw, encoding) for raw, _, encoding, _ in UNREADABLE.values()]


async def test_fr16_every_published_property_arrives(url: str, client: Client) -> None:
    """Every property except the cluster id, from `publish` to another client and to `handle`."""
    await client.declare("all", "plain")
    got: list[AMQPMessage] = []

    class Reader(AMQPConsumer):
        queues = ["all"]

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            got.append(message)

    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    async with running(url, Reader), publishing(url) as publisher:
        for queue in ("all", "plain"):
            await publisher.publish(
                b"x",
                queue,
                message_id="m",
                correlation_id="c",
                reply_to="answers",
                content_type="application/vnd.shop+x",
                content_encoding="utf-8",
                type="order.placed",
                app_id="shop",
                user_id="guest",
                timestamp=moment,
                priority=3,
                expiration=90.5,
            )
        await eventually(lambda: got)
        letter = await client.take("plain")
    [message] = got

    sent = letter.properties
    assert (sent.content_type, sent.content_encoding) == ("application/vnd.shop+x", "utf-8")
    assert (sent.reply_to, sent.message_type, sent.app_id) == ("answers", "order.placed", "shop")
    assert (sent.user_id, sent.expiration, sent.timestamp) == ("guest", "90500", moment)
    assert (message.message_id, message.correlation_id, message.priority) == ("m", "c", 3)
    assert (message.content_type, message.content_encoding) == ("application/vnd.shop+x", "utf-8")
    assert (message.reply_to, message.type, message.app_id) == ("answers", "order.placed", "shop")
    assert (message.user_id, message.expiration, message.timestamp) == ("guest", 90.5, moment)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, deflate", "GZip", "identity"])
async def test_fr16_a_compressed_publish_is_decoded(
    url: str, client: Client, encoding: str
) -> None:
    """Text and JSON are compressed, in their charset; bytes as well, but never twice."""
    await client.declare("all")
    got: list[object] = []

    class Reader(AMQPConsumer):
        queues = ["all"]
        concurrency = 1

        async def handle(self, body: str, message: AMQPMessage) -> None:
            got.append(body)
            if len(got) < 4:
                # As in a handler that forwards a message.
                await publisher.publish(
                    message.raw,
                    "all",
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                )

    async with publishing(url) as publisher, running(url, Reader):
        latin = "text/plain; charset=latin-1"
        await publisher.publish("grün", "all", content_type=latin, content_encoding=encoding)
        await eventually(lambda: len(got) == 4)
        await publisher.publish({"a": "ü"}, "all", content_encoding=encoding)
        await publisher.publish("ü".encode(), "all", content_encoding=encoding)
        await eventually(lambda: len(got) == 6)

    assert got == ["grün"] * 4 + ['{"a":"ü"}', "ü"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"content_type": 5}, "content_type is of type int: write a str"),
        ({"content_encoding": b"gzip"}, "content_encoding is of type bytes: write a str"),
        ({"type": int}, "type is of type type: write a str"),
        ({"reply_to": 5}, "reply_to is of type int: write a str"),
        ({"app_id": 5}, "app_id is of type int: write a str"),
        ({"user_id": 5}, "user_id is of type int: write a str"),
        ({"timestamp": "now"}, "timestamp is of type str: write a datetime, or seconds since 1970"),
        ({"timestamp": -1}, "timestamp is -1: it must not be before 1970"),
        ({"timestamp": 2.0**64}, "timestamp is 1.8"),
        ({"timestamp": float("nan")}, "timestamp is nan"),
        ({"type": "t" * 256}, "type is 256 bytes long, and AMQP allows 255"),
        ({"app_id": "ü" * 128}, "app_id is 256 bytes long, and AMQP allows 255"),
        ({"user_id": "u" * 256}, "user_id is 256 bytes long, and AMQP allows 255"),
        ({"reply_to": "r" * 256}, "reply_to is 256 bytes long, and AMQP allows 255"),
        ({"content_type": "c" * 256}, "content_type is 256 bytes long, and AMQP allows 255"),
        (
            {"content_encoding": "aes"},
            "content_encoding 'aes' is not known; publish bytes that are",
        ),
        ({"content_encoding": "br"}, "content_encoding is 'br': workerkit writes gzip and deflate"),
        ({"content_type": "a/b; charset=x"}, "charset 'x' is not known; publish bytes that are"),
        ({"content_type": "a/b; charset=latin-1", "body": "€"}, "the body cannot be written in ch"),
        (
            {"reply_to": "amq.rabbitmq.reply-to"},
            "reply_to is 'amq.rabbitmq.reply-to': RabbitMQ accept",
        ),
        ({"headers": {"CC": "orders"}}, "header 'CC' is of type str: write a list of str"),
        ({"headers": {"BCC": [1]}}, "header 'BCC' is of type list: write a list of str"),
        (
            {"headers": {"x-stream-filter-value": 5}},
            "header 'x-stream-filter-value' is of type int",
        ),
        (
            {"headers": {"a": float("nan")}},
            "header 'a' is a number out of range: nan is not finite",
        ),
        (
            {"headers": {"a": [{"b": float("-inf")}]}},
            "header 'b' is a number out of range: -inf is",
        ),
    ],
    ids=lambda given: ", ".join(given) if isinstance(given, dict) else "",
)
async def test_fr16_an_invalid_value_is_named_and_affects_no_other_publish(
    url: str, client: Client, wrong: dict[str, object], sentence: str
) -> None:
    """Before anything is sent; all other publishes of that moment arrive."""
    await client.declare("orders")
    async with publishing(url) as publisher:
        await publisher.publish("first", "orders")
        bad: dict[str, object] = {"body": "x", "routing_key": "orders", **wrong}
        results = await asyncio.gather(
            publisher.publish("x", "orders"),
            publisher.publish(**bad),  # type: ignore[arg-type]
            publisher.publish("x", "orders"),
            return_exceptions=True,
        )

    assert [type(results[0]), type(results[2])] == [str, str]
    assert isinstance(results[1], TypeError | ValueError)
    assert str(results[1]).startswith(sentence)


async def test_fr16_headers_that_are_nested_without_end_are_refused(url: str) -> None:
    """It raises `ValueError` and not `RecursionError`."""
    deep: dict[str, object] = {}
    for _ in range(5_000):
        deep = {"a": deep}
    async with publishing(url) as publisher:
        with pytest.raises(ValueError, match="headers are nested too deep"):
            await publisher.publish("x", "orders", headers=deep)


async def test_fr16_the_user_id_of_another_user_is_refused(url: str, client: Client) -> None:
    """`PublishRefused` has the broker's text; the next publish with the right user id arrives."""
    await client.declare("orders")
    async with publishing(url) as publisher:
        for wrong in ("mallory", ""):
            with pytest.raises(PublishRefused, match=f"user_id .*'{wrong}'.* 'guest'"):
                await publisher.publish("x", "orders", user_id=wrong)
        await publisher.publish("x", "orders", user_id="guest")

    assert (await client.take("orders")).properties.user_id == "guest"
