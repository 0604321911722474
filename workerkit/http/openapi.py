"""The OpenAPI 3.1 document of the views, from the same signatures that read their requests."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError, to_jsonable_python

from workerkit.codec import JSON
from workerkit.config.sections import OpenAPISettings
from workerkit.http.parameters import ParameterLocation, RequestParameter
from workerkit.http.return_type import ReturnType
from workerkit.http.signature import RequestSignature
from workerkit.http.view import (
    HTTPOptions,
    path_patterns,
    security_requirements,
    statuses,
    verbs_of,
    without_names,
)
from workerkit.problem_details import PROBLEM
from workerkit.transport import Declared

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


VERSION = "3.1.0"

# No class can have this name, so it cannot clash with a model.
_PROBLEM = "problem-json"
_PROBLEM_SCHEMA = {
    "type": "object",
    "description": "An error according to RFC 9457.",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["in", "name", "detail"],
                "properties": {
                    "in": {"enum": ["path", "query", "header", "cookie", "body"]},
                    "name": {"type": "string"},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}
_BODY_PROBLEMS = {
    "400": "The body is not JSON, or missing",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "415": "The body has another content type",
}
_ANY_PROBLEM = "Any other error"


@dataclass(frozen=True, slots=True)
class _Operation:
    """One verb of one route."""

    id: str
    route: str
    verb: str
    tag: str
    signature: RequestSignature
    returned: ReturnType
    doc: str
    security: list[dict[str, list[str]]] | None


def document(views: Sequence[Declared], settings: OpenAPISettings | None = None) -> dict[str, Any]:
    """Return the OpenAPI document of *views*, the declarations of `HTTPView` classes."""
    settings = settings or OpenAPISettings()
    operations = [each for view in views for each in _operations(view)]
    schemas = Schemas()
    for each in operations:
        for value in each.signature.parameters:
            schemas.add(value.adapter, "validation")
        if (body := each.signature.body) is not None:
            schemas.add(body.adapter or body.type, "validation")
        for described in each.returned.described:
            schemas.add(described, "serialization")
    schemas.build()
    return {
        "openapi": VERSION,
        "info": _info(views, settings),
        # `/` is the standard's default: the server that serves the document.
        "servers": [{"url": each} for each in settings.servers or ("/",)],
        # An empty list: views require nothing unless they declare `security` themselves.
        "security": [{name: []} for name in settings.security],
        "tags": [_tag(view) for view in views],
        "paths": _paths(operations, schemas),
        "components": {
            "schemas": {**schemas.definitions, _PROBLEM: _PROBLEM_SCHEMA},
            **({"securitySchemes": schemes} if (schemes := settings.security_schemes) else {}),
        },
    }


def _operations(view: Declared) -> Iterator[_Operation]:
    options = view.options
    assert isinstance(options, HTTPOptions)
    status = statuses(view.consumer, view.signatures)
    required = security_requirements(view.consumer, verbs_of(view.signatures))
    for signature in view.signatures.values():
        assert isinstance(signature, RequestSignature)
        for verb in signature.verbs:
            returned = ReturnType(signature.returns, status[verb])
            for number, route in enumerate(options.routes, 1):
                suffix = f"_{number}" if number > 1 else ""
                yield _Operation(
                    f"{options.name}_{verb.lower()}{suffix}",
                    route,
                    verb,
                    options.name,
                    signature,
                    returned,
                    signature.doc or _doc(view),
                    required.get(verb),
                )


def _paths(operations: Sequence[_Operation], schemas: Schemas) -> dict[str, dict[str, Any]]:
    """Return the operations by path and verb.

    For OpenAPI, paths that differ only in the names or patterns of their parameters are the same
    path. It gets the names of the first one, and one operation for each verb.
    """
    paths: dict[str, dict[str, Any]] = {}
    first: dict[str, str] = {}
    for each in operations:
        template = _template(each.route)
        path = first.setdefault(without_names(template), template)
        names = dict(zip(path_patterns(template), path_patterns(path), strict=True))
        item, verb = paths.setdefault(path, {}), each.verb.lower()
        if verb in item:
            _add_mention(each, item[verb])
        else:
            item[verb] = _operation_object(each, names, schemas)
    return paths


def _add_mention(operation: _Operation, described: dict[str, Any]) -> None:
    """Mention an operation in the description of another one that has the same path."""
    summary = operation.doc.partition("\n")[0]
    text = f"A path that matches `{operation.route}` is handled by {operation.id}"
    texts = [described.get("description"), f"{text}: {summary}" if summary else f"{text}."]
    described["description"] = "\n\n".join(filter(None, texts))


def _operation_object(
    operation: _Operation, names: Mapping[str, str], schemas: Schemas
) -> dict[str, Any]:
    summary, _, description = operation.doc.partition("\n")
    described: dict[str, Any] = {"operationId": operation.id, "tags": [operation.tag]}
    if summary:
        described["summary"] = summary
    if description.strip():
        described["description"] = description.strip()
    if parameters := list(_parameters(operation, names, schemas)):
        described["parameters"] = parameters
    if (body := operation.signature.body) is not None:
        schema = schemas.get(body.adapter or body.type, "validation")
        described["requestBody"] = {
            "required": body.required,
            "content": {JSON: {"schema": schema}},
        }
    if operation.security is not None:
        described["security"] = operation.security
    described["responses"] = dict(_responses(operation, schemas))
    return described


def _parameters(
    operation: _Operation, names: Mapping[str, str], schemas: Schemas
) -> Iterator[dict[str, Any]]:
    patterns = path_patterns(operation.route)
    for value in operation.signature.parameters:
        if value.part is ParameterLocation.PATH:
            if value.name not in patterns:
                continue
            schema = _without_null(schemas.get(value.adapter, "validation"))
            schema = _with_pattern(schema, patterns.pop(value.name))
        else:
            schema = {**_without_null(schemas.get(value.adapter, "validation")), **_default(value)}
        yield {
            "name": names[value.name] if value.part is ParameterLocation.PATH else value.name,
            "in": value.part.value,
            "required": value.required or value.part is ParameterLocation.PATH,
            "schema": schema,
        }
    for name, pattern in patterns.items():
        schema = _with_pattern({"type": "string"}, pattern)
        yield {"name": names[name], "in": "path", "required": True, "schema": schema}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without the alternative `null`: a value is omitted, never sent as null."""
    if isinstance(items := schema.get("items"), dict):
        schema = {**schema, "items": _without_null(items)}
    if (alternatives := schema.get("anyOf")) is None:
        return schema
    left = [_without_null(each) for each in alternatives if each != {"type": "null"}]
    others = {name: part for name, part in schema.items() if name != "anyOf"}
    # Keywords next to `$ref` apply to the whole schema, as in JSON Schema 2020-12.
    return {**left[0], **others} if len(left) == 1 else {**others, "anyOf": left}


def _with_pattern(schema: dict[str, Any], pattern: str) -> dict[str, Any]:
    if not pattern or schema.get("type") != "string" or "pattern" in schema:
        return schema
    return {**schema, "pattern": f"^(?:{pattern})$"}


def _default(value: RequestParameter) -> dict[str, Any]:
    if value.required or value.default is None:
        return {}
    try:
        return {"default": to_jsonable_python(value.default)}
    except PydanticSerializationError:
        return {}


def _responses(operation: _Operation, schemas: Schemas) -> Iterator[tuple[str, Any]]:
    signature = operation.signature
    for status, body in operation.returned.responses.items():
        content = {
            type_: {} if each is None else {"schema": schemas.get(each, "serialization")}
            for type_, each in body.items()
        }
        yield status, {"description": "Done", **({"content": content} if content else {})}
    if signature.body is not None:
        for status, text in _BODY_PROBLEMS.items():
            yield status, _problem(text)
    if signature.parameters or signature.body is not None:
        yield "422", _problem("A part of the request is invalid")
    if operation.returned.is_open:
        yield "default", {"description": "Any other response of the view"}
    else:
        yield "default", _problem(_ANY_PROBLEM)


def _problem(description: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{_PROBLEM}"}
    return {"description": description, "content": {PROBLEM: {"schema": schema}}}


def _template(route: str) -> str:
    """Return a route without its regular expressions."""
    for name, pattern in path_patterns(route).items():
        route = route.replace(f"{{{name}:{pattern}}}", f"{{{name}}}")
    return route


def _info(views: Sequence[Declared], settings: OpenAPISettings) -> dict[str, str]:
    package = views[0].consumer.__module__.partition(".")[0] if views else "workerkit"
    version = getattr(sys.modules.get(package), "__version__", "0")
    info = {
        "title": settings.title or package,
        "version": str(version) if settings.version is None else settings.version,
    }
    return {**info, **({"description": text} if (text := settings.description) else {})}


def _tag(view: Declared) -> dict[str, str]:
    doc = _doc(view)
    return {"name": view.options.name, **({"description": doc} if doc else {})}


def _doc(view: Declared) -> str:
    # Not getdoc(), which would return the docstring of the base class.
    return cleandoc(view.consumer.__doc__ or "")
