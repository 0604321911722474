"""Validate values, and explain what is wrong with them without any part of the body."""

import codecs
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, SchemaError, SchemaValidator

from workerkit.errors import InvalidBody
from workerkit.safe_text import excerpt

Decode = Callable[[Any], Any]

MOST_FINDINGS = 5
"""The largest number of faults of one body that are named; the others are counted."""

LONGEST_FINDING = 1024
TOO_DEEP = "the body: it is nested too deeply"
# Creating the details takes pydantic 2 µs for each fault, and it creates those of all faults.
_MANY_FINDINGS = 1000
_COLLECTIONS = frozenset({"list", "tuple", "set", "frozenset"})
# Parts of a schema that hold objects of the user's.
_NO_SCHEMAS = frozenset({"cls", "config", "default", "expected", "members", "metadata"})
BOM = "\ufeff"
# Replacements for texts of pydantic that contain input of the sender.
_SAFE_TEXTS = {
    "union_tag_invalid": "Input tag is none of the expected ones",
    "extra_forbidden": "There is no such field",
    "uuid_parsing": "Input should be a valid UUID",
}


def without_bom(raw: bytes | str) -> bytes | str | None:
    """Return what follows a byte order mark; None without one."""
    if isinstance(raw, str):
        return raw[1:] if raw.startswith(BOM) else None
    return raw[3:] if raw.startswith(codecs.BOM_UTF8) else None


def validating(
    validator: TypeAdapter[Any], validate: Callable[[Any], Any], *, json: bool = False
) -> Decode:
    """Create the function that validates a body, and raises `InvalidBody` with its findings.

    Args:
        validate: Validates JSON, or Python values.
        json: It validates JSON.
    """
    fields = frozenset(_fields(validator.core_schema))
    choices = frozenset(_choices(validator.core_schema))
    fail_fast = functools.cache(functools.partial(_fail_fast, validator, json))

    def validated(raw: Any, may_have_bom: bool = json) -> Any:
        try:
            return validate(raw)
        except ValidationError as error:
            # Only after an error, because the check would slow down every body.
            if may_have_bom and (plain := without_bom(raw)) is not None:
                return validated(plain, False)
            count = error.error_count()
            if count > _MANY_FINDINGS:
                error = _first_error(fail_fast(), raw) or error
            details = _details(error)
            keys = frozenset(_keys(details, raw)) if not json else frozenset()
            findings = [
                (_place(each["loc"], fields, choices, keys), worded(each)) for each in details
            ]
            is_json = details[0]["type"] != "json_invalid"
            text, more = explain(findings, count), count - len(findings)
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
    return excerpt(_SAFE_TEXTS.get(finding["type"], finding["msg"]), LONGEST_FINDING)


def explain(findings: Sequence[tuple[str, str]], count: int) -> str:
    """Return *findings* as one text, with the number of those that are not among them."""
    texts = [f"{place}: {text}" for place, text in findings]
    if more := count - len(findings):
        texts.append(f"and {more:,} more")
    return "; ".join(texts)


def _keys(details: Sequence[ErrorDetails], value: Any) -> Iterator[tuple[int | str, ...]]:
    """Yield the locations that end in a number that is a key of the sender's, not an index."""
    for each in details:
        inside, loc = value, each["loc"]
        for end, step in enumerate(loc, 1):
            if isinstance(inside, Mapping) and type(step) is int:
                yield loc[:end]
            try:
                inside = inside[step]
            except (LookupError, TypeError):
                continue  # The name of a member of a union, which is no part of the value.


def _place(
    steps: tuple[int | str, ...],
    fields: Collection[str],
    choices: Collection[str],
    keys: Collection[tuple[int | str, ...]],
) -> str:
    known = []
    for end, step in enumerate(steps, 1):
        if (isinstance(step, int) or step in fields) and steps[:end] not in keys:
            known.append(str(step))
        # Such as `int`, `constrained-int`, `list[int]`.
        elif str(step).removeprefix("constrained-").partition("[")[0] not in choices:
            known.append("[key]")
    return excerpt(".".join(known), LONGEST_FINDING) or "the body"


def is_strict(validator: TypeAdapter[Any]) -> bool:
    """Return whether a part of a type takes no other type of Python than its own."""
    return _has_strict(validator.core_schema)


def _has_strict(schema: Any) -> bool:
    if isinstance(schema, dict):
        return schema.get("strict") is True or any(map(_has_strict, schema.values()))
    return isinstance(schema, list | tuple) and any(map(_has_strict, schema))
