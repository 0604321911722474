"""Find the consumer classes of a package. Importing it is all that happens to it."""

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

    Modules and packages named `__main__`, `conftest` or `tests` are left alone.

    Raises:
        DeclarationError: Modules that cannot be imported, or no consumer at all; one fault each.
    """
    found, faults = look_through(packages)
    if faults:
        raise DeclarationError(*faults)
    return found


def look_through(packages: Iterable[str]) -> tuple[list[type[Consumer]], list[str]]:
    """As `discover`, but return the classes together with the faults.

    With faults there may be classes that were not found.
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
    module = _imported(name, faults)
    if module is None:
        return
    yield module
    for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
        if info.name not in _SKIPPED:
            yield from _modules(f"{name}.{info.name}", faults)


def _imported(name: str, faults: list[str]) -> ModuleType | None:
    try:
        return import_module(name)
    except (Exception, SystemExit) as error:
        # A module runs any code of the user's; every fault is wanted, not only the first.
        faults.append(not_imported(name, error))
        return None


def not_imported(name: str, error: BaseException) -> str:
    """What is said of a package or module that cannot be imported."""
    if "/" in name or "\\" in name or name.endswith(".py"):
        return f"{name} is a path: write the name of the package: {_meant(name)}"
    text = f"cannot import {name}: {describe_raised(error, name)}"
    here = Path.cwd()
    if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
        looked = [str(here)] if {"", str(here)} & set(sys.path) else []
        text += f"; looked in {' and '.join([*looked, 'the installed packages'])}"
    return text


def _meant(path: str) -> str:
    """The package that somebody means who writes its path."""
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
