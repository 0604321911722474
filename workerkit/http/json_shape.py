"""The JSON shape of a type, which decides from which part of a request it is read."""

from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_settings import BaseSettings

from workerkit.codec import UnknownType, adapter, decoder, holds_struct
from workerkit.config.annotations import members

_SCALARS = frozenset({"string", "integer", "number", "boolean"})


class JSONShape(Enum):
    """Shapes of a value that can be read from a request."""

    SCALAR = "one value"
    LIST = "a list of values"
    BODY = "an object, or a list of them"


def json_shape(type_: Any) -> tuple[JSONShape, TypeAdapter[Any] | None] | None:
    """Return the shape of a type, and its pydantic adapter; None if no request can contain it.

    A type that contains a `msgspec.Struct` has a shape but no adapter.
    """
    if holds_struct(type_):
        return (JSONShape.BODY, None) if _is_readable(type_) else None
    if type_ is bytes or _is_settings(type_):
        return None
    try:
        validator = adapter(type_)
        schema = validator.json_schema()
    except (UnknownType, PydanticInvalidForJsonSchema):
        return None
    if _is_model(type_):
        return JSONShape.BODY, validator
    shapes = set(_shapes(schema, schema.get("$defs", {})))
    for shape in (JSONShape.BODY, JSONShape.LIST, JSONShape.SCALAR):
        if shape in shapes and None not in shapes:
            return shape, validator
    return None


def is_optional(type_: Any) -> bool:
    """Return whether None is a value of the type."""
    if get_origin(type_) is Annotated:
        return is_optional(get_args(type_)[0])
    return NoneType in get_args(type_)


def bare_type(type_: Any) -> Any:
    """Return a type without `Annotated` and without the alternative None."""
    if get_origin(type_) is Annotated:
        return bare_type(get_args(type_)[0])
    if get_origin(type_) not in (Union, UnionType):
        return type_
    left = tuple(each for each in get_args(type_) if each is not NoneType)
    return bare_type(left[0]) if len(left) == 1 else Union[left]  # noqa: UP007 - a tuple of types


def is_client_data(type_: Any) -> bool:
    """Return whether values of the type are data of a client: no part of it is any other class."""
    kinds = [kind for kind in members(type_) if kind is not NoneType]
    return all(map(_is_data, kinds))


def accepts_any_text(type_: Any) -> bool:
    """Return whether the type accepts any text."""
    return all(kind in (bytes, Any, object, NoneType) for kind in members(type_))


def _is_data(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    if isinstance(origin, type) and issubclass(origin, Collection) and get_args(kind):
        return all(map(is_client_data, get_args(kind)))
    return accepts_any_text(kind) or origin is Collection or json_shape(kind) is not None


def _is_readable(type_: Any) -> bool:
    try:
        decoder(type_)
    except UnknownType:
        return False
    return True


def _is_model(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, BaseModel)


def _is_settings(type_: Any) -> bool:
    # A model, but never read from a request.
    return isinstance(type_, type) and issubclass(type_, BaseSettings)


def _shapes(schema: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[JSONShape | None]:
    """Yield the shape of each alternative of a schema; None for one that accepts anything."""
    if "$ref" in schema:
        # A type that contains itself is an object.
        inner = known.get(schema["$ref"].rpartition("/")[2], {})
        yield from [JSONShape.BODY] if "properties" in inner else _shapes(inner, known)
    elif alternatives := schema.get("anyOf") or schema.get("oneOf"):
        for each in alternatives:
            yield from _shapes(each, known)
    elif schema.get("format") == "binary":
        yield None  # A file, which only a form can contain.
    elif schema.get("type") in _SCALARS or "enum" in schema or "const" in schema:
        yield JSONShape.SCALAR
    elif schema.get("type") == "object":
        yield JSONShape.BODY
    elif schema.get("type") == "array":
        items = [schema.get("items", {}), *schema.get("prefixItems", ())]
        shapes = {shape for each in items if each for shape in _shapes(each, known)}
        yield JSONShape.LIST if shapes == {JSONShape.SCALAR} else JSONShape.BODY
    elif schema.get("type") != "null":
        yield None
