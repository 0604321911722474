"""An example of a body, for a command that somebody can copy."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

_MOST_LEVELS = 10
_VALUES: Mapping[str, object] = {
    "string": "text",
    "boolean": True,
    "array": [],
    "null": None,
}


def example(body: Any) -> str:
    """Return a body that is read as the type *body*, as far as its JSON schema tells.

    Only fields without a default are in it.
    """
    if body in (bytes, str):
        return "text"
    try:
        schema = TypeAdapter(body).json_schema()
    except PydanticUserError:
        return "{}"
    return json.dumps(_value(schema, schema.get("$defs", {}), _MOST_LEVELS))


def _value(schema: Mapping[str, Any], definitions: Mapping[str, Any], levels: int) -> Any:
    """A value that fits a schema."""
    if not levels:  # A type that contains itself.
        return None
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    for given in ("examples", "enum"):
        if schema.get(given):
            return schema[given][0]
    for given in ("const", "default"):
        if given in schema:
            return schema[given]
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return _value(options[0], definitions, levels - 1)
    kind = schema.get("type", "object")
    if kind in ("integer", "number"):
        return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    if kind != "object":
        return _VALUES[kind]
    fields = schema.get("properties", {})
    return {
        name: _value(fields[name], definitions, levels - 1)
        for name in schema.get("required", ())
        if name in fields
    }
