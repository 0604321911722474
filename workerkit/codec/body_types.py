"""What kind of type `handle` declares for a body, and who can read it."""

import sys
import types
import typing
from typing import Any, NotRequired

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter
from typing_extensions import TypedDict

from workerkit.config.annotations import members


class UnknownType(TypeError):
    """No codec can read a body as this type."""


def adapter(type_: Any) -> TypeAdapter[Any]:
    """Create the adapter that validates and describes *type_*.

    Raises:
        UnknownType: Pydantic does not support it.
    """
    try:
        found = TypeAdapter(_rebuilt(type_))
        if not found.pydantic_complete:
            # A rebuild raises an error that names what is not defined.
            found.rebuild()
        return found
    except (PydanticSchemaGenerationError, PydanticUserError, NameError, TypeError) as error:
        raise UnknownType(str(error).split("\n", 1)[0]) from error


def is_verbatim(type_: Any) -> bool:
    """Return whether *type_* is text or bytes, used unchanged, not decoded from JSON.

    It may have another name, constraints, or None as an alternative.
    """
    kinds = [kind for kind in members(type_) if kind is not types.NoneType]
    return any(kinds and all(kind is each for kind in kinds) for each in (str, bytes))


def is_bytes(type_: Any) -> bool:
    """Return whether *type_* is bytes, used unchanged, also under another name."""
    return is_verbatim(type_) and bytes in members(type_)


def is_struct(type_: Any) -> bool:
    """Return whether *type_* is a `msgspec.Struct`, which pydantic does not support."""
    # Whoever has such a class has imported msgspec.
    found = sys.modules.get("msgspec")
    return found is not None and isinstance(type_, type) and issubclass(type_, found.Struct)


def holds_struct(type_: Any) -> bool:
    """Return whether *type_* is or contains a `msgspec.Struct`, as `list[Struct]` does."""
    if is_struct(type_) or is_struct(typing.get_origin(type_)):
        return True
    return any(map(holds_struct, typing.get_args(type_)))


def is_protobuf(type_: Any) -> bool:
    """Return whether *type_* is the class of a protobuf message."""
    # Whoever has such a class has imported protobuf.
    found = sys.modules.get("google.protobuf.message")
    return found is not None and isinstance(type_, type) and issubclass(type_, found.Message)


def _rebuilt(type_: Any) -> Any:
    """Return *type_* with each `typing.TypedDict` replaced by one of typing_extensions.

    Pydantic rejects those of the standard library before Python 3.12.
    """
    if sys.version_info >= (3, 12):
        return type_
    if typing.is_typeddict(type_):
        hints = typing.get_type_hints(type_, include_extras=True)
        fields = {name: _rebuilt(hint) for name, hint in hints.items()}
        optional = {name: NotRequired[fields[name]] for name in type_.__optional_keys__}
        make: Any = TypedDict
        return make(type_.__name__, {**fields, **optional})
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if isinstance(type_, types.GenericAlias) and isinstance(origin, type):
        return types.GenericAlias(origin, tuple(map(_rebuilt, arguments)))
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_rebuilt, arguments))]  # noqa: UP007
    if origin is typing.Annotated:
        annotated: Any = typing.Annotated
        return annotated[(_rebuilt(arguments[0]), *arguments[1:])]
    return type_
