"""Where a class or a function is written, as it stands in messages."""

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

    An object without a name of its own, such as a `functools.partial`, is named by its class.
    """
    if not hasattr(declared, "__qualname__"):
        declared = type(declared)
    name = f"{declared.__module__}.{declared.__qualname__}"
    try:
        file = inspect.getsourcefile(declared) or ""
        line = inspect.getsourcelines(declared)[1]
    except (OSError, TypeError, SyntaxError, TokenError):
        # Written at a prompt, or generated, or the file is no longer what was imported.
        return name
    return f"{name} ({Path(file).name}:{line})"


def describe_raised(error: BaseException, package: str) -> str:
    """Say what was raised, and the last line of *package* that led to it, if any did."""
    top = package.partition(".")[0]
    lines = [
        f" ({frame.f_code.co_filename}:{line})"
        for frame, line in walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] == top
    ]
    return f"{type(error).__name__}: {error_text(error)}" + (lines[-1] if lines else "")


def error_location(error: BaseException) -> str:
    """Name the class of an exception and its place, without its text: `KeyError (orders.py:7)`.

    The place is the innermost one outside of workerkit; there is none for an error of its own.
    """
    kind = type(error).__qualname__
    places = [
        f"{kind} ({Path(frame.f_code.co_filename).name}:{line})"
        for frame, line in walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] != _PACKAGE
    ]
    return places[-1] if places else kind


def error_text(error: BaseException) -> str:
    """What an exception says of itself; empty where its class fails to say it."""
    try:
        return str(error)
    except Exception:
        return ""


def format_traceback(error: BaseException, limit: int | None = None) -> str:
    """An exception with its traceback; without its chain and text where its class fails at those.

    Args:
        limit: Of frames, the innermost where it is negative.
    """
    try:
        return "".join(traceback.format_exception(error, limit=limit))
    except Exception:
        frames = "".join(traceback.format_tb(error.__traceback__, limit))
        return f"Traceback (most recent call last):\n{frames}{type(error).__qualname__}\n"


def describe_error(error: BaseException) -> str:
    """What was raised, in a few words."""
    text = error_text(error)
    return f"{type(error).__qualname__}: {text}" if text else type(error).__qualname__


def without_needless_traceback(error: Exception, *expected: type[BaseException]) -> Exception:
    """The exception for a log record: without its traceback where its text says everything.

    That is where it and its causes are errors of ours, of the operating system or *expected* ones:
    their tracebacks show nothing but the insides of libraries, once for each attempt to connect.
    An error tracker gets its class and text all the same.
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
    """The reason for a field of a log record: the text of an error of ours, else what was raised.

    Only the first line of it; the rest stands in the traceback.
    """
    own = error_text(error) if isinstance(error, WorkerkitError) else ""
    return (own or describe_error(error)).partition("\n")[0]
