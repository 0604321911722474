"""Check declarations: each error names the argument, its value, and a valid value."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

# RabbitMQ drops line breaks in some methods, so the name would be another one.
_LINE_BREAKS = re.compile(r"[\r\n]")
_LONGEST_NAME = 255


class Check:
    """Checks of the arguments of one declaration, by their names.

    Each check raises `ValueError` for an invalid value.

    Args:
        subject: The declared object, as the beginning of an error.
        declared: An object that has the arguments as attributes.
    """

    def __init__(self, subject: str, declared: object) -> None:
        self.subject = subject
        self._declared = declared

    def one_of(self, name: str, known: Sequence[str], others: str = "") -> None:
        """Check that an argument is one of the known values."""
        found = getattr(self._declared, name)
        if isinstance(found, str) and found in known:
            return
        right = f"write one of {', '.join(map(repr, known))}{others}"
        nearest = difflib.get_close_matches(found, known, n=1) if isinstance(found, str) else []
        if nearest:
            right = f"did you mean {nearest[0]!r}? W{right[1:]}"
        self.refuse(name, right)

    def flags(self, *names: str) -> None:
        """Check that arguments are True or False."""
        for name in names:
            if not isinstance(getattr(self._declared, name), bool):
                self.refuse(name, "write True or False")

    def seconds(self, name: str, least: float) -> None:
        """Check that an argument is None or a number of seconds."""
        found = getattr(self._declared, name)
        number = isinstance(found, int | float) and not isinstance(found, bool)
        if found is not None and not (number and math.isfinite(found) and found >= least):
            self.refuse(name, f"write a number of seconds, {least} or more")

    def whole(self, name: str, least: int, most: int | None = None) -> None:
        """Check that an argument is None or a whole number within bounds."""
        found = getattr(self._declared, name)
        if found is not None and not is_whole(found, least, most):
            bounds = f"{least} or more" if most is None else f"{least} to {most}"
            self.refuse(name, f"write a whole number, {bounds}")

    def text(self, name: str, right: str, *, optional: bool = False) -> None:
        """Check that an argument is a text of at most 255 bytes."""
        found = getattr(self._declared, name)
        if not (isinstance(found, str) or (optional and found is None)):
            self.refuse(name, f"write {right}")
        if found and not 1 <= _bytes(found) <= _LONGEST_NAME:
            self.refuse(name, "write at most 255 bytes of text")

    def mapping(self, name: str, example: Mapping[str, Any]) -> None:
        """Check that an argument is a mapping."""
        if not isinstance(getattr(self._declared, name), Mapping):
            self.refuse(name, f"write a dict, such as {example}")

    def refuse(self, name: str, right: str) -> NoReturn:
        """Raise an error for an argument, with its value and a valid value."""
        found = getattr(self._declared, name)
        raise ValueError(f"{self.subject}: {name} is {found!r}: {right}")


def is_whole(found: object, least: int, most: int | None = None) -> bool:
    """Return whether *found* is a whole number within bounds."""
    if not isinstance(found, int) or isinstance(found, bool):
        return False
    return found >= least and (most is None or found <= most)


def check_name(kind: str, name: object) -> None:
    """Check a name.

    Raises:
        ValueError: RabbitMQ would refuse or change the name.
    """
    if not isinstance(name, str) or not 1 <= _bytes(name) <= _LONGEST_NAME:
        right = "write 1 to 255 bytes of text"
        if kind == "queue" and name == "":
            right += ", and per_process=True as well for a separate queue of each process"
    elif _LINE_BREAKS.search(name):
        right = "write it without line breaks, which RabbitMQ drops"
    else:
        return
    raise ValueError(f"{name!r} cannot be the name of a {kind}: {right}")


def _bytes(text: str) -> int:
    """Return the size of a text in UTF-8; 0 if it cannot be encoded."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return 0
