"""JSON schemas of many types in one document, each named type in it once."""

from typing import Any, Literal

from pydantic import TypeAdapter

Mode = Literal["validation", "serialization"]

_REF = "#/components/schemas/{model}"


class Schemas:
    """Collects types, then makes the schemas of all of them at once, so that names are agreed on.

    Attributes:
        definitions: The schemas of types with names.
    """

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self._wanted: dict[tuple[int, Mode], Any] = {}
        self._made: dict[tuple[int, Mode], dict[str, Any]] = {}

    def want(self, type_: Any, mode: Mode) -> None:
        """Ask for the schema of a `TypeAdapter`, or of a type with a `msgspec.Struct` in it."""
        self._wanted[id(type_), mode] = type_

    def make(self) -> None:
        """Make what was asked for."""
        adapters: list[tuple[int, Mode, TypeAdapter[Any]]] = []
        structs = {}
        for (key, mode), type_ in self._wanted.items():
            if isinstance(type_, TypeAdapter):
                adapters.append((key, mode, type_))
            else:
                structs[key, mode] = type_
        if adapters:
            made, common = TypeAdapter.json_schemas(adapters, ref_template=_REF)
            self._made.update(made)
            self.definitions.update(common.get("$defs", {}))
        if structs:
            import msgspec

            found, named = msgspec.json.schema_components(
                structs.values(), ref_template=_REF.replace("model", "name")
            )
            self._made.update(zip(structs, found, strict=True))
            self.definitions.update(named)

    def of(self, type_: Any, mode: Mode) -> dict[str, Any]:
        """The schema of a type that was asked for."""
        return dict(self._made[id(type_), mode])
