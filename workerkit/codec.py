"""Decode bodies to the type that `handle` declares, and encode values."""

import codecs
import dataclasses
import functools
import importlib.util
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NotRequired, cast

from pydantic import (
    BaseModel,
    PydanticSchemaGenerationError,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import (
    ErrorDetails,
    PydanticSerializationError,
    SchemaError,
    SchemaValidator,
    to_json,
)
from typing_extensions import TypedDict

from workerkit.config.annotations import members
from workerkit.errors import InvalidBody
from workerkit.safe_text import excerpt

Decode = Callable[[bytes], Any]
JSON = "application/json"

MOST_FINDINGS = 5
"""The largest number of faults of one body that are named; the others are counted."""

_LONGEST_FINDING = 1024
# Creating the details takes pydantic 2 µs for each fault, and it creates those of all faults.
_MANY_FINDINGS = 1000
_COLLECTIONS = frozenset({"list", "tuple", "set", "frozenset"})
# Parts of a schema that hold objects of the user's.
_NO_SCHEMAS = frozenset({"cls", "config", "default", "expected", "members", "metadata"})
_BOM = "\ufeff"
# Replacements for texts of pydantic that contain input of the sender.
_SAFE_TEXTS = {
    "union_tag_invalid": "Input tag is none of the expected ones",
    "extra_forbidden": "There is no such field",
    "uuid_parsing": "Input should be a valid UUID",
}
_AT = re.compile(r"(?P<text>.*) - at `\$(?P<place>(?:\.\w+|\[\d+\]|\[\.\.\.\])+)`", re.DOTALL)
_QUOTED = re.compile(r"'[^']*'|(?<=unknown field )`[^`]*`")


class UnknownType(TypeError):
    """No codec can read a body as this type."""


def decoder(type_: Any) -> Decode:
    """Create the function that reads a body as *type_*.

    `bytes` is the body as it is, `str` its UTF-8 text, also under another name, with constraints or
    with None beside it; everything else is read as JSON: JSON values (`dict`, `list`, `int`,
    `Any`...), a pydantic model, a dataclass, a `TypedDict`, a `msgspec.Struct`. A type with a
    `Struct` in it, such as `dict[str, Struct]`, is msgspec's as a whole. Before text and JSON a
    byte order mark is skipped. The function raises `InvalidBody`, whose text never contains the
    body.

    Raises:
        UnknownType: *type_* is none of these.
    """
    if type_ is bytes:
        return _identity
    if type_ is str:
        return _text
    if is_verbatim(type_):
        return _verbatim_decoder(type_)
    if holds_struct(type_):
        return _struct_decoder(type_)
    return _json_decoder(type_)


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
    if not isinstance(type_, type) or importlib.util.find_spec("msgspec") is None:
        return False
    import msgspec

    return issubclass(type_, msgspec.Struct)


def holds_struct(type_: Any) -> bool:
    """Return whether *type_* is or contains a `msgspec.Struct`, as `list[Struct]` does."""
    if is_struct(type_) or is_struct(typing.get_origin(type_)):
        return True
    return any(map(holds_struct, typing.get_args(type_)))


def encode(body: object) -> tuple[bytes, str]:
    """Turn a value into bytes and their content type.

    `bytes` stay unchanged, `str` becomes UTF-8 text; models, dataclasses, `msgspec.Struct`s and
    JSON values become JSON.

    Raises:
        TypeError: The value cannot be written as JSON.
    """
    if isinstance(body, BaseModel):
        return body.__pydantic_serializer__.to_json(body, by_alias=True), JSON
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body), "application/octet-stream"
    if isinstance(body, str):
        return body.encode(), "text/plain; charset=utf-8"
    if is_struct(type(body)):
        import msgspec

        return msgspec.json.encode(body), JSON
    try:
        kind: Any = type(body)
        if dataclasses.is_dataclass(body) and (known := _adapter(kind)) is not None:
            return known.dump_json(body, by_alias=True, fallback=_plain), JSON
        return to_json(body, inf_nan_mode="null", fallback=_plain), JSON
    except PydanticSerializationError as error:
        raise TypeError(
            f"a {type(body).__qualname__} cannot be written as JSON: {error}"
        ) from error


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


def _identity(raw: bytes) -> bytes:
    return raw


def _text(raw: bytes) -> str:
    try:
        text = raw.decode()
        return text[1:] if text[:1] == _BOM else text
    except UnicodeDecodeError as error:
        raise InvalidBody(
            f"the body is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error


def _without_bom(raw: bytes | str) -> bytes | str | None:
    """Return what follows a byte order mark; None without one."""
    if isinstance(raw, str):
        return raw[1:] if raw.startswith(_BOM) else None
    return raw[3:] if raw.startswith(codecs.BOM_UTF8) else None


def _json_decoder(type_: Any) -> Decode:
    validator = adapter(type_)
    return _validating(validator, validator.validator.validate_json, json=True)


def _verbatim_decoder(type_: Any) -> Decode:
    validator = adapter(type_)
    read: Decode = _text if str in members(type_) else _identity
    validate = _validating(validator, validator.validator.validate_python)
    return lambda raw: validate(read(raw))


def _validating(
    validator: TypeAdapter[Any], validate: Callable[[Any], Any], *, json: bool = False
) -> Decode:
    fields = frozenset(_fields(validator.core_schema))
    choices = frozenset(_choices(validator.core_schema))
    fail_fast = functools.cache(functools.partial(_fail_fast, validator, json))

    def validated(raw: Any, may_have_bom: bool = json) -> Any:
        try:
            return validate(raw)
        except ValidationError as error:
            # Only after an error, because the check would slow down every body.
            if may_have_bom and (plain := _without_bom(raw)) is not None:
                return validated(plain, False)
            count = error.error_count()
            if count > _MANY_FINDINGS:
                error = _first_error(fail_fast(), raw) or error
            details = _details(error)
            findings = [(_place(each["loc"], fields, choices), worded(each)) for each in details]
            is_json = details[0]["type"] != "json_invalid"
            text, more = _explain(findings, count), count - len(findings)
            # Not chained: pydantic's own text contains the body.
            raise InvalidBody(text, findings if is_json else (), more) from None

    return validated


def _fields(schema: Any) -> Iterator[str]:
    """Yield the names of all fields in a schema; all other keys come from the sender."""
    children = schema.values() if isinstance(schema, dict) else schema
    if isinstance(schema, dict) and isinstance(schema.get("fields"), dict):
        yield from schema["fields"]
    if isinstance(schema, dict):
        yield from (str(schema[key]) for key in ("name", "validation_alias") if key in schema)
    for child in children:
        if isinstance(child, dict | list | tuple):
            yield from _fields(child)


def _choices(schema: Any) -> Iterator[str]:
    """Yield the names of pydantic for members of unions, which are no part of a body."""
    children = schema.values() if isinstance(schema, dict) else schema
    if isinstance(schema, dict):
        if "cls" in schema:
            yield schema["cls"].__name__
        if schema.get("type") == "tagged-union":
            yield from map(str, schema["choices"])
        elif schema.get("type") == "union":
            members = (each[0] if isinstance(each, tuple) else each for each in schema["choices"])
            yield from (member["type"] for member in members)
    for child in children:
        if isinstance(child, dict | list | tuple):
            yield from _choices(child)


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


def _details(error: ValidationError) -> list[ErrorDetails]:
    """Return the first findings of pydantic, without the input."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return found[:MOST_FINDINGS]


def _fail_fast(validator: TypeAdapter[Any], json: bool) -> Callable[[Any], Any] | None:
    """Create what validates like *validator*, but ends a collection at its first faulty item."""
    schema, make = _failing_fast(validator.core_schema), cast(Any, SchemaValidator)
    try:
        # Without the validators that pydantic keeps for models: they read a collection to its end.
        made = make(schema, _use_prebuilt=False)
    except TypeError:  # Older versions have no such choice.
        made = make(schema)
    except SchemaError:
        return None
    validate: Callable[[Any], Any] = made.validate_json if json else made.validate_python
    return validate


def _failing_fast(schema: Any) -> Any:
    if isinstance(schema, list | tuple):
        return type(schema)(map(_failing_fast, schema))
    if not isinstance(schema, dict):
        return schema
    made = {
        key: part if key in _NO_SCHEMAS else _failing_fast(part) for key, part in schema.items()
    }
    return {**made, "fail_fast": True} if schema.get("type") in _COLLECTIONS else made


def _first_error(validate: Callable[[Any], Any] | None, raw: Any) -> ValidationError | None:
    try:
        if validate is not None:
            validate(raw)
    except ValidationError as error:
        return error
    return None


def worded(finding: ErrorDetails) -> str:
    """Return the text of pydantic about a value, without any part of the value."""
    return excerpt(_SAFE_TEXTS.get(finding["type"], finding["msg"]), _LONGEST_FINDING)


def _explain(findings: Sequence[tuple[str, str]], count: int) -> str:
    texts = [f"{place}: {text}" for place, text in findings]
    if more := count - len(findings):
        texts.append(f"and {more:,} more")
    return "; ".join(texts)


def _place(steps: tuple[int | str, ...], fields: Collection[str], choices: Collection[str]) -> str:
    known = []
    for step in steps:
        if isinstance(step, int) or step in fields:
            known.append(str(step))
        # Such as `int`, `constrained-int`, `list[int]`.
        elif step.removeprefix("constrained-").partition("[")[0] not in choices:
            known.append("[key]")
    return excerpt(".".join(known), _LONGEST_FINDING) or "the body"


def _struct_decoder(type_: Any) -> Decode:
    import msgspec

    try:
        # The decoder accepts any class, but no JSON value would match it.
        msgspec.json.schema(type_, schema_hook=_refuse)
        decode_json = msgspec.json.Decoder(type_).decode
    except TypeError as error:
        text = str(error).split("\n", 1)[0]
        raise UnknownType(f"a msgspec.Struct is in it, and msgspec says: {text}") from error

    def decode(raw: bytes | str, may_have_bom: bool = True) -> Any:
        try:
            return decode_json(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if may_have_bom and (plain := _without_bom(raw)) is not None:
                return decode(plain, False)
            # msgspec quotes values, and names unknown fields; not chained for that reason.
            finding = _finding(excerpt(_QUOTED.sub("...", str(error)), _LONGEST_FINDING))
            is_json = isinstance(error, msgspec.ValidationError)
            raise InvalidBody(_explain([finding], 1), [finding] if is_json else ()) from None

    return decode


def _finding(text: str) -> tuple[str, str]:
    """Split a text of msgspec into the place, written as pydantic does, and the rest."""
    found = _AT.fullmatch(text)
    if found is None:
        return "the body", text
    place = found["place"].replace("[...]", ".[key]")
    return re.sub(r"\[(\d+)\]", r".\1", place).removeprefix("."), found["text"]


def _refuse(type_: Any) -> dict[str, Any]:
    if type_ is object:
        return {}
    name = getattr(type_, "__qualname__", str(type_))
    raise UnknownType(f"{name} is none of the types that it reads")
