"""Where a class or a function is written, as it stands in messages."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any


def place(declared: type | Callable[..., Any]) -> str:
    """Name *declared* with its file and line: `shop.orders.OrderPlaced.handle (orders.py:12)`."""
    name = f"{declared.__module__}.{declared.__qualname__}"
    try:
        file = inspect.getsourcefile(declared) or ""
        line = inspect.getsourcelines(declared)[1]
    except (OSError, TypeError):
        # Written at a prompt, or generated: there is no file to name.
        return name
    return f"{name} ({Path(file).name}:{line})"
