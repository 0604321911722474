"""The values of a request that a view takes: from its path, query, headers and cookies."""

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

_NOT_READ = ("metadata", "ref", "serialization")


def text_validator(adapter: TypeAdapter[Any]) -> SchemaValidator:
    """Make what reads the texts of a type: `validate_strings` one, `validate_python` a list.

    Pydantic's own finds no `Literal[10]` and no member of an enum in a text, and reads the elements
    of a list otherwise than it reads them alone: "3" as an `int | str`. Here a text is that member
    which JSON writes like that, and each element is read as one that is alone. A float is a number
    as in JSON, so `nan` and `inf` are none.
    """
    return SchemaValidator(_of_text(adapter.core_schema, {}))


def _of_text(schema: Any, known: Mapping[str, CoreSchema]) -> Any:
    """A schema of pydantic's, with the parts in it that read texts in another way.

    Args:
        known: The schemas that it may refer to; no text is of a type that contains itself.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(_of_text(each, known) for each in schema)
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind == "definitions":
        return _of_text(schema["schema"], {each["ref"]: each for each in schema["definitions"]})
    if kind == "definition-ref":
        return _of_text(known[schema["schema_ref"]], known)
    if kind in ("literal", "enum"):
        members = schema["expected"] if kind == "literal" else schema["members"]
        return _read_by(_member_of(members, SchemaValidator(schema)))
    made = {key: _of_text(each, known) for key, each in schema.items() if key not in _NOT_READ}
    if kind == "float":
        # As in JSON: the document says that it is a number.
        made.setdefault("allow_inf_nan", False)
    if isinstance(items := made.get("items_schema"), list):
        made["items_schema"] = [_alone(each) for each in items]
    elif items is not None:
        made["items_schema"] = _alone(items)
    return made


def _member_of(members: Sequence[Any], validator: SchemaValidator) -> Callable[[Any], Any]:
    written = {_written(each): each for each in members}

    def read(found: Any) -> Any:
        # Where it is an alternative to a list, it gets lists as well.
        if not isinstance(found, str):
            return validator.validate_python(found)
        text: Any = found
        return written[text] if text in written else validator.validate_strings(text)

    return read


def _written(member: Any) -> str:
    plain = to_jsonable_python(member, fallback=str)
    return plain if isinstance(plain, str) else to_json(plain).decode()


def _alone(schema: CoreSchema) -> CoreSchema:
    return _read_by(SchemaValidator(schema).validate_strings)


def _read_by(read: Callable[[Any], Any]) -> CoreSchema:
    return core_schema.no_info_plain_validator_function(read)


@dataclass(frozen=True, slots=True)
class Header:
    """Marks a parameter that takes a header: `Annotated[str, Header]`.

    Attributes:
        name: Of the header; by default that of the parameter, with hyphens for underscores.
    """

    name: str | None = None


@dataclass(frozen=True, slots=True)
class Cookie:
    """Marks a parameter that takes a cookie: `Annotated[str, Cookie]`.

    Attributes:
        name: Of the cookie; by default that of the parameter.
    """

    name: str | None = None


class ParameterLocation(StrEnum):
    """The part of a request that a value comes from, as OpenAPI calls it."""

    PATH = "path"
    QUERY = "query"
    HEADER = "header"
    COOKIE = "cookie"


class InvalidParameter(ValueError):
    """A value does not fit; the text says what would be right, and not what was found."""


@dataclass(frozen=True, slots=True)
class RequestParameter:
    """One value that a view takes.

    Attributes:
        argument: Name of the parameter of the method.
        name: What the client calls it.
        shape: Of its type: one value, or a list of them.
        default: `Parameter.empty` where the client has to give it.
    """

    argument: str
    part: ParameterLocation
    name: str
    adapter: TypeAdapter[Any]
    shape: JSONShape
    default: Any = Parameter.empty
    _validator: SchemaValidator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Once, and not for each request.
        object.__setattr__(self, "_validator", text_validator(self.adapter))

    @property
    def required(self) -> bool:
        """Whether the client has to give it."""
        return self.default is Parameter.empty

    def read(self, request: web.Request) -> Any:
        """Take it out of a request.

        Raises:
            Unfit: It is missing, or has the wrong form.
        """
        found = _FIND[self.part](request, self.name)
        if not found:
            if self.required:
                raise InvalidParameter("is missing")
            return self.default
        validator = self._validator
        try:
            if self.shape is JSONShape.LIST:
                if self.part is ParameterLocation.HEADER:
                    # RFC 9110, sections 5.3 and 5.6.1: proxies may make one line of several, and
                    # an element that is empty is none.
                    elements = [each.strip() for line in found for each in line.split(",")]
                    found = [each for each in elements if each]
                return validator.validate_python([_text(each) for each in found])
            text: Any = _text(found[0])
            return validator.validate_strings(text)
        except ValidationError as error:
            # Not chained: pydantic's own text contains the value.
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise InvalidParameter(worded(first)) from None


def _text(found: str) -> str:
    if not found.isascii():
        try:
            found.encode()
        except UnicodeEncodeError:
            raise InvalidParameter("Input should be UTF-8 text") from None
    return found


Find = Callable[[web.Request, str], list[str] | tuple[str, ...]]


def _in_path(request: web.Request, name: str) -> tuple[str, ...]:
    found = request.match_info.get(name)
    return () if found is None else (found,)


def _in_query(request: web.Request, name: str) -> list[str] | tuple[str, ...]:
    return request.query.getall(name, ())


def _in_headers(request: web.Request, name: str) -> list[str] | tuple[str, ...]:
    return request.headers.getall(name, ())


def _in_cookies(request: web.Request, name: str) -> tuple[str, ...]:
    found = request.cookies.get(name)
    return () if found is None else (found,)


_FIND: dict[ParameterLocation, Find] = {
    ParameterLocation.PATH: _in_path,
    ParameterLocation.QUERY: _in_query,
    ParameterLocation.HEADER: _in_headers,
    ParameterLocation.COOKIE: _in_cookies,
}
