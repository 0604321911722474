"""Encode values of any type."""

import dataclasses
import functools
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from pydantic import BaseModel, PydanticSchemaGenerationError, TypeAdapter
from pydantic_core import (
    PydanticSerializationError,
    SchemaSerializer,
    core_schema,
    to_json,
)

from workerkit.codec.body_types import is_protobuf, is_struct
from workerkit.codec.protobuf import PROTOBUF, encode_protobuf

JSON = "application/json"
BYTES = bytes | bytearray | memoryview

_ANYTHING = SchemaSerializer(core_schema.any_schema())
_NATIVE = (bytes, bytearray, memoryview, datetime, date, time, timedelta, Decimal, UUID)


def encode(body: object) -> tuple[bytes, str]:
    """Turn a value into bytes and their content type.

    `bytes` stay unchanged, `str` becomes UTF-8 text, a protobuf message its binary format; models,
    dataclasses, `msgspec.Struct`s and JSON values become JSON.

    Raises:
        TypeError: The value cannot be written as JSON.
        ValueError: A protobuf message has no value for a required field.
    """
    if isinstance(body, BaseModel):
        return body.__pydantic_serializer__.to_json(body, by_alias=True), JSON
    if isinstance(body, BYTES):
        return bytes(body), "application/octet-stream"
    if isinstance(body, str):
        return body.encode(), "text/plain; charset=utf-8"
    if is_struct(type(body)):
        import msgspec

        return msgspec.json.encode(body), JSON
    if is_protobuf(type(body)):
        return encode_protobuf(body), PROTOBUF
    try:
        kind: Any = type(body)
        if dataclasses.is_dataclass(body) and (known := _adapter(kind)) is not None:
            return known.dump_json(body, by_alias=True, fallback=_plain), JSON
        return to_json(body, inf_nan_mode="null", fallback=_plain), JSON
    except PydanticSerializationError as error:
        raise TypeError(
            f"a value of type {type(body).__qualname__} cannot be written as JSON: {error}"
        ) from error


def python_values(body: object) -> object:
    """Return the values that *body* is made of: dicts, lists, texts, numbers, bytes, times...

    Models, dataclasses and `msgspec.Struct`s become dicts with the names of their aliases.

    Raises:
        TypeError: Something is in it that has no values.
    """
    if isinstance(body, BaseModel):
        return body.__pydantic_serializer__.to_python(body, by_alias=True)
    if is_struct(type(body)):
        return _values_of_struct(body)
    kind: Any = type(body)
    if dataclasses.is_dataclass(body) and (known := _adapter(kind)) is not None:
        return known.dump_python(body, by_alias=True)
    return _ANYTHING.to_python(body, by_alias=True, fallback=_values_of_struct)


def _values_of_struct(value: object) -> object:
    if not is_struct(type(value)):
        return value
    import msgspec

    return msgspec.to_builtins(value, builtin_types=_NATIVE, str_keys=False)


def _plain(value: object) -> object:
    """Convert a `msgspec.Struct` among other values to something that pydantic can write."""
    if not is_struct(type(value)):
        raise TypeError(f"{type(value).__qualname__} is no type of JSON values")
    import msgspec

    return msgspec.to_builtins(value)


@functools.cache
def _adapter(type_: Any) -> TypeAdapter[Any] | None:
    """Return what writes a dataclass by its fields; None if pydantic does not support a type."""
    try:
        return TypeAdapter(type_)
    except PydanticSchemaGenerationError:
        return None
