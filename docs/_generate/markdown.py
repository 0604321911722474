"""Write Markdown, and read docstrings."""

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

_ENTRY = re.compile(r"^    (\*{0,2}\w+)(?: \([^)]*\))?: ", re.MULTILINE)
_SECTION = re.compile(r"^(Args|Attributes):\n((?:    .*\n|\n)+)", re.MULTILINE)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def code(text: object) -> str:
    """Return *text* as code; nothing if it is empty."""
    return f"`{text}`" if str(text) else ""


def summary(documented: Any) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def described(kind: type) -> dict[str, str]:
    """Return the texts of `Attributes` and `Args` in the docstrings of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text = inspect.cleandoc(vars(base).get("__doc__") or "") + "\n"
        for section in _SECTION.finditer(text):
            _, *entries = _ENTRY.split(section[2])
            for name, entry in zip(entries[::2], entries[1::2], strict=True):
                found[name] = " ".join(entry.split())
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
