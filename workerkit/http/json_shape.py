"""What a type looks like in JSON, which decides where in a request it comes from."""

from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_settings import BaseSettings

from workerkit.codec import UnknownType, adapter, decoder, holds_struct
from workerkit.config.annotations import members

_SCALARS = frozenset({"string", "integer", "number", "boolean"})


class JSONShape(Enum):
    """Forms of a type that a request can hold."""

    SCALAR = "one value"
    LIST = "a list of values"
    BODY = "an object, or a list of them"


def json_shape(type_: Any) -> tuple[JSONShape, TypeAdapter[Any] | None] | None:
    """The form of a type, and what validates it; None where no request can hold it.

    What has a `msgspec.Struct` in it has a form, but no adapter of pydantic's.
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
    forms = set(_forms(schema, schema.get("$defs", {})))
    for shape in (JSONShape.BODY, JSONShape.LIST, JSONShape.SCALAR):
        if shape in forms and None not in forms:
            return shape, validator
    return None


def is_optional(type_: Any) -> bool:
    """Whether None is a value of the type."""
    if get_origin(type_) is Annotated:
        return is_optional(get_args(type_)[0])
    return NoneType in get_args(type_)


def is_client_data(type_: Any) -> bool:
    """Whether only a client can be meant to give it: nothing in it is a class of objects."""
    kinds = [kind for kind in members(type_) if kind is not NoneType]
    return all(map(_is_data, kinds))


def is_any_text(type_: Any) -> bool:
    """Whether any text of a client is a value of the type, which says no more of it."""
    return all(kind in (bytes, Any, object, NoneType) for kind in members(type_))


def _is_data(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    if isinstance(origin, type) and issubclass(origin, Collection) and get_args(kind):
        return all(map(is_client_data, get_args(kind)))
    return is_any_text(kind) or origin is Collection or json_shape(kind) is not None


def _is_readable(type_: Any) -> bool:
    try:
        decoder(type_)
    except UnknownType:
        return False
    return True


def _is_model(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, BaseModel)


def _is_settings(type_: Any) -> bool:
    # A model like any other, but nothing that a client may send.
    return isinstance(type_, type) and issubclass(type_, BaseSettings)


def _forms(schema: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[JSONShape | None]:
    """The forms of all alternatives of a schema; None for one that may be anything."""
    if "$ref" in schema:
        # A type that contains itself is an object.
        inner = known.get(schema["$ref"].rpartition("/")[2], {})
        yield from [JSONShape.BODY] if "properties" in inner else _forms(inner, known)
    elif alternatives := schema.get("anyOf") or schema.get("oneOf"):
        for each in alternatives:
            yield from _forms(each, known)
    elif schema.get("type") in _SCALARS or "enum" in schema or "const" in schema:
        yield JSONShape.SCALAR
    elif schema.get("type") == "object":
        yield JSONShape.BODY
    elif schema.get("type") == "array":
        items = [schema.get("items", {}), *schema.get("prefixItems", ())]
        forms = {form for each in items if each for form in _forms(each, known)}
        yield JSONShape.LIST if forms == {JSONShape.SCALAR} else JSONShape.BODY
    elif schema.get("type") != "null":
        yield None
