"""Decode and encode bodies by their properties: `content_encoding`, and the charset of the type.

The sender chooses the properties. So decoding has limits, and every error is `InvalidBody`.
"""

import gzip
import importlib
import zlib
from collections.abc import Callable
from encodings.aliases import aliases
from functools import lru_cache, partial
from typing import Any

from workerkit.amqp.properties import content_labels, readable
from workerkit.codec import label_of
from workerkit.errors import InvalidBody

MAX_DECODED = 128 * 1024 * 1024
"""The largest size of a decompressed body in bytes: RabbitMQ's own limit until 3.13.

One compressed byte may become a thousand, so the size of the message does not limit this."""

_MAX_ENCODINGS = 5
_MAX_PARTS = 10_000
_CHUNK = 16 * 1024
_GZIP = b"\x1f\x8b\x08"
_SIGNATURES = {"gzip": _GZIP, "x-gzip": _GZIP, "zstd": b"\x28\xb5\x2f\xfd"}
_UTF_8 = "utf_8"
# Names that mean "not encoded", used in messages and in e-mail.
_NO_ENCODING = frozenset({"", "identity", "none", "binary", "7bit", "8bit"})
# Content types of pickled objects, as Celery and others write them.
_PICKLED = frozenset(
    {"application/x-python-serialize", "application/x-pickle", "application/python-pickle"}
)
# Codecs of Python that are not charsets, or with which a sender could slow the process down.
_NO_CHARSETS = {"base64_codec", "bz2_codec", "hex_codec", "quopri_codec", "rot_13", "uu_codec"}
_NO_CHARSETS |= {"zlib_codec", "utf_7", "mbcs", "oem"}
_CHARSETS = {
    name: codec
    for alias, codec in aliases.items()
    for name in (alias, codec)
    if codec not in _NO_CHARSETS
} | {"utf_8_sig": _UTF_8, "ascii": _UTF_8, "us_ascii": _UTF_8, "utf8mb4": _UTF_8}


class Content:
    """The encoding of one body, according to its properties.

    Attributes:
        label: The content type in lower case and without parameters; empty if there is none.
        unknown: The beginning of an error that names the encoding or charset that is not known, or
            the content type of pickled objects; empty for most bodies. Such a body is not decoded:
            the property may be wrong.
    """

    def __init__(self, content_encoding: str | None, content_type: str | None) -> None:
        self._encodings: list[str] = []
        self.label = label_of(content_type or "")
        self._charset = charset = _charset_of(content_type or "")
        self.unknown = ""
        self._is_decodable = True
        if (content_type or "").partition(";")[0].strip().lower() in _PICKLED:
            self.unknown = "the body is pickled, which is not read because it could run any code"
        if charset and _codec(charset) is None:
            self.unknown = f"charset {charset!r} is not known"
        for each in (content_encoding or "").split(","):
            name = each.strip().lower()
            if name in _NO_ENCODING:
                continue
            if name in _DECODERS:
                self._encodings.append(name)
            elif _codec(name) is None:
                self.unknown = f"content_encoding {name!r} is not known"
                self._is_decodable = False
            else:
                # Celery and Spring write the charset here.
                self._charset = self._charset or name
        codec = _codec(self._charset)
        self._codec = None if codec == _UTF_8 else codec

    def decode(self, raw: bytes, *, text: bool, largest: int | None = None) -> bytes:
        """Decode a body; text also from its charset to UTF-8.

        Bytes that do not have the signature of their encoding are returned unchanged: the property
        is wrong.

        Args:
            largest: The largest size of the result in bytes; None for `MAX_DECODED`.

        Raises:
            InvalidBody: The body does not match its encoding, or the result is larger.
        """
        if not self._is_decodable or not (self._encodings or (text and self._codec)):
            return raw
        if len(self._encodings) > _MAX_ENCODINGS:
            raise InvalidBody(
                f"content_encoding has {len(self._encodings)} parts, more than {_MAX_ENCODINGS}"
            )
        original = raw
        try:
            for name in reversed(self._encodings):
                raw = _decode_one(name, raw, MAX_DECODED if largest is None else largest)
        except _WrongLabel as error:
            if text:
                raise InvalidBody(str(error)) from None
            return original
        return self._to_utf_8(raw, self._codec) if text and self._codec else raw

    def encode(self, raw: bytes, *, is_text: bool, is_own: bool) -> bytes:
        """Encode a body according to its properties.

        Args:
            is_text: The body is UTF-8 text that workerkit encoded.
            is_own: workerkit or a codec encoded the body. Other bytes are not changed if they are
                encoded already, or if their encoding is not known.

        Raises:
            ValueError: The body cannot be encoded according to its properties.
        """
        if is_own:
            if self.unknown and (is_text or not self._is_decodable):
                raise ValueError(f"{self.unknown}; publish bytes that are encoded already")
            raw = self._from_utf_8(raw, self._codec) if is_text and self._codec else raw
        elif self.unknown or (self._encodings and _is_encoded(self._encodings[-1], raw)):
            return raw
        for name in self._encodings:
            if (write := _ENCODERS.get(name)) is not None:
                raw = write(raw)
            elif is_own:
                raise ValueError(
                    f"content_encoding is {name!r}: workerkit writes gzip and deflate only;"
                    " publish bytes that are encoded already"
                )
        return raw

    def _to_utf_8(self, raw: bytes, codec: str) -> bytes:
        if codec == "utf_16" and raw[:1] == b"\0" and raw[1:2] != b"\0":
            codec = "utf_16_be"  # No byte order mark, but JSON begins with ASCII.
        elif codec == "utf_16" and raw[:2] not in (b"\xfe\xff", b"\xff\xfe"):
            codec = "utf_16_le"
        try:
            return raw.decode(codec).encode()
        except UnicodeError as error:
            at = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
            text = f"the body is not text in charset {self._charset!r}{at}"
            # Not chained: the error of a codec contains the body.
            raise InvalidBody(text) from None

    def _from_utf_8(self, raw: bytes, codec: str) -> bytes:
        try:
            return raw.decode().encode(codec)
        except UnicodeError as error:
            raise ValueError(f"the body cannot be written in charset {self._charset!r}") from error


def content(properties: bytes) -> Content:
    """Return the encoding of a body from its properties; the result is cached."""
    try:
        end = 3 + properties[2] if properties[0] & 0x80 else 2
        if properties[0] & 0x40:
            end += 1 + properties[end]
    except IndexError:
        end = len(properties)
    return _content(properties[:end])


@lru_cache(maxsize=256)
def _content(head: bytes) -> Content:
    content_type, content_encoding = content_labels(head)
    return Content(readable(content_encoding), readable(content_type))


def _charset_of(content_type: str) -> str:
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip("\"'").strip().lower()
    return ""


def _codec(charset: str) -> str | None:
    """Return Python's codec for a charset. `codecs.lookup` would cache every unknown name."""
    return _CHARSETS.get(charset.replace("-", "_").replace(" ", "_").replace(":", "_"))


def _decode_one(name: str, raw: bytes, largest: int) -> bytes:
    try:
        return _DECODERS[name](raw, largest)
    except _TooLarge:
        text = f"it has more than {largest} bytes when decoded"
    except _Malformed as error:
        text = str(error)
        if not _has_signature(name, raw):
            raise _WrongLabel(f"the body does not match its content_encoding {name!r}") from None
    except ImportError as error:
        text = f"needs the package {error.name}: pip install 'workerkit[compression]'"
        raise InvalidBody(f"content_encoding {name!r} {text}") from None
    raise InvalidBody(f"the body does not match its content_encoding {name!r}: {text}")


def _has_signature(name: str, raw: bytes) -> bool:
    """Return whether a body that cannot be decoded has the signature of the encoding."""
    if name in ("deflate", "zlib"):
        return len(raw) > 1 and raw[0] & 0x0F == 8 and int.from_bytes(raw[:2], "big") % 31 == 0
    return raw.startswith(_SIGNATURES.get(name, b""))


class _WrongLabel(InvalidBody):
    """The body does not have the signature of its encoding."""


class _TooLarge(Exception):
    """The decompressed body is larger than allowed."""


class _Malformed(Exception):
    """The body does not match its encoding."""


def _read_all(start: Callable[[], Any], error: type[Exception], raw: bytes, largest: int) -> bytes:
    """Decompress concatenated streams in small steps, as a few bytes may expand to gigabytes.

    Args:
        start: Creates the decompressor of one stream.
        error: The exception that the decompressor raises.
    """
    parts: list[bytes] = []
    left, position = largest, 0
    for _ in range(_MAX_PARTS):
        stream = start()
        while not stream.eof:
            data = raw[position : position + _CHUNK]
            position += len(data)
            if not data:
                raise _Malformed("it ends too early")
            try:
                # One byte above the limit shows that the body is too large.
                parts.append(stream.decompress(data, left + 1))
            except error:
                raise _Malformed("it is something else, or damaged") from None
            left -= len(parts[-1])
            if left < 0:
                raise _TooLarge
        position -= len(stream.unused_data)
        if position == len(raw) or (raw[position] == 0 and not raw[position:].strip(b"\0")):
            return b"".join(parts)
    raise _Malformed(f"it consists of more than {_MAX_PARTS} parts")


def _gunzip(raw: bytes, largest: int) -> bytes:
    return _read_all(partial(zlib.decompressobj, zlib.MAX_WBITS | 16), zlib.error, raw, largest)


def _inflate(raw: bytes, largest: int) -> bytes:
    """Decompress with the zlib header, which HTTP requires, or without, as many senders write."""
    malformed = None
    for bits in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        try:
            return _read_all(partial(zlib.decompressobj, bits), zlib.error, raw, largest)
        except _Malformed as error:
            malformed = malformed or error
    assert malformed is not None
    raise malformed


def _decompress_zstd(raw: bytes, largest: int) -> bytes:
    try:
        zstd = importlib.import_module("compression.zstd")
    except ImportError:
        try:
            zstd = importlib.import_module("backports.zstd")
        except ImportError as error:
            raise ImportError(name="backports.zstd") from error
    return _read_all(zstd.ZstdDecompressor, zstd.ZstdError, raw, largest)


class _Brotli:
    """One brotli stream, with the interface of the other decompressors."""

    unused_data = b""

    def __init__(self) -> None:
        try:
            self._stream = importlib.import_module("brotli").Decompressor()
            # Since 1.2 its output can be limited.
            _ = self._stream.can_accept_more_data
        except (ImportError, AttributeError) as error:
            raise ImportError(name="Brotli (1.2 or newer)") from error

    def decompress(self, data: bytes, most: int) -> bytes:
        return bytes(self._stream.process(data, output_buffer_limit=most))

    @property
    def eof(self) -> bool:
        return bool(self._stream.is_finished())


def _decompress_brotli(raw: bytes, largest: int) -> bytes:
    _Brotli()  # Raises ImportError if the package is missing.
    return _read_all(_Brotli, importlib.import_module("brotli").error, raw, largest)


def _is_encoded(name: str, raw: bytes) -> bool:
    """Return whether bytes are encoded already."""
    if name in ("gzip", "x-gzip"):
        return raw.startswith(_GZIP)
    if name not in _ENCODERS:
        return True
    try:
        _inflate(raw, MAX_DECODED)
    except (_Malformed, _TooLarge):
        return False
    return True


def _gzip(raw: bytes) -> bytes:
    return gzip.compress(raw, compresslevel=6, mtime=0)


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _inflate,
    "zlib": _inflate,
    "br": _decompress_brotli,
    "zstd": _decompress_zstd,
}
_ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": zlib.compress,
    "zlib": zlib.compress,
}
