"""All of one dead letter: its body in several forms, and as the consumer would get it."""

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pydantic_core import to_json

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.dead_letters import ORIGINAL, TRACEBACK, Evidence
from workerkit.amqp.message import OURS, AMQPMessage
from workerkit.amqp.message_types import type_reader
from workerkit.amqp.properties import readable
from workerkit.console.dead_letters.model import BodyAsModel, LetterDetail
from workerkit.console.dead_letters.rows import Clean, as_json, row
from workerkit.describe import describe_error
from workerkit.errors import InvalidBody
from workerkit.reading import Read
from workerkit.safe_text import excerpt
from workerkit.signature import shown_type
from workerkit.transport import Declared

ORIGINAL_BODY = f"{ORIGINAL}body"
LARGEST_EDITABLE = 1024 * 1024
_LONGEST_TEXT = 256 * 1024
_LONGEST_PRETTY = 512 * 1024
_LONGEST_DUMP = 4096
_LINE = 16
# They are shown as reason, traceback and original.
_SHOWN = frozenset({f"{OURS}reason", TRACEBACK, ORIGINAL_BODY})


def detail(
    message: AMQPMessage[Any], position: int, clean: Clean, model: BodyAsModel
) -> LetterDetail:
    """Return all of a dead letter."""
    found = Evidence.of(message)
    raw = message.raw
    text = _text(raw)
    pretty, is_whole = _pretty(raw) if len(raw) <= _LONGEST_TEXT else (None, True)
    properties = {
        name: readable(value) if isinstance(value, str) else value
        for name, value in asdict(message.properties).items()
        if value is not None and name != "table"
    }
    original = message.sent.get(ORIGINAL_BODY)
    fields = row(message, position, clean).model_dump()
    fields["reason"] = None if found.reason is None else clean(found.reason)
    return LetterDetail(
        **fields,
        headers={name: as_json(each) for name, each in message.sent.items() if name not in _SHOWN},
        properties={name: as_json(value) for name, value in properties.items()},
        traceback=None if found.traceback is None else clean(found.traceback),
        text=text,
        pretty=pretty,
        hex="\n".join(_dump(raw[:_LONGEST_DUMP])),
        base64=base64.b64encode(raw).decode() if len(raw) <= LARGEST_EDITABLE else None,
        truncated=len(raw) > _LONGEST_DUMP or not is_whole,
        original=_as_text(original),
        model=model,
    )


def _text(raw: bytes) -> str | None:
    """Return the beginning of a body that is UTF-8 text; None if it is not."""
    beginning = raw[:_LONGEST_TEXT]
    try:
        return beginning.decode()
    except UnicodeDecodeError as error:
        is_cut = len(raw) > len(beginning) and error.start >= len(beginning) - 3
        return beginning[: error.start].decode() if is_cut else None


def _pretty(raw: bytes) -> tuple[str | None, bool]:
    """Return the beginning of a body as indented JSON, and whether it is whole."""
    parts: list[str] = []
    size = 0
    try:
        # Indentation can make a body a hundred times as long.
        for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(json.loads(raw)):
            parts.append(part)
            size += len(part)
            if size > _LONGEST_PRETTY:
                return _sound("".join(parts)[:_LONGEST_PRETTY]), False
    except (ValueError, RecursionError):
        return None, True
    return _sound("".join(parts)), True


def _sound(text: str) -> str:
    """Return a text without lone surrogates, which `\\ud800` in JSON is."""
    return text.encode(errors="replace").decode()


def _dump(raw: bytes) -> Iterator[str]:
    for start in range(0, len(raw), _LINE):
        line = raw[start : start + _LINE]
        shown = "".join(chr(each) if 32 <= each < 127 else "." for each in line)
        yield f"{start:08x}  {line.hex(' '):<{_LINE * 3}} {shown}"


def _as_text(original: object) -> str | None:
    if isinstance(original, bytes):
        return original.decode(errors="replace")
    return original if isinstance(original, str) else None


class BodyModels:
    """Decodes bodies as the consumers do, each in a thread.

    A validator may run for ever, and a thread cannot be stopped; so few run at a time.

    Args:
        declared: The consumers of this process.
        seconds: How long to wait for a validator.
    """

    _MOST = 2

    def __init__(self, declared: Sequence[Declared], clean: Clean, seconds: float = 2.0) -> None:
        self._declared = [each for each in declared if isinstance(each.options, AMQPOptions)]
        self._clean = clean
        self._seconds = seconds
        self._running = 0

    async def decode(self, message: AMQPMessage[Any], queue: str) -> BodyAsModel:
        """Return the body as the consumer that failed on it would get it.

        Args:
            queue: Where it failed.
        """
        declared = self._find(message, queue)
        if declared is None:
            name = Evidence.of(message).consumer
            subject = f"consumer {excerpt(name, 255)!r}" if name else "the consumer"
            return BodyAsModel(problem=f"{subject} is not in this process")
        if self._running >= self._MOST:
            return BodyAsModel(problem="the validation of other bodies takes too long")
        future = self._start(lambda: self._decoded(message, declared))
        await asyncio.wait([future], timeout=self._seconds)
        if not future.done():
            return BodyAsModel(problem=f"the validation takes longer than {self._seconds:g} s")
        return future.result()

    def _find(self, message: AMQPMessage[Any], queue: str) -> Declared | None:
        """Return the consumer that failed; else the only one that reads the queue."""
        found = Evidence.of(message)
        named = [each for each in self._declared if found.is_of(each.options.name)]
        if named or found.consumer is not None:
            return named[0] if named else None
        readers = [each for each in self._declared if queue in map(str, _options(each).queues)]
        return readers[0] if len(readers) == 1 else None

    def _start(self, function: Callable[[], BodyAsModel]) -> "asyncio.Future[BodyAsModel]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[BodyAsModel] = loop.create_future()

        def finish(result: BodyAsModel) -> None:
            self._running -= 1
            if not future.done():
                future.set_result(result)

        def work() -> None:
            result = function()
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish, result)

        self._running += 1
        threading.Thread(target=work, name="workerkit-console-body", daemon=True).start()
        return future

    def _decoded(self, message: AMQPMessage[Any], declared: Declared) -> BodyAsModel:
        """Decode a body; runs in a thread."""
        type_ = shown_type(declared.signature.body)
        try:
            _reader(declared)(message)
            value = message.body
        except InvalidBody as error:
            errors = [f"{place}: {text}" for place, text in error.findings] or [str(error)]
            more = [f"and {error.more} more"] if error.more else []
            return BodyAsModel(type=type_, errors=[self._clean(each) for each in errors] + more)
        except BaseException as error:  # A validator of the user may raise anything.
            return BodyAsModel(type=type_, errors=[self._clean(describe_error(error))])
        try:
            shown = _value(value)
        except BaseException as error:  # Also a `repr` of the user.
            text = f"the value cannot be shown: {type(error).__qualname__}"
            return BodyAsModel(type=type_, problem=text)
        if _options(declared).types is not None:
            type_ = type(value).__qualname__
        return BodyAsModel(type=type_, value=excerpt(_sound(shown), _LONGEST_TEXT))


def _value(value: Any) -> str:
    try:
        return to_json(value, indent=2).decode()
    except (ValueError, TypeError, RecursionError):  # It has values that JSON does not have.
        return repr(value)


def _reader(declared: Declared) -> Read:
    options = _options(declared)
    signature = declared.signature
    return signature.read if options.types is None else type_reader(options, signature.reader)


def _options(declared: Declared) -> AMQPOptions:
    assert isinstance(declared.options, AMQPOptions)
    return declared.options
