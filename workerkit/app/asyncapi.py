"""The AsyncAPI 3.0 document: what the classes of an application receive, and what they publish."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from inspect import cleandoc
from typing import Any

from pydantic.errors import PydanticInvalidForJsonSchema

from workerkit.app.assembly import Assembly
from workerkit.asyncapi import Channel, DescribesReceiving, Message, Operation, Server
from workerkit.codec import (
    JSON,
    UnknownType,
    adapter,
    holds_struct,
    is_bytes,
    is_protobuf,
    is_verbatim,
)
from workerkit.config.sections import OpenAPISettings
from workerkit.http.schemas import Mode, Schemas
from workerkit.transport import Declared

VERSION = "3.0.0"

_NOT_IN_KEY = re.compile(r"[^A-Za-z0-9_.-]+")
_CORRELATION_ID = {"location": "$message.header#/correlation_id"}
_REPLY_TO = {"location": "$message.header#/reply_to"}
_OF_SCHEMAS = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs"})
_OF_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_OF_ONE = frozenset(
    {"items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else"}
)


def document(assembly: Assembly) -> dict[str, Any]:
    """Return the AsyncAPI document of an application, for the present settings."""
    described = list(_operations(assembly))
    made = _Document(described)
    found = made.operations()
    schemas = {name: draft_7(each) for name, each in made.schemas.definitions.items()}
    return {
        "asyncapi": VERSION,
        "info": _info(assembly.declared, assembly.settings.http.openapi),
        "defaultContentType": JSON,
        "servers": made.servers.values,
        "channels": made.channels.values,
        "operations": found,
        "components": {"schemas": schemas, "messages": made.messages.values},
    }


def _operations(assembly: Assembly) -> Iterator[tuple[Declared, Operation]]:
    """Yield the operations with their consumers: first all that declare the queues they receive."""
    settings = assembly.settings
    for transport, declared in assembly.transports:
        if isinstance(transport, DescribesReceiving):
            for each in declared:
                yield from ((each, found) for found in transport.receives(each, settings))
    for publisher in assembly.describing:
        for each in assembly.declared:
            yield from ((each, found) for found in publisher.sends(each, settings))


class _Keys:
    """Objects of the document by keys that are unique and valid."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {}
        self._known: dict[Any, str] = {}

    def add(self, name: str, value: dict[str, Any], identity: Any = None) -> str:
        """Return the key of *value*, or of what was added with the same identity.

        Without an identity, it is that of an equal value.
        """
        if identity is None:
            equal = (key for key, each in self.values.items() if each == value)
            known = next(equal, None)
        else:
            known = self._known.get(identity)
        if known is not None:
            return known
        wanted = _NOT_IN_KEY.sub("-", name).strip("-") or "unnamed"
        key, number = wanted, 1
        while key in self.values:
            number += 1
            key = f"{wanted}-{number}"
        self.values[key] = value
        if identity is not None:
            self._known[identity] = key
        return key


class _Document:
    """The parts of the document, which refer to each other.

    Args:
        described: The operations, each with its consumer.
    """

    def __init__(self, described: Sequence[tuple[Declared, Operation]]) -> None:
        self.schemas = Schemas()
        self.servers = _Keys()
        self.channels = _Keys()
        self.messages = _Keys()
        self._described = described
        # The schemas of all types are built at once, so that their names are unique.
        self._types: dict[tuple[int, Mode], Any] = {}
        for _, operation in described:
            mode: Mode = "validation" if operation.action == "receive" else "serialization"
            for message in operation.messages:
                self._add_type(message, mode)
            for message in operation.replies:
                self._add_type(message, "serialization")
        self.schemas.build()

    def operations(self) -> dict[str, Any]:
        """Return the operations, and fill the other parts."""
        found = _Keys()
        for declared, operation in self._described:
            mode: Mode = "validation" if operation.action == "receive" else "serialization"
            described: dict[str, Any] = {
                "action": operation.action,
                "title": declared.options.name,
                **_texts(cleandoc(declared.consumer.__doc__ or "")),
            }
            described |= self._messages_of(operation.channel, operation.messages, mode)
            if operation.replies:
                described["reply"] = self._reply(operation)
            if operation.bindings:
                described["bindings"] = operation.bindings
            described |= operation.extensions
            found.add(operation.name, described, (id(declared), operation.channel.key))
        return found.values

    def _reply(self, operation: Operation) -> dict[str, Any]:
        channel = Channel(
            key=(*operation.channel.key, operation.name),
            name=f"{operation.name}.reply",
            address=None,
            servers=operation.channel.servers,
        )
        return {"address": _REPLY_TO} | self._messages_of(
            channel, operation.replies, "serialization"
        )

    def _messages_of(
        self, channel: Channel, messages: Sequence[Message], mode: Mode
    ) -> dict[str, Any]:
        """Return the references to a channel and to its messages, and add what is new."""
        key = self.channels.add(channel.name, self._channel(channel), channel.key)
        known = self.channels.values[key]["messages"]
        references = []
        for message in messages:
            own = self.messages.add(message.name, self._message(message, mode))
            known[own] = {"$ref": f"#/components/messages/{own}"}
            references.append({"$ref": f"#/channels/{key}/messages/{own}"})
        return {"channel": {"$ref": f"#/channels/{key}"}, "messages": references}

    def _channel(self, channel: Channel) -> dict[str, Any]:
        servers = [self.servers.add(each.name, _server(each)) for each in channel.servers]
        described: dict[str, Any] = {
            "address": channel.address,
            "title": channel.name,
            "servers": [{"$ref": f"#/servers/{each}"} for each in servers],
            "messages": {},
        }
        if channel.parameters:
            described["parameters"] = {
                name: {"description": text} for name, text in channel.parameters.items()
            }
        if channel.bindings:
            described["bindings"] = channel.bindings
        return {**described, **channel.extensions}

    def _message(self, message: Message, mode: Mode) -> dict[str, Any]:
        content_type, payload = self._encoded_schema(message.type, mode)
        described: dict[str, Any] = {
            "name": message.name,
            "title": message.name,
            "contentType": message.content_type or content_type,
            "payload": payload,
        }
        if message.headers is not None:
            described["headers"] = message.headers
        if message.correlated:
            described["correlationId"] = _CORRELATION_ID
        if message.bindings:
            described["bindings"] = message.bindings
        return {**described, **message.extensions}

    def _add_type(self, message: Message, mode: Mode) -> None:
        type_ = message.type
        if (id(type_), mode) in self._types or is_protobuf(type_) or is_bytes(type_):
            return
        if holds_struct(type_):
            found: Any = type_
        else:
            try:
                found = adapter(type_)
                found.json_schema(mode=mode)
            except (UnknownType, PydanticInvalidForJsonSchema):
                # A codec of the application can read it, but no schema describes it.
                return
        self._types[id(type_), mode] = found
        self.schemas.add(found, mode)

    def _encoded_schema(self, type_: Any, mode: Mode) -> tuple[str, dict[str, Any]]:
        """Return the content type and the schema of a type."""
        if is_protobuf(type_):
            return "application/x-protobuf", {"x-protobuf": type_.DESCRIPTOR.full_name}
        if is_bytes(type_):
            return "application/octet-stream", {"type": "string", "format": "binary"}
        known = self._types.get((id(type_), mode))
        schema = {} if known is None else draft_7(self.schemas.get(known, mode))
        return "text/plain" if is_verbatim(type_) else JSON, schema


def draft_7(schema: Any) -> Any:
    """Return a schema of JSON Schema 2020-12 as AsyncAPI 3.0 has it: draft 7."""
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _OF_SCHEMAS and isinstance(value, Mapping):
            found[keyword] = {name: draft_7(each) for name, each in value.items()}
        elif keyword in _OF_LISTS and isinstance(value, list):
            found[keyword] = [draft_7(each) for each in value]
        elif keyword in _OF_ONE:
            found[keyword] = draft_7(value)
        elif keyword == "discriminator" and isinstance(value, Mapping):
            found[keyword] = value["propertyName"]
        else:
            found[keyword] = value
    if "prefixItems" in found:
        rest = found.pop("items", None)
        found["items"] = found.pop("prefixItems")
        found |= {} if rest is None else {"additionalItems": rest}
    if "$ref" in found and len(found) > 1:
        # Draft 7 ignores what stands beside a reference.
        found = {"allOf": [{"$ref": found.pop("$ref")}], **found}
    return found


def _server(server: Server) -> dict[str, Any]:
    described = {"host": server.host, "protocol": server.protocol}
    if server.version:
        described["protocolVersion"] = server.version
    if server.path:
        described["pathname"] = server.path
    return described


def _texts(doc: str) -> dict[str, str]:
    summary, _, description = doc.partition("\n")
    found = {"summary": summary, "description": description.strip()}
    return {name: text for name, text in found.items() if text}


def _info(declared: Sequence[Declared], settings: OpenAPISettings) -> dict[str, str]:
    package = declared[0].consumer.__module__.partition(".")[0] if declared else "workerkit"
    version = getattr(sys.modules.get(package), "__version__", "0")
    info = {
        "title": settings.title or package,
        "version": str(version) if settings.version is None else settings.version,
    }
    return {**info, **({"description": text} if (text := settings.description) else {})}
