"""The OpenAPI 3.1 document of the views, from the same signatures that read their requests."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from inspect import cleandoc
from itertools import count
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from workerkit.codec import JSON
from workerkit.config.sections import OpenAPISettings
from workerkit.http.auth import Auth, auth_by_verb
from workerkit.http.form import RequestForm
from workerkit.http.json_body import RequestBody
from workerkit.http.parameters import ParameterLocation, RequestParameter
from workerkit.http.return_type import ReturnType
from workerkit.http.schemas import Schemas
from workerkit.http.signature import RequestSignature
from workerkit.http.upload import BINARY
from workerkit.http.view import (
    HTTPOptions,
    has_etag,
    path_patterns,
    security_requirements,
    statuses,
    verbs_of,
    without_names,
)
from workerkit.problem_details import PROBLEM
from workerkit.transport import Declared

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
_FORM_PROBLEMS = {
    **_BODY_PROBLEMS,
    "400": "The form is malformed, or missing",
    "413": "The form, or a field of it, is too large",
}
_AUTH_PROBLEMS = {
    "400": "The credentials are malformed",
    "401": "The client is not authenticated",
    "403": "The client may not do this",
}
_TEXT = {"type": "string"}
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
    auth: Auth | None
    has_etag: bool


def document(views: Sequence[Declared], settings: OpenAPISettings | None = None) -> dict[str, Any]:
    """Return the OpenAPI document of *views*, the declarations of `HTTPView` classes."""
    settings = settings or OpenAPISettings()
    operations = [each for view in views for each in _operations(view)]
    schemas = Schemas()
    for each in operations:
        for value in each.signature.parameters:
            schemas.add(value.adapter, "validation")
        if (body := each.signature.body) is not None:
            schemas.add(body.described, "validation")
        for described in each.returned.described:
            schemas.add(described, "serialization")
    schemas.build()
    schemes, names = _security_schemes(operations, settings)
    return {
        "openapi": VERSION,
        "info": _info(views, settings),
        # `/` is the standard's default: the server that serves the document.
        "servers": [{"url": each} for each in settings.servers or ("/",)],
        # An empty list: views require nothing unless they declare `security` themselves.
        "security": [{name: []} for name in settings.security],
        "tags": [_tag(view) for view in views],
        "paths": _paths(operations, schemas, names),
        "components": {
            "schemas": {**schemas.definitions, _PROBLEM: _PROBLEM_SCHEMA},
            **({"securitySchemes": schemes} if schemes else {}),
        },
    }


def _operations(view: Declared) -> Iterator[_Operation]:
    options = view.options
    assert isinstance(options, HTTPOptions)
    status = statuses(view.consumer, view.signatures)
    verbs = verbs_of(view.signatures)
    required = security_requirements(view.consumer, verbs)
    auth = auth_by_verb(view.consumer, verbs)
    # A verb that needs nothing is an exception from the security of the settings.
    required = {**{verb: [] for verb, each in auth.items() if each is None}, **required}
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
                    auth.get(verb),
                    has_etag(view.consumer, verb),
                )


def _security_schemes(
    operations: Sequence[_Operation], settings: OpenAPISettings
) -> tuple[dict[str, Any], dict[Auth, str]]:
    """Return the security schemes by name, and the name for the `auth` of each view.

    A scheme of the settings replaces the one of that name, for instance to describe its flows.
    """
    schemes: dict[str, Any] = {}
    names: dict[Auth, str] = {}
    for auth in dict.fromkeys(each.auth for each in operations if each.auth is not None):
        free = (f"{auth.name}-{number}" for number in count(2))
        name = auth.name
        while schemes.setdefault(name, auth.scheme) != auth.scheme:
            name = next(free)
        names[auth] = name
    return {**schemes, **settings.security_schemes}, names


def _paths(
    operations: Sequence[_Operation], schemas: Schemas, names_of: Mapping[Auth, str]
) -> dict[str, dict[str, Any]]:
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
            item[verb] = _operation_object(each, names, schemas, names_of)
    return paths


def _add_mention(operation: _Operation, described: dict[str, Any]) -> None:
    """Mention an operation in the description of another one that has the same path."""
    summary = operation.doc.partition("\n")[0]
    text = f"A path that matches `{operation.route}` is handled by {operation.id}"
    texts = [described.get("description"), f"{text}: {summary}" if summary else f"{text}."]
    described["description"] = "\n\n".join(filter(None, texts))


def _operation_object(
    operation: _Operation,
    names: Mapping[str, str],
    schemas: Schemas,
    names_of: Mapping[Auth, str],
) -> dict[str, Any]:
    summary, _, description = operation.doc.partition("\n")
    described: dict[str, Any] = {"operationId": operation.id, "tags": [operation.tag]}
    # Pages list operations by their summaries.
    described["summary"] = summary or f"{operation.verb} {_template(operation.route)}"
    if description.strip():
        described["description"] = description.strip()
    if parameters := list(_parameters(operation, names, schemas)):
        described["parameters"] = parameters
    if (body := operation.signature.body) is not None:
        described["requestBody"] = {
            "required": body.required,
            "content": _content(body, schemas.get(body.described, "validation")),
        }
    if operation.security is not None:
        described["security"] = operation.security
    elif (auth := operation.auth) is not None:
        described["security"] = [{names_of[auth]: list(auth.scopes)}]
    described["responses"] = dict(_responses(operation, schemas))
    return described


def _content(body: RequestBody | RequestForm, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the media types of a body."""
    if isinstance(body, RequestBody):
        return {JSON: {"schema": schema}}
    media: dict[str, Any] = {"schema": schema}
    if body.files:
        media["encoding"] = {name: {"contentType": BINARY} for name in sorted(body.files)}
    return dict.fromkeys(body.content_types, media)


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
    if operation.has_etag:
        yield {"name": "If-None-Match", "in": "header", "required": False, "schema": _TEXT}


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
    tag = {"headers": {"ETag": {"schema": _TEXT}}} if operation.has_etag else {}
    for status, body in operation.returned.responses.items():
        content = {
            type_: {} if each is None else {"schema": schemas.get(each, "serialization")}
            for type_, each in body.items()
        }
        more = {**({"content": content} if content else {}), **(tag if status == "200" else {})}
        yield status, {"description": "Done", **more}
    if operation.has_etag:
        yield "304", {"description": "The client has the current representation", **tag}
    problems: dict[str, str] = {}
    if operation.auth is not None:
        problems |= _AUTH_PROBLEMS
    if isinstance(signature.body, RequestForm):
        problems |= _FORM_PROBLEMS
    elif signature.body is not None:
        problems |= _BODY_PROBLEMS
    if signature.parameters or signature.body is not None:
        problems["422"] = "A part of the request is invalid"
    for status, text in sorted(problems.items()):
        headers = {"headers": {"WWW-Authenticate": {"schema": _TEXT}}} if status == "401" else {}
        yield status, {**_problem(text), **headers}
    if not problems:
        # Every operation documents what its clients may do wrong.
        refused = "The request is refused"
        yield "4XX", {"description": refused} if operation.returned.is_open else _problem(refused)
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


def _info(views: Sequence[Declared], settings: OpenAPISettings) -> dict[str, Any]:
    package = views[0].consumer.__module__.partition(".")[0] if views else "workerkit"
    info: dict[str, Any] = {
        "title": settings.title or package,
        "version": _version(package) if settings.version is None else settings.version,
    }
    if settings.description:
        info["description"] = settings.description
    if expression := settings.license or _metadata(package, "License-Expression"):
        info["license"] = {"name": expression, "identifier": expression}
    return info


def _version(package: str) -> str:
    found = getattr(sys.modules.get(package), "__version__", None)
    return str(found or _metadata(package, "Version") or "0")


def _metadata(package: str, field: str) -> str:
    """Return a field of the distribution with the name of a package; empty if there is none."""
    try:
        return next(iter(distribution(package).metadata.get_all(field, ())), "")
    except (PackageNotFoundError, ValueError):
        return ""


def _tag(view: Declared) -> dict[str, str]:
    doc = _doc(view)
    return {"name": view.options.name, **({"description": doc} if doc else {})}


def _doc(view: Declared) -> str:
    # Not getdoc(), which would return the docstring of the base class.
    return cleandoc(view.consumer.__doc__ or "")
