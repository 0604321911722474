"""Find the consumer classes of a package by importing its modules."""

import pkgutil
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from workerkit.consumer import Consumer
from workerkit.describe import describe_raised
from workerkit.errors import DeclarationError

_SKIPPED = frozenset({"__main__", "conftest", "tests"})


def discover(packages: Iterable[str]) -> list[type[Consumer]]:
    """Import every module of *packages* and return the consumer classes they define, in order.

    Modules and packages named `__main__`, `conftest` or `tests` are not imported.

    Raises:
        DeclarationError: Modules that cannot be imported, or no consumer at all; one fault each.
    """
    found, faults = find_consumers(packages)
    if faults:
        raise DeclarationError(*faults)
    return found


def find_consumers(packages: Iterable[str]) -> tuple[list[type[Consumer]], list[str]]:
    """Do the same as `discover`, but return the classes together with the faults.

    If there are faults, some classes may be missing.
    """
    names = list(packages)
    faults: list[str] = []
    found: dict[type[Consumer], None] = {}
    for package in names:
        for module in _modules(package, faults):
            found |= dict.fromkeys(_consumers(module))
    if not found and not faults:
        faults.append(
            f"no consumer in {', '.join(names)}: subclass AMQPConsumer in one of its modules"
        )
    return list(found), faults


def _modules(name: str, faults: list[str]) -> Iterator[ModuleType]:
    module = _import(name, faults)
    if module is None:
        return
    yield module
    for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
        if info.name not in _SKIPPED:
            yield from _modules(f"{name}.{info.name}", faults)


def _import(name: str, faults: list[str]) -> ModuleType | None:
    try:
        return import_module(name)
    except (Exception, SystemExit) as error:
        # Importing a module runs user code; all faults are reported, not only the first.
        faults.append(describe_import_failure(name, error))
        return None


def describe_import_failure(name: str, error: BaseException) -> str:
    """Return the sentence about a package or module that cannot be imported."""
    if "/" in name or "\\" in name or name.endswith(".py"):
        return f"{name} is a path: write the name of the package: {_package_of(name)}"
    text = f"cannot import {name}: {describe_raised(error, name)}"
    here = Path.cwd()
    if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
        looked = [str(here)] if {"", str(here)} & set(sys.path) else []
        text += f"; looked in {' and '.join([*looked, 'the installed packages'])}"
    return text


def _package_of(path: str) -> str:
    """Return the package to write instead of a path."""
    found = Path(path).absolute()
    here = Path.cwd()
    if found.suffix == ".py":
        found = found.with_suffix("") if found.parent == here else found.parent
    while (found.parent / "__init__.py").exists():
        found = found.parent
    name, directory = found.name, found.parent.resolve()
    return name if directory == here.resolve() else f"{name}, in the directory {directory}"


def _consumers(module: ModuleType) -> Iterator[type[Consumer]]:
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, Consumer)
            and value.__module__ == module.__name__
            and not value.is_abstract()
        ):
            yield value
