"""The reference of the API: what Sphinx's autodoc reads, and the same as plain Markdown."""

import inspect
from importlib import import_module
from typing import Any

from docs._generate.markdown import summary


def api(*names: str) -> str:
    """Return directives of autodoc for public names of `workerkit` or a module of it."""
    lines = [line for name in names for line in (*_directive(name), "")]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def plain_api(*names: str) -> str:
    """Return signatures and docstrings."""
    return "\n\n".join(_plain(name) for name in names)


def find(name: str) -> Any:
    """Return what a name such as `Queue` or `testing.running` of `workerkit` means."""
    module, _, last = f"workerkit.{name}".rpartition(".")
    return getattr(import_module(module), last)


def _directive(name: str) -> list[str]:
    found = find(name)
    if not isinstance(found, type):
        kind = "function" if inspect.isfunction(found) else "data"
        return [f".. auto{kind}:: workerkit.{name}"]
    if issubclass(found, Exception):
        return [f".. autoexception:: workerkit.{name}", "   :show-inheritance:"]
    return [f".. autoclass:: workerkit.{name}", "   :members:", "   :show-inheritance:"]


def _plain(name: str) -> str:
    found = find(name)
    parts = [f"## workerkit.{name}", _signature(name, found), inspect.getdoc(found) or ""]
    if isinstance(found, type) and not issubclass(found, Exception):
        for member, value in vars(found).items():
            method = getattr(value, "__func__", value)
            if not member.startswith("_") and inspect.isfunction(method):
                parts.append(f"### {member}\n\n{_signature(member, method)}\n\n{summary(method)}")
    return "\n\n".join(part for part in parts if part)


def _signature(name: str, found: Any) -> str:
    try:
        return f"```python\n{name}{inspect.signature(found)}\n```"
    except (TypeError, ValueError):  # An alias of a type, or an exception without a constructor.
        return ""
