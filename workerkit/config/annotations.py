"""The parts of a type: what can be named inside of it, and how an operator writes it."""

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from pydantic import AliasChoices, AliasPath, BaseModel
from pydantic.fields import FieldInfo

from workerkit.config.settings import DEFAULT_CONNECTION
from workerkit.config.sources import split_list, takes_list

Location = tuple[str | int, ...]

_COUNT = re.compile(r"^\w+ (should have at (?:least|most) \d+ items?) after validation, not \d+$")

_DEEPEST = 8


def members(annotation: Any) -> list[Any]:
    """Return the alternatives of a type, without `Annotated`, aliases and nested unions.

    A `NewType` is what it was made of.
    """
    while (inner := _within(annotation)) is not None:
        annotation = inner
    if get_origin(annotation) in (Union, UnionType):
        return [member for each in get_args(annotation) for member in members(each)]
    return [NoneType if annotation is None else annotation]


def fields_of(kind: Any) -> dict[str, Any] | None:
    """Return the types of the fields of a model, dataclass or TypedDict by the names they take.

    None for any other type, and for a model that takes fields of any name.
    """
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if kind.model_config.get("extra") == "allow":
            return None
        return {
            each: field.annotation
            for name, field in kind.model_fields.items()
            for each in input_names(name, field, "", kind.model_config)
        }
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        return {each.name: hints[each.name] for each in dataclasses.fields(kind) if each.init}
    return get_type_hints(kind, include_extras=True) if is_typeddict(kind) else None


def inside(annotation: Any, key: str) -> list[Any]:
    """Return the types that a value of *annotation* may have at *key*; none if it has no key."""
    found: list[Any] = []
    for kind in members(annotation):
        fields = fields_of(kind)
        if fields is not None:
            found += [hint for name, hint in fields.items() if name.lower() == key.lower()]
        elif _is_mapping(kind):
            found.append(get_args(kind)[-1] if get_args(kind) else Any)
        elif kind in (Any, object) or is_nested(kind):
            found.append(Any)
    return found


def is_nested(annotation: Any) -> bool:
    """Whether a value of *annotation* may have parts with names."""
    return any(
        _is_mapping(kind)
        or is_typeddict(kind)
        or (isinstance(kind, type) and issubclass(kind, BaseModel))
        or (isinstance(kind, type) and dataclasses.is_dataclass(kind))
        for kind in members(annotation)
    )


def leads_somewhere(annotation: Any, steps: Iterable[str]) -> bool:
    """Whether *steps* name a part of a value of *annotation*."""
    found = [annotation]
    for step in steps:
        found = [inner for each in found for inner in inside(each, step)]
    return bool(found)


def leaves(annotation: Any, steps: tuple[str, ...], depth: int = 0) -> Iterator[tuple[str, ...]]:
    """Yield the ways to all simple values; *steps* says which keys of dicts are meant."""
    if not is_nested(annotation):
        yield ()
    if depth == _DEEPEST:
        return
    for kind in members(annotation):
        names: Iterable[str] = fields_of(kind) or ()
        if _is_mapping(kind):
            if not steps and not any(map(is_nested, get_args(kind)[1:])):
                # Of simple values there is no name that would do for all: it is written as JSON.
                yield ()
                continue
            names = steps[:1] or (DEFAULT_CONNECTION,)
        for name in names:
            for inner in inside(kind, name):
                for rest in leaves(inner, steps[1:], depth + 1):
                    yield (name, *rest)


def without_tags(annotation: Any, location: Location) -> Location:
    """Return *location* without the items that say which member of a union was tried."""
    kinds = [kind for kind in members(annotation) if kind is not NoneType]
    if len(kinds) > 1:
        location = location[1:]
    if not location:
        return ()
    step, *_ = location
    inner = [each for kind in kinds for each in inside(kind, str(step))]
    if isinstance(step, int) and not inner:
        inner = [get_args(kind)[0] for kind in kinds if get_args(kind)]
    return (step, *without_tags(inner[0] if inner else Any, location[1:]))


def as_written(annotation: Any, value: Any) -> Any:
    """Return *value* as *annotation* needs it, where it is text as an operator writes it.

    Lists are JSON or commas, dicts JSON, `none` and `null` are None where that is allowed, enums
    and literals match in any case. Everything else is left to validation.

    Raises:
        ValueError: Text that must be JSON is not.
    """
    kinds = members(annotation)
    if isinstance(value, dict):
        return {key: _part_as_written(kinds, str(key), each) for key, each in value.items()}
    if not isinstance(value, str):
        return value
    text = value.strip()
    if NoneType in kinds and text.lower() in ("none", "null"):
        return None
    for kind in kinds:
        if (choice := _choice(kind, text)) is not None:
            return choice
    if text.startswith("{") and is_nested(annotation):
        return as_written(annotation, json.loads(text))
    lists = [kind for kind in kinds if takes_list(kind)]
    if lists and (str not in kinds or text.startswith("[")):
        return _items_as_written(lists[0], split_list(text))
    return value


def strays(annotation: Any, value: Any, path: Location = ()) -> Iterator[Location]:
    """Yield the paths of the keys in *value* that *annotation* has no place for."""
    if isinstance(value, dict) and is_nested(annotation):
        for key, each in value.items():
            inner = inside(annotation, str(key))
            if not inner:
                yield (*path, str(key))
            else:
                yield from strays(inner[0], each, (*path, str(key)))


def input_names(name: str, field: FieldInfo, prefix: str, config: Mapping[str, Any]) -> list[str]:
    """Return the names that set *field*: its aliases without prefix, else its own name."""
    alias = field.validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias] if alias else []
    names = [str(each.path[0]) if isinstance(each, AliasPath) else each for each in choices]
    if not names or config.get("populate_by_name") or config.get("validate_by_name"):
        names.append(prefix + name)
    return names


def _within(annotation: Any) -> Any:
    """What a type is another name for; None where it stands for itself."""
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[0]
    return getattr(annotation, "__value__", None) or getattr(annotation, "__supertype__", None)


def _part_as_written(kinds: list[Any], key: str, value: Any) -> Any:
    inner = [each for kind in kinds for each in inside(kind, key)]
    return as_written(inner[0], value) if inner else value


def _items_as_written(kind: Any, items: Any) -> Any:
    arguments = [each for each in get_args(kind) if each is not Ellipsis]
    # The items of tuple[int, str] have types of their own, which validation knows to convert.
    if not isinstance(items, list) or len(set(map(repr, arguments))) != 1:
        return items
    return [as_written(arguments[0], item) for item in items]


def _choice(kind: Any, text: str) -> Any:
    """Return the value of the enum or literal *kind* that *text* means, None if it means none."""
    values: list[Any] = []
    if isinstance(kind, type) and issubclass(kind, Enum):
        values = [member.value for member in kind]
    elif get_origin(kind) is Literal:
        values = list(get_args(kind))
    return next((each for each in values if str(each).casefold() == text.casefold()), None)


def _is_mapping(kind: Any) -> bool:
    kind = get_origin(kind) or kind
    return isinstance(kind, type) and issubclass(kind, Mapping) and not is_typeddict(kind)


def sentence(message: str) -> str:
    """What pydantic says of a value, as the end of a fault: `should be greater than 0`."""
    for start in ("Value error, ", "Assertion failed, ", "Input "):
        message = message.removeprefix(start)
    # Such as "Value should have at least 1 item after validation, not 0".
    message = _COUNT.sub(r"\1", message)
    return message[:1].lower() + message[1:]
