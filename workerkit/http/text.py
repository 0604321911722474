"""Values that are written as text, as those of paths, queries, headers and cookies are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import CoreSchema, SchemaValidator, core_schema, to_json, to_jsonable_python

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
