"""Protobuf messages, which need no schema: their class reads and writes itself."""

import re
from collections.abc import Callable
from typing import Any

from workerkit.codec.body_types import UnknownType, is_protobuf
from workerkit.codec.findings import LONGEST_FINDING, MOST_FINDINGS, Decode, explain, without_bom
from workerkit.errors import InvalidBody
from workerkit.safe_text import excerpt

PROTOBUF = "application/protobuf"

_DEEPEST = 100  # As protobuf limits its binary format.
_KEY = re.compile(r"\[.*?\]")


def protobuf_decoder(type_: Any) -> Decode:
    """Create the function that reads the binary format of a message; text is read as its JSON.

    Raises:
        UnknownType: It is the base class of all messages.
    """
    from google.protobuf.message import DecodeError

    name, from_json = _name(type_), protobuf_json_decoder(type_)

    def decode(raw: Any) -> Any:
        if isinstance(raw, str):
            return from_json(raw)
        try:
            found = type_.FromString(raw)
        except DecodeError:
            raise InvalidBody(f"the body is not a protobuf message of type {name}") from None
        return _complete(found)

    return decode


def protobuf_json_decoder(type_: Any) -> Decode:
    """Create the function that reads the JSON format of a message; it ignores unknown fields.

    Raises:
        UnknownType: It is the base class of all messages.
    """
    from google.protobuf import json_format

    name = _name(type_)
    parse: Callable[..., Any] = json_format.Parse

    def decode(raw: Any) -> Any:
        plain = without_bom(raw)
        try:
            found = parse(
                raw if plain is None else plain,
                type_(),
                ignore_unknown_fields=True,
                max_recursion_depth=_DEEPEST,
            )
        except Exception:
            # Not chained, and without its text: it contains values and names of the sender.
            raise InvalidBody(f"the body is not the JSON of a protobuf message {name}") from None
        return _complete(found)

    return decode


def encode_protobuf(message: Any) -> bytes:
    """Write the binary format of a message.

    Raises:
        TypeError: It is not a protobuf message.
        ValueError: A required field is missing.
    """
    if not is_protobuf(type(message)):
        kind = type(message).__qualname__
        raise TypeError(f"a {kind} cannot be written as protobuf: it is not a protobuf message")
    _check(message)
    return bytes(message.SerializeToString())


def encode_protobuf_json(message: Any) -> bytes:
    """Write the JSON format of a message.

    Raises:
        TypeError: It cannot be written, such as an `Any` of an unknown type.
        ValueError: A required field is missing.
    """
    from google.protobuf import json_format

    _check(message)
    write: Callable[..., str] = json_format.MessageToJson
    return write(message, indent=None, ensure_ascii=False).encode()


def _name(type_: Any) -> str:
    if type_.DESCRIPTOR is None:
        raise UnknownType("a protobuf message of no type: write the class of a message")
    return str(type_.DESCRIPTOR.full_name)


def _missing(message: Any) -> list[str]:
    """Return the required fields that have no value; only proto2 has such fields."""
    if message.IsInitialized():
        return []
    return [_KEY.sub("[key]", each) for each in message.FindInitializationErrors()]


def _check(message: Any) -> None:
    if missing := _missing(message):
        raise ValueError(f"{_name(type(message))} has no value for {', '.join(missing)}")


def _complete(message: Any) -> Any:
    if missing := _missing(message):
        findings = [
            (excerpt(each, LONGEST_FINDING), "Field required") for each in missing[:MOST_FINDINGS]
        ]
        raise InvalidBody(explain(findings, len(missing)), findings, len(missing) - len(findings))
    return message
