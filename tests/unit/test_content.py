"""FR15. Bodies are decoded by their properties, within limits; otherwise they are `InvalidBody`."""

import codecs
import gzip
import sys
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.compression import brotli, zstd
from workerkit import AMQPMessage, InvalidBody
from workerkit.amqp.acks import Acks
from workerkit.amqp.content import Content
from workerkit.amqp.properties import Properties, content_labels, decode, encode
from workerkit.codec import decoder
from workerkit.signature import Signature

MEBIBYTE = 1024 * 1024


class Named(BaseModel):
    name: str


class Frame(msgspec.Struct):
    name: str


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(body) + stream.flush()


COMPRESS = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "raw deflate": raw_deflate,
    "br": brotli.compress,
    "zstd": zstd.compress,
}


def decoded(encoding: str, raw: bytes, largest: int = MEBIBYTE) -> bytes:
    name = encoding.rpartition(" ")[2]
    return Content(name, None).decode(raw, text=True, largest=largest)


@pytest.mark.parametrize("encoding", COMPRESS)
@pytest.mark.parametrize("size", [0, 1, 16_384, MEBIBYTE - 1, MEBIBYTE])
def test_fr15_compressed_bodies_are_decompressed(encoding: str, size: int) -> None:
    """Up to the limit, exact to the byte."""
    body = b"x" * size

    assert decoded(encoding, COMPRESS[encoding](body)) == body


@pytest.mark.parametrize("encoding", COMPRESS)
def test_fr15_a_decompression_bomb_is_invalid(encoding: str) -> None:
    """One byte above the limit, or a hundred times the limit, is `InvalidBody` with the reason."""
    for size in (MEBIBYTE + 1, 100 * MEBIBYTE):
        with pytest.raises(InvalidBody, match="more than 1048576 bytes when decoded"):
            decoded(encoding, COMPRESS[encoding](bytes(size)))


def test_fr15_a_nested_decompression_bomb_is_invalid() -> None:
    """The limit applies to each encoding."""
    twice = gzip.compress(gzip.compress(bytes(100 * MEBIBYTE)))

    with pytest.raises(InvalidBody, match="'gzip': it has more than"):
        Content("gzip, gzip", None).decode(twice, text=False, largest=MEBIBYTE)


def test_fr15_the_number_of_parts_is_limited() -> None:
    """A body of empty gzip parts would cost a sender little."""
    with pytest.raises(InvalidBody, match="it consists of more than 10000 parts"):
        decoded("gzip", gzip.compress(b"") * 50_000)


@pytest.mark.parametrize("encoding", COMPRESS)
def test_fr15_a_damaged_body_is_invalid(encoding: str) -> None:
    """Truncated at any byte, followed by other bytes, or not compressed at all."""
    whole = COMPRESS[encoding](b"grey, green, grey, green")
    for wrong in [*(whole[:end] for end in range(len(whole))), whole + b"more", b"{}", b"\0" * 9]:
        with pytest.raises(
            InvalidBody, match="the body does not match its content_encoding"
        ) as info:
            decoded(encoding, wrong)
        assert info.type is InvalidBody  # Its name stands in the evidence.


def test_fr15_bytes_with_a_wrong_encoding_do_not_change() -> None:
    """Unless they have the signature of the encoding: then they are invalid."""
    for encoding in ("gzip", "deflate", "zstd", "identity, gzip"):
        for raw in (b"", b"a", b"{}", b"grey, green"):
            assert Content(encoding, None).decode(raw, text=False) == raw
    for encoding in ("gzip", "deflate", "zstd", "br"):
        whole = COMPRESS[encoding](b"grey, green, grey, green")
        with pytest.raises(InvalidBody, match=f"'{encoding}': it ends too early"):
            Content(encoding, None).decode(whole[:-1], text=False)


def test_fr15_zero_padding_after_gzip_is_allowed() -> None:
    """Some programs that write tapes or blocks add it."""
    assert decoded("gzip", gzip.compress(b"x") + bytes(100)) == b"x"


@pytest.mark.parametrize(
    ("module", "encoding", "package"),
    [
        ("brotli", "br", r"Brotli \(1.2 or newer\)"),
        ("backports.zstd", "zstd", "backports.zstd"),
    ],
)
@pytest.mark.parametrize("text", [True, False])
def test_fr15_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, encoding: str, package: str, text: bool
) -> None:
    """The error names the package to install."""
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)

    with pytest.raises(InvalidBody, match=f"'{encoding}' needs the package {package}: pip install"):
        Content(encoding, None).decode(b"x", text=text)


PICKLED = "the body is pickled, which is not read because it could run any code"


@pytest.mark.parametrize(
    ("content_encoding", "content_type", "unknown"),
    [
        ("aes", None, "content_encoding 'aes' is not known"),
        ("gzip, aes", None, "content_encoding 'aes' is not known"),
        (None, "text/plain; charset=x", "charset 'x' is not known"),
        (None, "text/plain; charset=bz2", "charset 'bz2' is not known"),
        (None, "text/plain; charset=idna", "charset 'idna' is not known"),
        (None, "text/plain; charset=unicode_escape", "charset 'unicode_escape' is not known"),
        (None, "text/plain; charset=../x", "charset '../x' is not known"),
        (None, "application/x-python-serialize", PICKLED),
        ("binary", "Application/x-pickle; v=4", PICKLED),
        ("UTF-8", "text/plain; Charset='Latin 1'", ""),
        ("8bit", 'text/plain; q=1; CHARSET = "utf-8"', ""),
        ("", "", ""),
        (None, ";;=;charset", ""),
    ],
)
def test_fr15_with_an_unknown_encoding_the_body_does_not_change(
    content_encoding: str | None, content_type: str | None, unknown: str
) -> None:
    """Properties may be wrong. The error names the encoding if the body cannot be decoded."""
    content = Content(content_encoding, content_type)

    assert content.unknown == unknown
    assert content.decode(b"x", text=True) == b"x"


def message(raw: bytes, properties: bytes) -> AMQPMessage[Any]:
    acks = Acks(1, lambda data: True, lambda flush: None)
    return AMQPMessage(raw, queue="q", tag=1, envelope=b"\0\0\0", properties=properties, acks=acks)


def read_as(type_: Any) -> Any:
    def handle(self: object, body: Any) -> None: ...

    handle.__annotations__["body"] = type_
    return Signature(handle, AMQPMessage, lambda *_: pytest.fail("asked")).read


def unexpected(read: Any, delivery: AMQPMessage[Any]) -> Exception | None:
    """Return the error of decoding that is not `InvalidBody` with a text, if there is one."""
    try:
        read(delivery)
    except InvalidBody as error:
        return None if str(error) else error
    except Exception as error:
        return error
    return None


READERS = [read_as(type_) for type_ in (bytes, str, Named, dict, AMQPMessage[str])]
NAMES = ["gzip", "deflate", "br", "zstd", "utf-8", "latin-1", "aes", "", "identity", "utf-16"]
TYPES = [f"a/b; charset={name}" for name in ("utf-16", "utf-32", "latin-1", "ascii", "hex", "x")]
labelling = st.none() | st.text(max_size=20) | st.lists(st.sampled_from(NAMES)).map(", ".join)
bodies = (
    st.binary(max_size=100)
    | st.binary(max_size=100).map(gzip.compress)
    | st.binary(max_size=100).map(zlib.compress)
    | st.text(max_size=20).map(lambda text: text.encode("utf-16", "replace"))
)


@given(bodies, labelling, st.none() | st.text(max_size=20) | st.sampled_from(TYPES))
@example(b"\xef\xbb\xbf" * 100, None, None)
@example(b"\xff\xfe", None, None)
@example(b"\xff\xfe\0\0", "gzip", "a/b; charset=utf-16")
def test_fr15_any_body_with_any_encoding_is_decoded_or_invalid(
    raw: bytes, content_encoding: str | None, content_type: str | None
) -> None:
    """No error except `InvalidBody`, for every type that `handle` may declare."""
    try:
        properties = encode(
            Properties(content_encoding=content_encoding, content_type=content_type)
        )
    except ValueError:  # too long, or no text
        properties = b"\0\0"
    for read in READERS:
        assert not unexpected(read, message(raw, properties))


@given(bodies, st.binary(max_size=60))
@example(b"{}", b"")
@example(b"{}", b"\x40")
@example(b"{}", b"\xc0\x00\x03;;;")
def test_fr15_any_body_with_any_properties_is_decoded_or_invalid(raw: bytes, junk: bytes) -> None:
    """Incomplete or wrong property flags and values count as absent."""
    for read in READERS:
        assert not unexpected(read, message(raw, junk))


@given(
    st.builds(
        Properties,
        content_type=st.none() | st.text(max_size=9),
        content_encoding=st.none() | st.text(max_size=9),
        message_id=st.none() | st.just("id"),
    ).filter(lambda each: "\ud800" not in f"{each}")
)
def test_fr15_the_encoding_is_that_of_the_properties(properties: Properties) -> None:
    """The two properties are decoded without the others."""
    raw = encode(properties)
    whole = decode(raw)

    assert content_labels(raw) == (whole.content_type, whole.content_encoding)


def test_fr15_one_byte_order_mark_is_skipped() -> None:
    """Before text and JSON, but not before bytes, and only one."""
    text = '{"name": "grün"}'
    marked = text.encode("utf-8-sig")

    assert decoder(str)(marked) == text
    assert decoder(Named)(marked) == Named(name="grün")
    assert decoder(dict)(marked) == {"name": "grün"}
    assert decoder(Frame)(marked) == Frame(name="grün")
    assert decoder(bytes)(marked) == marked
    for type_ in (dict, Frame):
        with pytest.raises(InvalidBody):
            decoder(type_)(codecs.BOM_UTF8 + marked)


def test_fr16_an_expiration_is_seconds_or_absent() -> None:
    """An expiration that is not a number of milliseconds counts as absent."""
    for raw, seconds in [
        ("90500", 90.5),
        ("0", 0.0),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("9" * 255, None),
        ("x", None),
    ]:
        assert message(b"", encode(Properties(expiration=raw))).expiration == seconds
    assert message(b"", b"\0\0").expiration is None
