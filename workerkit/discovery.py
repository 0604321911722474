"""Find the consumer classes of a package. Importing it is all that happens to it."""

import pkgutil
from collections.abc import Iterable, Iterator
from importlib import import_module
from types import ModuleType

from workerkit.consumer import Consumer
from workerkit.errors import DeclarationError
from workerkit.places import raised_in

_SKIPPED = frozenset({"__main__", "conftest", "tests"})


def discover(packages: Iterable[str]) -> list[type[Consumer]]:
    """Import every module of *packages* and return the consumer classes they define, in order.

    Modules and packages named `__main__`, `conftest` or `tests` are left alone.

    Raises:
        DeclarationError: Modules that cannot be imported, or no consumer at all; one fault each.
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
    if faults:
        raise DeclarationError(*faults)
    return list(found)


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
        faults.append(f"cannot import {name}: {raised_in(error, name)}")
        return None


def _consumers(module: ModuleType) -> Iterator[type[Consumer]]:
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, Consumer)
            and value.__module__ == module.__name__
            and not value.is_abstract()
        ):
            yield value
