"""Log records: text for people on a terminal, JSON lines otherwise."""

import json
import logging
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.defaults import unknown_default
from pythonjsonlogger.json import JsonFormatter

from workerkit.config.sections import LogSettings
from workerkit.current_call import call_fields
from workerkit.describe import format_traceback
from workerkit.safe_text import (
    INDENT,
    LONGEST,
    Budget,
    Redact,
    cleaner,
    escape,
    escape_json,
    escape_lines,
    excerpt,
)

LIBRARIES = ("aio_pika", "aiormq", "aiohttp_sse_client")

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the HTTP request that is being handled; a field of each record of that request."""

process_fields: dict[str, object] = {}
"""Fields of each record of this process, where it is one of several."""

# From Python 3.12 on, `taskName` is an attribute of every record. It is no field.
_RESERVED = frozenset(RESERVED_ATTRS) | {"taskName"}
_BARE = re.compile(r"[^\s\"=]+")
_DEEPEST = 8
_LONGEST_INTEGER = 10_000  # Bits: Python does not convert integers of more than 4,300 digits.
_LONGEST_SHOWN = 2 * LONGEST  # Escapes and indentation make a text longer.
_SMALLEST = 1e-9  # Smaller numbers have an exponent.
_OVERHEAD = 12  # Bytes for a number, or for separators and quotes.
_OURS = frozenset({"timestamp", "level", "logger", "message", "exception", "stack"})


def configure(settings: LogSettings, redact: Redact | None = None) -> None:
    """Send the records of this process to stderr, in the format and from the level of *settings*.

    A second call replaces the handler of the first one; other handlers stay. Records of aio_pika,
    aiormq and aiohttp_sse_client are silenced, see `quiet_libraries`. Warnings of Python become
    records of `py.warnings`, so that the text is redacted and escaped as well.

    Args:
        settings: With `format` None, text if stderr is a terminal, JSON otherwise.
        redact: A function that is called with each text of a record: message, fields, traceback.
    """
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(handler)
        handler.close()
    handler = _Handler(sys.stderr)
    handler.setFormatter(_formatter(settings, redact))
    root.addHandler(handler)
    root.setLevel(settings.threshold)
    logging.captureWarnings(True)
    quiet_libraries()


def configure_unless_done(settings: LogSettings, level: str | None, redact: Redact | None) -> None:
    """Call `configure`, unless the application has configured the root logger itself.

    Args:
        level: Instead of the setting's, and of that of the application.
    """
    if level is not None:
        settings = settings.model_copy(update={"level": level.upper()})
    if not logging.getLogger().handlers:
        configure(settings, redact)
    elif level is not None:
        logging.getLogger().setLevel(settings.threshold)


def quiet_libraries() -> None:
    """Silence the loggers of the client libraries: workerkit logs the same events itself, once.

    Their records below CRITICAL do not appear, with any level of the root logger. A level
    that the user has set for one of these loggers stays.
    """
    for library in LIBRARIES:
        logger = logging.getLogger(library)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)


class TextFormatter(logging.Formatter):
    """Write `time LEVEL logger: message  key=value key="two words"`, then exception and stack.

    Whatever the texts contain, a record has exactly one line that is not indented, and no control
    characters. Passwords in URLs are masked.
    """

    def __init__(self, redact: Redact | None = None) -> None:
        super().__init__()
        self._clean = cleaner(redact)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, followed by the lines of exception and stack."""
        clean = self._clean
        start = escape(f"{_timestamp(record)} {record.levelname} {record.name}: ")
        line = f"{start}{_lines(clean(record.getMessage()))}"
        named = _fields(record)
        stack = str(named.pop("stack", ""))
        fields = " ".join(
            f"{excerpt(escape(key))}={_quoted(value, clean)}" for key, value in named.items()
        )
        below = (_exception(record), record.stack_info, stack.rstrip("\n"))
        parts = [f"{line}  {fields}" if fields else line]
        parts += [f"{INDENT}{_lines(clean(each))}" for each in below if each]
        return "\n".join(parts)


class JSONFormatter(JsonFormatter):
    """Write one JSON object a line: `timestamp`, `level`, `logger`, `message`, the fields.

    `exception` is only present if there is one. Values that JSON does not support become strings. A
    field with the name of a standard field gets an underscore after its name. Passwords in URLs
    are masked.
    """

    def __init__(self, redact: Redact | None = None) -> None:
        super().__init__()
        self._clean = cleaner(redact)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a JSON object without a line end."""
        clean = self._clean
        line: dict[str, Any] = {
            "timestamp": _timestamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": excerpt(clean(record.getMessage())),
        }
        for name, value in _fields(record).items():
            line[f"{name}_" if name in _OURS else name] = _jsonable(value, Budget(), clean)
        if exception := _exception(record):
            line["exception"] = excerpt(clean(exception))
        if record.stack_info:
            line["stack"] = excerpt(clean(record.stack_info))
        return escape_json(self.serialize_log_record(line))


class _Handler(logging.StreamHandler[Any]):
    """Handler of workerkit, so that a second `configure` finds it."""


def _formatter(settings: LogSettings, redact: Redact | None) -> logging.Formatter:
    form = settings.format or ("text" if sys.stderr.isatty() else "json")
    return TextFormatter(redact) if form == "text" else JSONFormatter(redact)


def _lines(text: str) -> str:
    return excerpt(escape_lines(excerpt(text)), _LONGEST_SHOWN)


def _timestamp(record: logging.LogRecord) -> str:
    """Return the time of the record as RFC 3339 in UTC, with milliseconds."""
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def context_fields() -> dict[str, object]:
    """Return the fields of the call of `handle`, the request and the process of this code."""
    fields = call_fields()
    if current := request_id.get():
        fields["request_id"] = current
    return fields | process_fields


class ContextFilter(logging.Filter):
    """Adds the fields of the current call of `handle` to each record.

    The records of workerkit's own handler have them. Add this filter to a handler of your own, or
    to the handler that feeds a queue.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields that the record does not have; let every record pass.

        Characters of ids that are not printable are escaped: not every formatter does that.
        """
        for name, value in context_fields().items():
            if not hasattr(record, name):
                setattr(record, name, escape(value) if isinstance(value, str) else value)
        return True


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the `extra` fields of the caller, then those of the context."""
    fields = {name: value for name, value in vars(record).items() if name not in _RESERVED}
    for name, value in context_fields().items():
        fields.setdefault(name, value)
    return fields


def _exception(record: logging.LogRecord) -> str:
    # `exc_info=True` outside of an except block leaves a triple of None.
    if record.exc_info and (error := record.exc_info[1]) is not None:
        if hasattr(record, "error") and not (error.__traceback__ or error.__cause__):
            return ""  # It was created for this record, which contains its text.
        return format_traceback(error).rstrip("\n")
    return record.exc_text or ""


def _text(value: Any) -> str:
    """Return a value for people: lists of texts with commas, small numbers without an exponent."""
    if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    if isinstance(value, float) and _SMALLEST <= abs(value) < 1:
        return format(Decimal(repr(value)), "f")
    return unknown_default(value)


def _quoted(value: Any, clean: Redact) -> str:
    """Return *value* as text, in double quotes only if it would be ambiguous without them."""
    text = excerpt(clean(_text(value)))
    if _BARE.fullmatch(text) and text.isprintable():
        return text
    return excerpt(escape_json(json.dumps(text, ensure_ascii=False)), _LONGEST_SHOWN)


def _jsonable(value: Any, budget: Budget, clean: Redact, depth: int = 0) -> Any:
    """Return *value* for JSON; values that JSON does not support become text.

    `unknown_default` never raises, not even for a value whose `__str__` does.
    """
    if isinstance(value, str):
        return budget.excerpt(clean(value))
    if value is None or (isinstance(value, int) and value.bit_length() <= _LONGEST_INTEGER):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth < _DEEPEST and isinstance(value, (list, tuple)):
        return list(_values(value, budget, clean, depth))
    if depth < _DEEPEST and isinstance(value, Mapping):
        return dict(_entries(value, budget, clean, depth))
    return budget.excerpt(clean(unknown_default(value)))


def _values(values: Sequence[Any], budget: Budget, clean: Redact, depth: int) -> Iterator[Any]:
    for number, each in enumerate(values):
        if budget.left <= 0:
            yield f"... {len(values) - number} left out"
            return
        budget.left -= _OVERHEAD
        yield _jsonable(each, budget, clean, depth + 1)


def _entries(
    entries: Mapping[Any, Any], budget: Budget, clean: Redact, depth: int
) -> Iterator[tuple[str, Any]]:
    for number, (key, value) in enumerate(entries.items()):
        if budget.left <= 0:
            yield "...", f"{len(entries) - number} left out"
            return
        budget.left -= _OVERHEAD
        name = budget.excerpt(clean(unknown_default(key)))
        yield name, _jsonable(value, budget, clean, depth + 1)
