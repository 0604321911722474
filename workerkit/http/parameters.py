"""The values of a request that a view takes: from its path, query, headers and cookies."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from inspect import Parameter
from typing import Any

from aiohttp import web
from pydantic import TypeAdapter, ValidationError
from pydantic_core import SchemaValidator

from workerkit.codec import worded
from workerkit.http.shape import Shape
from workerkit.http.text import text_validator


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


class Part(StrEnum):
    """The part of a request that a value comes from, as OpenAPI calls it."""

    PATH = "path"
    QUERY = "query"
    HEADER = "header"
    COOKIE = "cookie"


class Unfit(ValueError):
    """A value does not fit; the text says what would be right, and not what was found."""


@dataclass(frozen=True, slots=True)
class Value:
    """One value that a view takes.

    Attributes:
        argument: Name of the parameter of the method.
        name: What the client calls it.
        shape: Of its type: one value, or a list of them.
        default: `Parameter.empty` where the client has to give it.
    """

    argument: str
    part: Part
    name: str
    adapter: TypeAdapter[Any]
    shape: Shape
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
                raise Unfit("is missing")
            return self.default
        validator = self._validator
        try:
            if self.shape is Shape.LIST:
                if self.part is Part.HEADER:
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
            raise Unfit(worded(first)) from None


def _text(found: str) -> str:
    if not found.isascii():
        try:
            found.encode()
        except UnicodeEncodeError:
            raise Unfit("Input should be UTF-8 text") from None
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


_FIND: dict[Part, Find] = {
    Part.PATH: _in_path,
    Part.QUERY: _in_query,
    Part.HEADER: _in_headers,
    Part.COOKIE: _in_cookies,
}
