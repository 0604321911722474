"""Decode bodies by the type alone, as where nothing states their content type."""

from typing import Any

from workerkit.codec.body_types import adapter, holds_struct, is_protobuf, is_verbatim
from workerkit.codec.findings import BOM, Decode, validating
from workerkit.codec.protobuf import protobuf_decoder
from workerkit.codec.structs import struct_decoder
from workerkit.config.annotations import members
from workerkit.errors import InvalidBody


def by_annotation(type_: Any) -> Decode:
    """Create the function that reads a body as *type_*, whatever its content type.

    Raises:
        UnknownType: No body can be read as *type_*.
    """
    if type_ is bytes:
        return identity
    if type_ is str:
        return text
    if is_verbatim(type_):
        return _verbatim_decoder(type_)
    if holds_struct(type_):
        return struct_decoder(type_)
    if is_protobuf(type_):
        return protobuf_decoder(type_)
    return _json_decoder(type_)


def identity(raw: bytes) -> bytes:
    """Return a body as it is."""
    return raw


def text(raw: bytes) -> str:
    """Return the UTF-8 text of a body.

    Raises:
        InvalidBody: It is not UTF-8.
    """
    try:
        found = raw.decode()
        return found[1:] if found[:1] == BOM else found
    except UnicodeDecodeError as error:
        raise InvalidBody(
            f"the body is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error


def _json_decoder(type_: Any) -> Decode:
    validator = adapter(type_)
    return validating(validator, validator.validator.validate_json, json=True)


def _verbatim_decoder(type_: Any) -> Decode:
    validator = adapter(type_)
    read: Decode = text if str in members(type_) else identity
    validate = validating(validator, validator.validator.validate_python)
    return lambda raw: validate(read(raw))
