"""The JSON Schemas of the types in a document."""

from typing import Any, Literal

from pydantic import TypeAdapter

Mode = Literal["validation", "serialization"]

_REF = "#/components/schemas/{model}"


class Schemas:
    """The schemas of all types, built at once so that each name is unique.

    Attributes:
        definitions: The schemas of named types.
    """

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self._types: dict[tuple[int, Mode], Any] = {}
        self._schemas: dict[tuple[int, Mode], dict[str, Any]] = {}

    def add(self, type_: Any, mode: Mode) -> None:
        """Add a `TypeAdapter`, or a type that contains a `msgspec.Struct`."""
        self._types[id(type_), mode] = type_

    def build(self) -> None:
        """Build the schemas of all types that were added."""
        adapters: list[tuple[int, Mode, TypeAdapter[Any]]] = []
        structs = {}
        for (key, mode), type_ in self._types.items():
            if isinstance(type_, TypeAdapter):
                adapters.append((key, mode, type_))
            else:
                structs[key, mode] = type_
        if adapters:
            schemas, common = TypeAdapter.json_schemas(adapters, ref_template=_REF)
            self._schemas.update(schemas)
            self.definitions.update(common.get("$defs", {}))
        if structs:
            import msgspec

            found, named = msgspec.json.schema_components(
                structs.values(), ref_template=_REF.replace("model", "name")
            )
            self._schemas.update(zip(structs, found, strict=True))
            self.definitions.update(named)

    def get(self, type_: Any, mode: Mode) -> dict[str, Any]:
        """Return the schema of a type that was added."""
        return dict(self._schemas[id(type_), mode])
