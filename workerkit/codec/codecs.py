"""Codecs by content type: JSON, msgpack, protobuf and text, and those of the application."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from pydantic_core import to_json, to_jsonable_python

from workerkit.codec.body_types import (
    UnknownType,
    adapter,
    holds_struct,
    is_bytes,
    is_protobuf,
    is_struct,
)
from workerkit.codec.decoding import by_annotation, text
from workerkit.codec.encoding import BYTES, encode, python_values
from workerkit.codec.findings import TOO_DEEP, Decode, is_strict, validating
from workerkit.codec.protobuf import (
    encode_protobuf,
    encode_protobuf_json,
    protobuf_decoder,
    protobuf_json_decoder,
)
from workerkit.codec.structs import msgspec_text, struct_reader
from workerkit.errors import InvalidBody

_MOST_LABELS = 256
_MSGPACK = "msgpack"


@runtime_checkable
class Codec(Protocol):
    """Reads and writes the bodies of some content types; add it to the container's `codecs`.

    Attributes:
        content_types: In lower case and without parameters, such as `["application/yaml"]`. A `*`
            stands for any text: `*+yaml`.
    """

    @property
    def content_types(self) -> Sequence[str]: ...

    def decode(self, raw: bytes, type_: Any) -> Any:
        """Return the values in a body: dicts, lists, texts..., or an instance of *type_*.

        workerkit validates the result, so that *type_* may be ignored.

        Args:
            raw: The decompressed body. The sender chooses it, so its size and depth are limited by
                nothing but the size of messages.
            type_: The type that `handle` takes.

        Raises:
            Exception: The body cannot be read: it becomes `InvalidBody`. Its text is not used,
                because it may contain the body, unless it is an `InvalidBody` itself.
        """

    def encode(self, value: Any, type_: type) -> bytes:
        """Write a value.

        Args:
            value: As `model_dump()` of pydantic returns it: dicts, lists, texts, numbers, bytes,
                times...
            type_: The class of what was published, such as that of a model.
        """


class Encoded(NamedTuple):
    """An encoded body.

    Attributes:
        content_type: The one that was asked for, or that of the body.
        is_text: It is UTF-8 text that workerkit has written, to be encoded in a charset.
        is_own: workerkit or a codec has written it; else it is bytes as the caller gave them.
    """

    raw: bytes
    content_type: str
    is_text: bool
    is_own: bool


class BodyReader:
    """Reads bodies as one type, whatever their content type.

    Attributes:
        type: The type.
        default: Reads a body whose content type is missing or not known.
        json: Reads JSON.
        text: Whether *default* and *json* read text, and not bytes of any kind.
    """

    __slots__ = ("_codecs", "default", "for_label", "json", "text", "type")

    def __init__(self, type_: Any, codecs: "Codecs") -> None:
        self.type = type_
        self.default = by_annotation(type_)
        self.text = not (is_bytes(type_) or is_protobuf(type_))
        self._codecs = codecs
        self.json = self._for_label("application/json")[0]
        self.for_label: Callable[[str], tuple[Decode, bool]] = lru_cache(_MOST_LABELS)(
            self._for_label
        )
        """Return what reads a content type, and whether that is text. It is without parameters."""

    def _for_label(self, label: str) -> tuple[Decode, bool]:
        codec = None if is_bytes(self.type) else self._codecs.find(label)
        if codec is None:
            return self.default, self.text
        try:
            return codec.decoder(self.type), codec.is_text
        except (UnknownType, ImportError) as error:
            return _failing(f"a body of content type {label!r} cannot be read: {error}"), False


class Codecs:
    """The codecs of an application.

    Args:
        extra: Those of the application. They are asked before the built-in ones.
    """

    def __init__(self, extra: Sequence[Codec] = ()) -> None:
        self._codecs: tuple[_BodyCodec, ...] = (*map(_Extra, extra), *_BUILT_IN)

    def reader(self, type_: Any) -> BodyReader:
        """Create the reader of bodies of one type.

        Raises:
            UnknownType: No body can be read as *type_*.
        """
        return BodyReader(type_, self)

    def find(self, label: str) -> "_BodyCodec | None":
        """Return the codec of a content type without parameters; None if it is not known."""
        for codec in self._codecs:
            if any(fnmatchcase(label, pattern) for pattern in codec.content_types):
                return codec
        return None

    def encode(self, body: object, content_type: str | None = None) -> Encoded:
        """Write a body in the format of its content type; that of the body where there is none.

        `bytes` stay unchanged. With a content type that is not known, all others are written as
        without one.

        Raises:
            TypeError, ValueError: It cannot be written.
        """
        if isinstance(body, BYTES):
            raw, own = encode(body)
            return Encoded(raw, own if content_type is None else content_type, False, False)
        codec = None if content_type is None else self.find(label_of(content_type))
        if content_type is None or codec is None:
            raw, own = encode(body)
            is_text = not is_protobuf(type(body))
            return Encoded(raw, own if content_type is None else content_type, is_text, True)
        try:
            return Encoded(codec.encode(body), content_type, codec.is_text, True)
        except ImportError as error:
            raise ValueError(f"content_type is {content_type!r}: {error}") from error
        except (OverflowError, RecursionError) as error:
            kind = type(body).__qualname__
            raise ValueError(f"a {kind} cannot be written as {content_type}: {error}") from error


def codec_faults(codec: object) -> list[str]:
    """Return what is missing in a codec of the application, a sentence each."""
    name = codec.__qualname__ if isinstance(codec, type) else type(codec).__qualname__
    if isinstance(codec, type):
        return [f"{name} is a class: write providers.Singleton({name})"]
    faults = [
        f"{name} has no method {method!r}: a Codec has content_types, decode and encode"
        for method in ("decode", "encode")
        if not callable(getattr(codec, method, None))
    ]
    types = getattr(codec, "content_types", None)
    if (
        not isinstance(types, list | tuple)
        or not types
        or not all(isinstance(each, str) and each and ";" not in each for each in types)
    ):
        right = "a list of content types without parameters, such as ['application/yaml']"
        faults.append(f"{name} has content_types {types!r}: write {right}")
    return faults


def label_of(content_type: str) -> str:
    """Return a content type in lower case and without parameters."""
    return content_type.partition(";")[0].strip().lower()


def is_json(label: str) -> bool:
    """Return whether a content type without parameters is that of JSON."""
    return any(fnmatchcase(label, pattern) for pattern in _JSON.content_types)


def _failing(reason: str) -> Decode:
    def fail(raw: object) -> Any:
        raise InvalidBody(reason)

    return fail


def _values_decoder(type_: Any, read: Decode, what: str) -> Decode:
    """Create the function that validates the Python values that *read* finds in a body."""
    if holds_struct(type_):
        convert = _msgspec().convert
        validate = struct_reader(lambda value: convert(value, type_))
    elif is_protobuf(type_):
        validate = _instance_of(type_, what)
    else:
        validate = _lenient(type_)

    def decode(raw: bytes) -> Any:
        try:
            value = read(raw)
        except InvalidBody:
            raise
        except Exception as error:
            raise InvalidBody(f"the body is not {what}: {_text_of(error)}") from None
        try:
            return validate(value)
        except RecursionError:
            raise InvalidBody(TOO_DEEP) from None

    return decode


def _lenient(type_: Any) -> Decode:
    """Create the function that validates values; where pydantic is strict, as strict as for JSON.

    A strict model takes the text of a UUID from JSON, but not from Python values.
    """
    validator = adapter(type_)
    validate = validating(validator, validator.validator.validate_python)
    if not is_strict(validator):
        return validate
    validate_json = validating(validator, validator.validator.validate_json, json=True)

    def strict(value: Any) -> Any:
        try:
            return validate(value)
        except InvalidBody as error:
            try:
                written = to_json(value)
            except ValueError:
                raise error from None
            return validate_json(written)

    return strict


def _instance_of(type_: Any, what: str) -> Decode:
    def check(value: Any) -> Any:
        if isinstance(value, type_):
            return value
        raise InvalidBody(f"the body is {what}, which {type_.__qualname__} cannot be read from")

    return check


def _text_of(error: Exception) -> str:
    """Return the text of msgspec about a body; of others only the class, as texts may quote it."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    own = type(error).__module__.partition(".")[0] == "msgspec"
    return msgspec_text(error) if own else type(error).__name__


def _msgspec() -> ModuleType:
    try:
        import msgspec
    except ImportError as error:
        text = "it needs the package msgspec: pip install 'workerkit[msgspec]'"
        raise ImportError(text, name="msgspec") from error
    return msgspec


class _BodyCodec(Protocol):
    """A codec in the form that the framework uses.

    Attributes:
        is_text: Its bodies are text, which may have a charset.
    """

    @property
    def content_types(self) -> Sequence[str]: ...

    @property
    def is_text(self) -> bool: ...

    def decoder(self, type_: Any) -> Decode:
        """Create the function that reads bodies as one type.

        Raises:
            UnknownType: It cannot read bodies as *type_*.
            ImportError: A package is missing, and the text says how to install it.
        """

    def encode(self, body: Any) -> bytes:
        """Write a body that is not `bytes`."""


class _JSONCodec:
    content_types: Sequence[str] = ("application/json", "text/json", "*+json")
    is_text = True

    def decoder(self, type_: Any) -> Decode:
        return protobuf_json_decoder(type_) if is_protobuf(type_) else by_annotation(type_)

    def encode(self, body: Any) -> bytes:
        return encode_protobuf_json(body) if is_protobuf(type(body)) else encode(body)[0]


class _TextCodec(_JSONCodec):
    """Text; what is not read as text is read as JSON, which some senders label as text."""

    content_types: Sequence[str] = ("text/*",)

    def decoder(self, type_: Any) -> Decode:
        return text if type_ in (Any, object) else super().decoder(type_)


class _MsgpackCodec:
    content_types = ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")
    is_text = False

    def decoder(self, type_: Any) -> Decode:
        msgpack = _msgspec().msgpack
        if holds_struct(type_):
            return struct_reader(msgpack.Decoder(type_).decode)
        return _values_decoder(type_, msgpack.Decoder().decode, _MSGPACK)

    def encode(self, body: Any) -> bytes:
        msgpack = _msgspec().msgpack
        if is_protobuf(type(body)):
            raise TypeError(f"a {type(body).__qualname__} cannot be written as {_MSGPACK}")
        values = body if is_struct(type(body)) else python_values(body)
        # What msgpack has no type for, such as a URL, is written as in JSON.
        return bytes(msgpack.encode(values, enc_hook=to_jsonable_python))


class _ProtobufCodec:
    content_types = (
        "application/protobuf",
        "application/x-protobuf",
        "application/vnd.google.protobuf",
    )
    is_text = False

    def decoder(self, type_: Any) -> Decode:
        if not is_protobuf(type_):
            raise UnknownType("`handle` has to take the class of a protobuf message, or bytes")
        return protobuf_decoder(type_)

    def encode(self, body: Any) -> bytes:
        return encode_protobuf(body)


class _Extra:
    """A codec of the application."""

    is_text = False

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.content_types = tuple(each.lower() for each in codec.content_types)

    def decoder(self, type_: Any) -> Decode:
        codec = self._codec
        what = " or ".join(self.content_types)
        return _values_decoder(type_, lambda raw: codec.decode(raw, type_), what)

    def encode(self, body: Any) -> bytes:
        value = body if is_protobuf(type(body)) else python_values(body)
        written: object = self._codec.encode(value, type(body))
        if not isinstance(written, bytes):
            name, kind = type(self._codec).__qualname__, type(written).__qualname__
            raise TypeError(f"{name}.encode returned a {kind}: it has to return bytes")
        return written


_JSON = _JSONCodec()
_BUILT_IN: tuple[_BodyCodec, ...] = (_JSON, _MsgpackCodec(), _ProtobufCodec(), _TextCodec())

BUILT_IN = Codecs()
"""The built-in codecs alone."""
