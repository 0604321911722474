"""Describe classes, functions and exceptions in messages."""

import inspect
import traceback
from asyncio import CancelledError
from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError
from traceback import walk_tb
from typing import Any

from workerkit.errors import WorkerkitError

_EXPLAINED: tuple[type[BaseException], ...] = (WorkerkitError, OSError, EOFError, CancelledError)
_PACKAGE = __name__.partition(".")[0]


def describe_class(declared: type | Callable[..., Any]) -> str:
    """Name *declared* with its file and line: `shop.orders.OrderPlaced.handle (orders.py:12)`.

    An object without a name, such as a `functools.partial`, is named by its class.
    """
    if not hasattr(declared, "__qualname__"):
        declared = type(declared)
    name = f"{declared.__module__}.{declared.__qualname__}"
    try:
        file = inspect.getsourcefile(inspect.unwrap(declared)) or ""
        line = inspect.getsourcelines(declared)[1]
    except (OSError, TypeError, SyntaxError, TokenError):
        # Entered at a prompt, or generated, or the file has changed since the import.
        return name
    return f"{name} ({Path(file).name}:{line})"


def describe_raised(error: BaseException, package: str) -> str:
    """Describe an exception, with the last line of *package* in its traceback, if any."""
    top = package.partition(".")[0]
    lines = [
        f" ({frame.f_code.co_filename}:{line})"
        for frame, line in walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] == top
    ]
    return f"{type(error).__name__}: {error_text(error)}" + (lines[-1] if lines else "")


def error_location(error: BaseException) -> str:
    """Return class and place of an exception, without its text: `KeyError (orders.py:7)`.

    The place is the innermost frame outside of workerkit; if there is none, only the class.
    """
    kind = type(error).__qualname__
    places = [
        (frame.f_code.co_filename, line)
        for frame, line in walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] != _PACKAGE
    ]
    if not places:
        return kind
    file, line = places[-1]
    return f"{kind} ({Path(file).name}:{line})"


def error_text(error: BaseException) -> str:
    """Return the text of an exception; empty if its `__str__` raises."""
    try:
        return str(error)
    except Exception:
        return ""


def format_traceback(error: BaseException, limit: int | None = None) -> str:
    """Return an exception with its traceback; without text if its class cannot format it.

    Args:
        limit: The number of frames; if negative, of the innermost ones.
    """
    try:
        return "".join(traceback.format_exception(error, limit=limit))
    except Exception:
        frames = "".join(traceback.format_tb(error.__traceback__, limit))
        return f"Traceback (most recent call last):\n{frames}{type(error).__qualname__}\n"


def describe_error(error: BaseException) -> str:
    """Return class and text of an exception."""
    text = error_text(error)
    return f"{type(error).__qualname__}: {text}" if text else type(error).__qualname__


def without_needless_traceback(error: Exception, *expected: type[BaseException]) -> Exception:
    """Return the exception for a log record, without a traceback that adds nothing to its text.

    That is the case if it and its causes are errors of workerkit, of the operating system or
    *expected* ones: each attempt to connect would log the same frames of libraries. An error
    tracker still gets class and text.
    """
    cause: BaseException | None = error
    while cause is not None:
        if not isinstance(cause, (*_EXPLAINED, *expected)):
            return error
        cause = cause.__cause__
    if not isinstance(error, WorkerkitError):
        return error
    copy = type(error).__new__(type(error))
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    return copy


def summarize_error(error: Exception) -> str:
    """Return the reason for a field of a log record.

    It is the first line of the text, with the class if it is not an error of workerkit. The rest
    is in the traceback.
    """
    text = error_text(error) if isinstance(error, WorkerkitError) else ""
    return (text or describe_error(error)).partition("\n")[0]
