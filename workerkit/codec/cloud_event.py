"""CloudEvents 1.0: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md."""

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import NoneType
from typing import Any, ClassVar, Generic, cast, get_args, get_origin
from uuid import uuid4

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, SchemaSerializer, from_json, to_json
from pydantic_core.core_schema import any_schema, plain_serializer_function_ser_schema
from typing_extensions import TypeVar

from workerkit.codec.body_types import is_protobuf, is_verbatim
from workerkit.codec.codecs import BUILT_IN, BodyReader, Codecs, Encoded, is_json, label_of
from workerkit.codec.encoding import JSON
from workerkit.codec.findings import MOST_FINDINGS, Decode, explain, without_bom
from workerkit.config.annotations import members
from workerkit.errors import InvalidBody

STRUCTURED = "application/cloudevents+json"
STRUCTURED_IN_ANY = "application/cloudevents"
"""The start of the content types of structured mode, in any format."""
PREFIX = "cloudEvents_"
"""Of the headers that are written. JMS does not allow the colon of `cloudEvents:`."""

# The last one is that of Knative's binding for RabbitMQ.
_PREFIXES = (PREFIX, "cloudEvents:", "ce-")
_SPECVERSION = "1.0"
_REQUIRED = ("id", "source", "type")
_TEXTS = (*_REQUIRED, "subject", "dataschema", "datacontenttype")
_DATA = ("data", "data_base64")
_RESERVED = frozenset({*_TEXTS, *_DATA, "specversion", "time"})
_NAME = re.compile(r"[a-z0-9]+")
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,20})?([Zz]|[+-]\d\d:\d\d)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NO_HEADERS: Mapping[str, Any] = {}
_NOTHING: Any = None

T = TypeVar("T", default=Any)


def _structured_values(event: Any) -> Any:
    return from_json(write_event(event, STRUCTURED, BUILT_IN)[0].raw)


_SERIALIZATION = plain_serializer_function_ser_schema(_structured_values)


@dataclass(frozen=True, kw_only=True)
class CloudEvent(Generic[T]):
    """An event with the attributes of CloudEvents 1.0, and its data.

    As the first parameter of `handle`, `CloudEvent[Order]` reads both modes; `Publisher.publish`
    writes one.

    Attributes:
        type: What happened, such as `com.example.order.placed`.
        source: Where it happened, a URI reference. Unique together with `id`.
        data: The data; None where the event has none.
        id: A new one by default.
        subject: What it happened to, in the context of the source.
        time: When it happened, with a time zone; now by default.
        datacontenttype: The content type of the data; that of the value by default.
        dataschema: A URI of the schema of the data.
        extensions: Further attributes, by names of lower-case letters and digits.
    """

    type: str
    source: str
    data: T = _NOTHING
    id: str = field(default_factory=lambda: str(uuid4()))
    subject: str | None = None
    time: datetime | None = field(default_factory=lambda: datetime.now(UTC))
    datacontenttype: str | None = None
    dataschema: str | None = None
    extensions: Mapping[str, Any] = field(default_factory=dict)

    # Pydantic writes structured mode with it, also where an event is one of many values.
    __pydantic_serializer__: ClassVar[Any] = SchemaSerializer(
        any_schema(serialization=_SERIALIZATION)
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Write structured mode, such as in the response of an HTTP view."""
        schema: Any = handler(source)
        inner = schema
        while "schema" in inner and inner["type"] == "definitions":
            inner = inner["schema"]
        inner["serialization"] = _SERIALIZATION
        return cast(CoreSchema, schema)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe structured mode, which the body of an HTTP request has."""
        described = handler.resolve_ref_schema(handler(schema))
        found = described.get("properties", {})
        properties = {name: {"type": "string"} for name in _TEXTS if name in found}
        properties["specversion"] = {"const": _SPECVERSION}
        properties["time"] = {"type": "string", "format": "date-time"}
        properties["data"] = found.get("data", {})
        properties["data"].pop("default", None)
        properties["data_base64"] = {"type": "string", "contentEncoding": "base64"}
        described["properties"] = properties
        described["description"] = "An event of CloudEvents 1.0."
        described["required"] = ["specversion", *_REQUIRED]
        return described


def cloud_event_headers() -> dict[str, Any]:
    """Return the JSON schema of the headers of an event in binary mode."""
    names = ("specversion", *_REQUIRED, "subject", "time", "dataschema")
    return {
        "type": "object",
        "required": [PREFIX + name for name in names[:4]],
        "properties": {PREFIX + name: {"type": "string"} for name in names},
    }


def is_cloud_event(type_: Any) -> bool:
    """Return whether *type_* is `CloudEvent`, with the type of its data or without."""
    return (get_origin(type_) or type_) is CloudEvent


class CloudEventReader:
    """Reads events with one type of data.

    Args:
        type_: `CloudEvent[...]`.

    Attributes:
        body: Reads the data.

    Raises:
        UnknownType: Data cannot be read as the type.
    """

    def __init__(self, type_: Any, codecs: Codecs) -> None:
        self.type = (get_args(type_) or (Any,))[0]
        self.body: BodyReader = codecs.reader(self.type)

    def binary(
        self, headers: Mapping[str, Any], content_type: str | None, data: Callable[[], Any] | None
    ) -> CloudEvent[Any]:
        """Read an event whose attributes are headers.

        Args:
            data: Reads the data; None where there is none.

        Raises:
            InvalidBody: The text names the attribute.
        """
        found = dict(_attributes(headers))
        if content_type is not None:
            found["datacontenttype"] = content_type
        attributes = _checked(found)
        read = self._no_data if data is None else data
        return CloudEvent(data=_data(read), **attributes)

    def structured(self, raw: bytes | str) -> CloudEvent[Any]:
        """Read an event that is a JSON object.

        Raises:
            InvalidBody: The text names the attribute.
        """
        plain = without_bom(raw)
        try:
            found = from_json(raw if plain is None else plain)
        except ValueError as error:
            raise InvalidBody(f"the body: Invalid JSON: {error}") from None
        if not isinstance(found, dict):
            raise InvalidBody("the body: a CloudEvent should be a JSON object")
        found = {name: each for name, each in found.items() if each is not None}
        attributes = _checked({name: found[name] for name in found if name not in _DATA})
        if "data" in found and "data_base64" in found:
            raise _invalid([("data_base64", "There should be no data beside it")])
        label = label_of(attributes.get("datacontenttype") or JSON)
        if "data_base64" in found:
            payload = _from_base64(found["data_base64"])
            data = _data(lambda: self._decode(label)(payload))
        elif "data" in found:
            data = _data(lambda: self._json_data(found["data"], label))
        else:
            data = _data(self._no_data)
        return CloudEvent(data=data, **attributes)

    def _json_data(self, value: Any, label: str) -> Any:
        as_text = isinstance(value, str) and (not is_json(label) or self._is_text)
        if as_text:
            return self._decode(label)(value.encode())
        return self._decode(label if is_json(label) else JSON)(to_json(value))

    def _decode(self, label: str) -> Decode:
        return self.body.for_label(label)[0]

    @property
    def _is_text(self) -> bool:
        return is_verbatim(self.type)

    def _no_data(self) -> Any:
        if is_verbatim(self.type):
            is_optional = NoneType in members(self.type)
            return None if is_optional else self.body.default(b"")
        return self.body.default(b"" if is_protobuf(self.type) else b"null")


def write_event(
    event: CloudEvent[Any], content_type: str | None, codecs: Codecs
) -> tuple[Encoded, Mapping[str, Any]]:
    """Write an event: the body, and the headers, which have the attributes in binary mode.

    Args:
        content_type: `application/cloudevents+json` for structured mode; another one is that of the
            data.

    Raises:
        TypeError, ValueError: An attribute is not valid, or the data cannot be written.
    """
    attributes = _written(event)
    if content_type is not None and label_of(content_type) == STRUCTURED:
        return _structured(event, attributes, content_type, codecs), _NO_HEADERS
    data_type = event.datacontenttype if content_type is None else content_type
    headers = {f"{PREFIX}{name}": value for name, value in attributes.items()}
    if event.data is None:
        return Encoded(b"", data_type or "", False, True), headers
    return codecs.encode(event.data, data_type), headers


def _structured(
    event: CloudEvent[Any], attributes: dict[str, Any], content_type: str, codecs: Codecs
) -> Encoded:
    found = event.datacontenttype
    if event.data is None:
        more = {} if found is None else {"datacontenttype": found}
        return Encoded(to_json({**attributes, **more}), content_type, True, True)
    data = codecs.encode(event.data, found)
    label = label_of(data.content_type)
    if found is not None or label != JSON:
        attributes["datacontenttype"] = data.content_type
    if is_json(label) and ((data.is_own and not isinstance(event.data, str)) or _is_json(data.raw)):
        body = to_json(attributes)[:-1] + b',"data":' + data.raw + b"}"
        return Encoded(body, content_type, True, True)
    if data.is_text and not is_json(label):
        attributes["data"] = data.raw.decode()
    elif isinstance(event.data, str):
        raise ValueError(f"the data of the CloudEvent is not JSON, and {found!r} says that it is")
    else:
        attributes["data_base64"] = base64.b64encode(data.raw).decode()
    return Encoded(to_json(attributes), content_type, True, True)


def _is_json(raw: bytes) -> bool:
    try:
        from_json(raw)
    except ValueError:
        return False
    return True


def _written(event: CloudEvent[Any]) -> dict[str, Any]:
    """Return the attributes as they are written, without the content type of the data."""
    for name in (*_REQUIRED, "subject", "dataschema", "datacontenttype"):
        found = getattr(event, name)
        if not isinstance(found, str) and (found is not None or name in _REQUIRED):
            raise TypeError(f"{name} of the CloudEvent is a {type(found).__name__}: write a str")
        if found == "":
            raise ValueError(f"{name} of the CloudEvent is empty")
    time: object = event.time
    if time is not None and not (isinstance(time, datetime) and time.tzinfo is not None):
        raise ValueError("time of the CloudEvent needs a time zone, as datetime.now(UTC) has")
    for name in event.extensions:
        if name in _RESERVED or not _NAME.fullmatch(name):
            right = "lower-case letters and digits, and no name of another attribute"
            raise ValueError(f"extension {name!r} of the CloudEvent: write {right}")
    known = {"specversion": _SPECVERSION, "type": event.type, "source": event.source}
    optional = {"id": event.id, "subject": event.subject, "dataschema": event.dataschema}
    return {
        **known,
        **{name: each for name, each in optional.items() if each is not None},
        **({} if event.time is None else {"time": _rfc_3339(event.time)}),
        **{name: _extension(name, each) for name, each in event.extensions.items()},
    }


def _extension(name: str, value: object) -> object:
    if isinstance(value, datetime):
        return _rfc_3339(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, str | bool | int):
        return value
    kind = type(value).__name__
    raise TypeError(
        f"extension {name!r} of the CloudEvent is a {kind}: write a str, an int, a bool, bytes or"
        " a datetime"
    )


def _rfc_3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def event_attribute(headers: Mapping[str, Any], name: str) -> Any:
    """Return an attribute among the headers, the first prefix wins; None if it is missing."""
    found = (headers.get(f"{prefix}{name}") for prefix in _PREFIXES)
    return next((each for each in found if each is not None), None)


def _attributes(headers: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the attributes among the headers; the first prefix wins."""
    for prefix in reversed(_PREFIXES):
        for name, value in headers.items():
            if name.startswith(prefix) and value is not None:
                yield name.removeprefix(prefix), value


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a `CloudEvent`.

    Raises:
        InvalidBody: With a finding for each attribute that is missing or invalid.
    """
    findings: list[tuple[str, str]] = []
    version = found.pop("specversion", None)
    if version is None:
        findings.append(("specversion", "This attribute is required"))
    elif version != _SPECVERSION:
        findings.append(("specversion", f"Input should be {_SPECVERSION!r}"))
    arguments: dict[str, Any] = {"time": None}
    for name in _TEXTS:
        value = found.pop(name, None)
        if value is None and name in _REQUIRED:
            findings.append((name, "This attribute is required"))
        elif value is not None and not isinstance(value, str):
            findings.append((name, "Input should be a valid string"))
        elif value == "" and name in _REQUIRED:
            findings.append((name, "Input should not be empty"))
        else:
            arguments[name] = value
    if (stated := found.pop("time", None)) is not None:
        arguments["time"] = _moment(stated)
        if arguments["time"] is None:
            findings.append(("time", "Input should be a time as in RFC 3339, with its offset"))
    if findings:
        raise _invalid(findings)
    return {**arguments, "extensions": found}


def _moment(stated: object) -> datetime | None:
    """Read a time; other libraries write milliseconds since 1970 as well."""
    try:
        if isinstance(stated, datetime):
            return stated
        if isinstance(stated, int) and not isinstance(stated, bool):
            return _EPOCH + timedelta(milliseconds=stated)
        if isinstance(stated, str) and _RFC_3339.fullmatch(stated):
            return datetime.fromisoformat(stated.upper())
    except (ValueError, OverflowError):
        pass
    return None


def _from_base64(found: object) -> bytes:
    try:
        if isinstance(found, str):
            return base64.b64decode(found, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise _invalid([("data_base64", "Input should be base64")])


def _data(read: Callable[[], Any]) -> Any:
    """Read the data; a finding in it is one of the event, below `data`."""
    try:
        return read()
    except InvalidBody as error:
        findings = [(_below_data(place), text) for place, text in error.findings]
        raise InvalidBody(f"data: {error}", findings, error.more) from None


def _below_data(place: str) -> str:
    return "data" if place == "the body" else f"data.{place}"


def _invalid(findings: list[tuple[str, str]]) -> InvalidBody:
    shown = findings[:MOST_FINDINGS]
    return InvalidBody(explain(shown, len(findings)), shown, len(findings) - len(shown))
