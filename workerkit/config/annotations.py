"""Types: the parts that variables can set, and how to decode text for them.

A mapping of names to types counts as a type with these fields.
"""

import dataclasses
import json
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

_DEEPEST = 8


def members(annotation: Any) -> list[Any]:
    """Return the alternatives of a type, without `Annotated`, aliases and nested unions.

    A `NewType` is what it was made of.
    """
    while (inner := _target(annotation)) is not None:
        annotation = inner
    if get_origin(annotation) in (Union, UnionType):
        return [member for each in get_args(annotation) for member in members(each)]
    return [NoneType if annotation is None else annotation]


def fields_of(kind: Any) -> dict[str, Any] | None:
    """Return the types of the fields of a model, dataclass or TypedDict by the names they take.

    None for any other type, and for a model that takes fields of any name.
    """
    if isinstance(kind, Mapping):
        return dict(kind)
    if _is_model(kind):
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


def types_at(annotation: Any, steps: Iterable[str | int]) -> list[Any]:
    """Return the types that a value of *annotation* may have at *steps*; none if there is no part.

    An index of a list leads to the type of its items.
    """
    found = [annotation]
    for step in steps:
        found = [inner for each in found for kind in members(each) for inner in _inside(kind, step)]
    return found


def has_parts(annotation: Any) -> bool:
    """Return whether a value of *annotation* may have parts with names."""
    return any(
        isinstance(kind, Mapping)
        or _is_mapping(kind)
        or is_typeddict(kind)
        or dataclasses.is_dataclass(kind)
        or _is_model(kind)
        for kind in members(annotation)
    )


def leaves(annotation: Any, steps: tuple[str, ...], depth: int = 0) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all simple values; *steps* selects the keys of dicts."""
    if not has_parts(annotation):
        yield ()
    if depth == _DEEPEST:
        return
    for kind in members(annotation):
        names: Iterable[str] = fields_of(kind) or ()
        if _is_mapping(kind):
            if not steps and not any(map(has_parts, get_args(kind)[1:])):
                # The keys of a dict of simple values are unknown: it is written as JSON.
                yield ()
                continue
            names = steps[:1] or (DEFAULT_CONNECTION,)
        for name in names:
            for inner in types_at(kind, (name,)):
                for rest in leaves(inner, steps[1:], depth + 1):
                    yield (name, *rest)


def without_union_tags(annotation: Any, location: Location) -> Location:
    """Return *location* without the names of union members, which pydantic inserts."""
    if len([kind for kind in members(annotation) if kind is not NoneType]) > 1:
        location = location[1:]
    if not location:
        return ()
    inner = [*types_at(annotation, location[:1]), Any][0]
    return (location[0], *without_union_tags(inner, location[1:]))


def decode(annotation: Any, value: Any) -> Any:
    """Return *value* with its texts converted as an operator writes them for *annotation*.

    Lists are JSON or commas, dicts JSON, `none` and `null` are None where that is allowed, enums
    and literals match in any case. Everything else is left to validation.

    Raises:
        ValueError: Text that begins like JSON is not JSON.
        RecursionError: It is too deep.
    """
    if isinstance(value, dict):
        inner = {key: [*types_at(annotation, (str(key),)), Any][0] for key in value}
        return {key: decode(inner[key], each) for key, each in value.items()}
    if not isinstance(value, str):
        return value
    kinds, text = members(annotation), value.strip()
    if NoneType in kinds and text.lower() in ("none", "null"):
        return None
    for choice in (each for kind in kinds for each in _choices(kind)):
        if str(choice).casefold() == text.casefold():
            return choice
    lists = [kind for kind in kinds if takes_list(kind)]
    if text.startswith("{") and has_parts(annotation):
        return decode(annotation, json.loads(text))
    if lists and (str not in kinds or text.startswith("[")):
        return _decode_items(lists[0], split_list(text))
    return value


def unknown_keys(annotation: Any, value: Any, path: Location = ()) -> Iterator[Location]:
    """Yield the paths of the keys in *value* that *annotation* does not have."""
    if isinstance(value, dict) and has_parts(annotation):
        for key, each in value.items():
            inner = types_at(annotation, (str(key),))
            if not inner:
                yield (*path, str(key))
            else:
                yield from unknown_keys(inner[0], each, (*path, str(key)))


def input_names(name: str, field: FieldInfo, prefix: str, config: Mapping[str, Any]) -> list[str]:
    """Return the names that set *field*: its aliases without prefix, else its own name."""
    alias = field.validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias] if alias else []
    names = [str(each.path[0]) if isinstance(each, AliasPath) else each for each in choices]
    if not names or config.get("populate_by_name") or config.get("validate_by_name"):
        names.append(prefix + name)
    return names


def _inside(kind: Any, step: str | int) -> list[Any]:
    """Return the types of the part *step* of a type that is no union."""
    fields = fields_of(kind)
    if fields is not None:
        return [hint for name, hint in fields.items() if name.lower() == str(step).lower()]
    if _is_mapping(kind):
        return [get_args(kind)[-1] if get_args(kind) else Any]
    if isinstance(step, int):
        return [*get_args(kind)[:1]]
    return [Any] if kind in (Any, object) or has_parts(kind) else []


def _target(annotation: Any) -> Any:
    """Return the type that *annotation* is another name for; None if it is not an alias."""
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[0]
    return getattr(annotation, "__value__", None) or getattr(annotation, "__supertype__", None)


def _decode_items(kind: Any, items: Any) -> Any:
    types = [each for each in get_args(kind) if each is not Ellipsis]
    # The items of tuple[int, str] have different types, which validation converts.
    if not isinstance(items, list) or len(set(map(repr, types))) != 1:
        return items
    return [decode(types[0], item) for item in items]


def _choices(kind: Any) -> list[Any]:
    """Return the values of an enum or a literal; none for any other type."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [member.value for member in kind]
    return list(get_args(kind)) if get_origin(kind) is Literal else []


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_mapping(kind: Any) -> bool:
    kind = get_origin(kind) or kind
    return isinstance(kind, type) and issubclass(kind, Mapping) and not is_typeddict(kind)
