"""Parameters of a view that are read from the path, query, headers and cookies of a request."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from inspect import Parameter
from typing import Any

from aiohttp import web
from pydantic import TypeAdapter, ValidationError
from pydantic_core import CoreSchema, SchemaValidator, core_schema, to_json, to_jsonable_python

from workerkit.codec import worded
from workerkit.http.json_shape import JSONShape

_SKIPPED_KEYS = ("metadata", "ref", "serialization")


def text_validator(adapter: TypeAdapter[Any]) -> SchemaValidator:
    """Return a validator of texts: `validate_strings` reads one, `validate_python` a list.

    Pydantic's own validator does not read a text as `Literal[10]` or as a member of an enum, and
    reads elements of a list differently from single values, such as "3" as `int | str`. Here a text
    is read as the member that has this text in JSON, and each element like a single value. A float
    is a number as in JSON: `nan` and `inf` are invalid.
    """
    return SchemaValidator(text_schema(adapter.core_schema))


def text_schema(schema: CoreSchema) -> Any:
    """Return a schema of pydantic with the parts replaced that read texts differently."""
    return _text_schema(schema, {})


def _text_schema(schema: Any, known: Mapping[str, CoreSchema]) -> Any:
    """Replace the parts of a schema.

    Args:
        known: The schemas that it may refer to. No type that is read from a text is recursive.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(_text_schema(each, known) for each in schema)
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind == "definitions":
        return _text_schema(schema["schema"], {each["ref"]: each for each in schema["definitions"]})
    if kind == "definition-ref":
        return _text_schema(known[schema["schema_ref"]], known)
    if kind in ("literal", "enum"):
        members = schema["expected"] if kind == "literal" else schema["members"]
        return read_with(_member_of(members, SchemaValidator(schema)))
    copy = {
        key: _text_schema(each, known) for key, each in schema.items() if key not in _SKIPPED_KEYS
    }
    if kind == "float":
        # As in JSON: the OpenAPI document declares a number.
        copy.setdefault("allow_inf_nan", False)
    if isinstance(items := copy.get("items_schema"), list):
        copy["items_schema"] = [_element_schema(each) for each in items]
    elif items is not None:
        copy["items_schema"] = _element_schema(items)
    return copy


def _member_of(members: Sequence[Any], validator: SchemaValidator) -> Callable[[Any], Any]:
    written = {_json_text(each): each for each in members}

    def read(found: Any) -> Any:
        # As an alternative to a list, it is called with lists as well.
        if not isinstance(found, str):
            return validator.validate_python(found)
        text: Any = found
        return written[text] if text in written else validator.validate_strings(text)

    return read


def _json_text(member: Any) -> str:
    plain = to_jsonable_python(member, fallback=str)
    return plain if isinstance(plain, str) else to_json(plain).decode()


def _element_schema(schema: CoreSchema) -> CoreSchema:
    if schema["type"] == "function-plain":
        return schema  # A function reads it, such as that of a file in a form.
    return read_with(SchemaValidator(schema).validate_strings)


def read_with(read: Callable[[Any], Any]) -> CoreSchema:
    """Return a schema that calls a function with the value."""
    return core_schema.no_info_plain_validator_function(read)


@dataclass(frozen=True, slots=True)
class Header:
    """A marker of a parameter that takes a header: `Annotated[str, Header]`.

    Attributes:
        name: Of the header; by default the name of the parameter, with hyphens for underscores.
    """

    name: str | None = None


@dataclass(frozen=True, slots=True)
class Cookie:
    """A marker of a parameter that takes a cookie: `Annotated[str, Cookie]`.

    Attributes:
        name: Of the cookie; by default the name of the parameter.
    """

    name: str | None = None


class ParameterLocation(StrEnum):
    """The part of a request that a value is read from, named as in OpenAPI."""

    PATH = "path"
    QUERY = "query"
    HEADER = "header"
    COOKIE = "cookie"


class InvalidParameter(ValueError):
    """A value is invalid or missing; the text says what is expected, and does not quote it."""


@dataclass(frozen=True, slots=True)
class RequestParameter:
    """One parameter of a request that a view takes.

    Attributes:
        argument: The name of the method's parameter.
        part: The part of the request that it is read from.
        name: The name in the request.
        shape: Of its type: one value, or a list of values.
        default: `Parameter.empty` if the client has to send it.
    """

    argument: str
    part: ParameterLocation
    name: str
    adapter: TypeAdapter[Any]
    shape: JSONShape
    default: Any = Parameter.empty
    _validator: SchemaValidator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Once, not for each request.
        object.__setattr__(self, "_validator", text_validator(self.adapter))

    @property
    def required(self) -> bool:
        """Whether the client has to send it."""
        return self.default is Parameter.empty

    def read(self, request: web.Request) -> Any:
        """Return its value in a request.

        Raises:
            InvalidParameter: It is missing or invalid.
        """
        found = _GETTERS[self.part](request, self.name)
        if not found:
            if self.required:
                raise InvalidParameter("is missing")
            return self.default
        validator = self._validator
        try:
            if self.shape is JSONShape.LIST:
                if self.part is ParameterLocation.HEADER:
                    # RFC 9110, sections 5.3 and 5.6.1: proxies may join several lines, and empty
                    # elements are ignored.
                    elements = [each.strip() for line in found for each in line.split(",")]
                    found = [each for each in elements if each]
                return validator.validate_python([_text(each) for each in found])
            text: Any = _text(found[0])
            return validator.validate_strings(text)
        except ValidationError as error:
            # Not chained: the text of pydantic's error contains the value.
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise InvalidParameter(worded(first)) from None


def _text(found: str) -> str:
    if not found.isascii():
        try:
            found.encode()
        except UnicodeEncodeError:
            raise InvalidParameter("Input should be UTF-8 text") from None
    return found


Getter = Callable[[web.Request, str], list[str] | tuple[str, ...]]


def _from_path(request: web.Request, name: str) -> tuple[str, ...]:
    found = request.match_info.get(name)
    return () if found is None else (found,)


def _from_query(request: web.Request, name: str) -> list[str] | tuple[str, ...]:
    return request.query.getall(name, ())


def _from_headers(request: web.Request, name: str) -> list[str] | tuple[str, ...]:
    return request.headers.getall(name, ())


def _from_cookies(request: web.Request, name: str) -> tuple[str, ...]:
    found = request.cookies.get(name)
    return () if found is None else (found,)


_GETTERS: dict[ParameterLocation, Getter] = {
    ParameterLocation.PATH: _from_path,
    ParameterLocation.QUERY: _from_query,
    ParameterLocation.HEADER: _from_headers,
    ParameterLocation.COOKIE: _from_cookies,
}
