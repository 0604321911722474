"""Values that are written as text, as those of paths, queries, headers and cookies are."""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import CoreSchema, SchemaValidator, core_schema, to_json, to_jsonable_python


def text_validator(adapter: TypeAdapter[Any]) -> SchemaValidator:
    """Make what reads the texts of a type: `validate_strings` one, `validate_python` a list.

    Pydantic's own finds no `Literal[10]` and no member of an enum in a text, and reads the elements
    of a list otherwise than it reads them alone: "3" as an `int | str`. Here a text is that member
    which JSON writes like that, and each element is read as one that is alone.
    """
    return SchemaValidator(_of_text(adapter.core_schema, ()))


def _of_text(schema: Any, known: Sequence[CoreSchema]) -> Any:
    """A schema of pydantic's, with the parts in it that read texts in another way.

    Args:
        known: The schemas that it may refer to.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(_of_text(each, known) for each in schema)
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind in ("literal", "enum"):
        members = schema["expected"] if kind == "literal" else schema["members"]
        return _read_by(_member_of(members, SchemaValidator(schema)), schema)
    if kind == "definitions":
        known = _of_text(schema["definitions"], ())
    made = {key: _of_text(each, known) for key, each in schema.items() if key != "metadata"}
    if isinstance(items := made.get("items_schema"), list):
        made["items_schema"] = [_alone(each, known) for each in items]
    elif items is not None:
        made["items_schema"] = _alone(items, known)
    return made


def _member_of(members: Sequence[Any], validator: SchemaValidator) -> Callable[[Any], Any]:
    written = {_written(each): each for each in members}

    def read(text: Any) -> Any:
        return written[text] if text in written else validator.validate_strings(text)

    return read


def _alone(schema: CoreSchema, known: Sequence[CoreSchema]) -> CoreSchema:
    whole = core_schema.definitions_schema(schema, list(known)) if known else schema
    return _read_by(SchemaValidator(whole).validate_strings, {})


def _read_by(read: Callable[[Any], Any], replaced: CoreSchema | dict[str, Any]) -> CoreSchema:
    return core_schema.no_info_plain_validator_function(read, ref=replaced.get("ref"))


def _written(member: Any) -> str:
    plain = to_jsonable_python(member, fallback=str)
    return plain if isinstance(plain, str) else to_json(plain).decode()
