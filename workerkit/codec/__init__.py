"""Decode bodies to the type that `handle` declares, and encode values."""

from typing import Any

from workerkit.codec.body_types import (
    UnknownType,
    adapter,
    holds_struct,
    is_bytes,
    is_protobuf,
    is_struct,
    is_verbatim,
)
from workerkit.codec.cloud_event import (
    STRUCTURED,
    STRUCTURED_IN_ANY,
    CloudEvent,
    CloudEventReader,
    cloud_event_headers,
    event_attribute,
    is_cloud_event,
    write_event,
)
from workerkit.codec.codecs import (
    BUILT_IN,
    BodyReader,
    Codec,
    Codecs,
    Encoded,
    codec_faults,
    label_of,
)
from workerkit.codec.decoding import by_annotation
from workerkit.codec.encoding import JSON, encode
from workerkit.codec.findings import MOST_FINDINGS, Decode, worded

__all__ = [
    "BUILT_IN",
    "JSON",
    "MOST_FINDINGS",
    "STRUCTURED",
    "STRUCTURED_IN_ANY",
    "BodyReader",
    "CloudEvent",
    "CloudEventReader",
    "Codec",
    "Codecs",
    "Decode",
    "Encoded",
    "UnknownType",
    "adapter",
    "cloud_event_headers",
    "codec_faults",
    "decoder",
    "encode",
    "event_attribute",
    "holds_struct",
    "is_bytes",
    "is_cloud_event",
    "is_protobuf",
    "is_struct",
    "is_verbatim",
    "label_of",
    "worded",
    "write_event",
]


def decoder(type_: Any) -> Decode:
    """Create the function that reads a body as *type_*, where nothing states its content type.

    `bytes` is the body as it is, `str` its UTF-8 text, also under another name, with constraints or
    with None beside it; the class of a protobuf message is its binary format, or its JSON where the
    body is text; a `CloudEvent` is JSON in structured mode. Everything else is read as JSON: JSON
    values (`dict`, `list`, `int`, `Any`...), a pydantic model, a dataclass, a `TypedDict`, a
    `msgspec.Struct`. A type with a `Struct` in it, such as `dict[str, Struct]`, is msgspec's as a
    whole. Before text and JSON a byte order mark is skipped. The function raises `InvalidBody`,
    whose text never contains the body.

    Raises:
        UnknownType: *type_* is none of these.
    """
    if is_cloud_event(type_):
        return CloudEventReader(type_, BUILT_IN).structured
    return by_annotation(type_)
