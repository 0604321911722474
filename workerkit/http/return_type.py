"""The responses that the return annotation of a view's method describes."""

import functools
import operator
from collections.abc import Iterator
from inspect import Parameter
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from aiohttp import web
from pydantic import TypeAdapter

from workerkit.codec import JSON, UnknownType, adapter, decoder, holds_struct

_ANY_STATUS = "2XX"
_BYTES = "application/octet-stream"
BODILESS = frozenset({204, 205, 304})
"""Statuses of responses without a body: RFC 9110, sections 15.3.5, 15.3.6 and 15.4.5."""
_WITHOUT_BODY = frozenset(map(str, BODILESS))
STATUSES = range(200, 600)
"""Statuses that a view may return."""


class ReturnType:
    """The responses of one method, by its return annotation.

    Args:
        annotation: The return annotation; `Parameter.empty` if there is none.
        status: Of a response that does not set one.

    Attributes:
        responses: For each status, or `2XX` for any, the bodies by content type. The value is an
            adapter, a type of msgspec, or None if the body has no schema. A response without a
            body has no content type.
        is_open: Whether the method may also return a response that the annotation does not
            describe.
    """

    def __init__(self, annotation: Any, status: int) -> None:
        self.is_open = False
        self.responses: dict[str, dict[str, Any]] = {}
        types: dict[str, list[Any]] = {}
        for member in _members(annotation):
            for found, type_ in _with_status(member, status):
                if _is_unknown(type_):
                    self.is_open = True
                else:
                    types.setdefault(found, []).append(type_)
        for found, members in types.items():
            bodies = [each for each in members if each is not NoneType]
            self.responses[found] = {} if found in _WITHOUT_BODY else self._content(bodies)

    @property
    def described(self) -> list[Any]:
        """The adapters and types that describe bodies."""
        return [each for body in self.responses.values() for each in body.values() if each]

    def _content(self, bodies: list[Any]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        if any(map(_is_bytes, bodies)):
            content[_BYTES] = None
        if values := [each for each in bodies if not _is_bytes(each)]:
            type_ = functools.reduce(operator.or_, values)
            try:
                content[JSON] = _description(type_)
            except UnknownType:
                self.is_open = True
        return content


def return_faults(annotation: Any) -> Iterator[str]:
    """Yield the faults of the tuples in a return annotation.

    The only valid tuple is `(body, status)`. A `NamedTuple` is a value like any other.
    """
    for member in _members(_unwrapped(annotation)):
        type_ = _unwrapped(member)
        if type_ is not tuple and get_origin(type_) is not tuple:
            continue
        arguments = get_args(type_)
        if not arguments:
            continue  # A tuple without types may be `(body, status)`.
        if len(arguments) != 2 or not _is_status_type(arguments[1]):
            yield f"returns {_name(type_)}: write tuple[body, int], or a list for a JSON array"
        elif wrong := [each for each in get_args(arguments[1]) if each not in STATUSES]:
            yield f"returns {_name(type_)}: {wrong[0]!r} is not a status; write 200 to 599"


def _unwrapped(type_: Any) -> Any:
    """Return a type without `Annotated`, and the value of an alias `type X = ...`."""
    while True:
        if get_origin(type_) is Annotated:
            type_ = get_args(type_)[0]
        elif (value := getattr(type_, "__value__", None)) is not None:
            type_ = value
        else:
            return type_


def _name(type_: Any) -> str:
    arguments = ", ".join(
        "..."
        if each is Ellipsis
        else getattr(each, "__name__", repr(each))
        if isinstance(each, type)
        else repr(each).replace("typing.", "")
        for each in get_args(type_)
    )
    return f"tuple[{arguments}]"


def _description(type_: Any) -> TypeAdapter[Any] | Any:
    if not holds_struct(type_):
        return adapter(type_)
    # Pydantic does not know the type; creating a decoder shows whether msgspec does.
    decoder(type_)
    return type_


def _members(annotation: Any) -> list[Any]:
    if annotation is None:
        return [NoneType]
    if get_origin(annotation) in (Union, UnionType):
        return [each for member in get_args(annotation) for each in _members(member)]
    return [annotation]


def _with_status(type_: Any, status: int) -> Iterator[tuple[str, Any]]:
    """Yield the statuses of one alternative of the annotation, each with the type of its body."""
    arguments = get_args(type_)
    if get_origin(type_) is tuple and len(arguments) == 2 and _is_status_type(arguments[1]):
        statuses = [str(each) for each in get_args(arguments[1])] or [_ANY_STATUS]
        for member in _members(arguments[0]):
            yield from ((each, member) for each in statuses)
    elif type_ is NoneType and status == 200:
        yield "204", type_
    else:
        yield str(status), type_


def _is_status_type(type_: Any) -> bool:
    if get_origin(type_) is Literal:
        return all(type(each) is int for each in get_args(type_))
    return type_ is int


def _is_bytes(type_: Any) -> bool:
    if get_origin(type_) is Annotated:
        return _is_bytes(get_args(type_)[0])
    return type_ in (bytes, bytearray, memoryview)


def _is_unknown(type_: Any) -> bool:
    if get_origin(type_) is Annotated:
        return _is_unknown(get_args(type_)[0])
    if type_ is Parameter.empty or type_ in (Any, object):
        return True
    return isinstance(type_, type) and issubclass(type_, web.StreamResponse)
