"""Put an application together, as far as that goes without opening anything."""

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dependency_injector import containers

from workerkit import environment
from workerkit.consumer import Consumer
from workerkit.discovery import discover
from workerkit.errors import ConfigurationError, DeclarationError, StartError
from workerkit.options import InvalidOption, Options, Override, folded, resolve
from workerkit.places import place
from workerkit.plan import Plan
from workerkit.settings import WorkerSettings
from workerkit.wire import Declared, Warns, Wire

_HOOKS = ("on_start", "on_stop", "on_connection_error")

Wires = Mapping[type[Consumer], Wire]


@dataclass(frozen=True, slots=True)
class Assembly:
    """An application that could be started.

    Attributes:
        wires: Those that feed at least one consumer, each with what it feeds.
    """

    settings: WorkerSettings
    wires: list[tuple[Wire, list[Declared]]]

    @property
    def declared(self) -> list[Declared]:
        """Every consumer."""
        return [each for _, fed in self.wires for each in fed]

    @property
    def warnings(self) -> list[str]:
        """What is no fault and may not be meant, one sentence each."""
        return [
            text
            for wire, fed in self.wires
            if isinstance(wire, Warns)
            for each in fed
            for text in wire.warnings(each)
        ]


def assemble(
    container: containers.Container, packages: Sequence[str], only: Sequence[str] = ()
) -> Assembly:
    """Find the consumers, read the settings, resolve options, signatures and constructors.

    Args:
        only: Names of consumers; none means all.

    Raises:
        StartError: With every fault of the application, one sentence each; a `DeclarationError`
            or a `ConfigurationError` where all faults are of one kind.
    """
    faults = Faults()
    classes = faults.collect(discover, packages) or []
    wires: Wires = container.providers["wires"]()
    make_settings, settings_type = settings_source(container)
    settings, wrong = environment.read(make_settings, settings_type)
    faults.configuration += wrong
    named = _named(classes, faults)
    kinds = {name: class_.options_type() for name, class_ in named.items()}
    overrides, wrong = environment.overrides(settings or environment.salvage(settings_type), kinds)
    faults.configuration += wrong
    chosen = _chosen(named, only, faults)
    plan = Plan(container)
    fed: dict[Wire, list[Declared]] = {}
    for name, class_ in chosen.items():
        wire = _wire(class_, wires, faults)
        if wire is None:
            continue
        declared = _declared(name, class_, wire, overrides.get(name, {}), plan, faults)
        if declared is None:
            continue
        fed.setdefault(wire, []).append(declared)
        if settings is not None:
            faults.declaration += wire.check(declared, settings)
    faults.declaration += _contested(each for every in fed.values() for each in every)
    faults.throw()
    assert settings is not None
    return Assembly(settings, [(wire, fed[wire]) for wire in wires.values() if wire in fed])


class Faults:
    """Collects what is wrong, so that all of it can be said at once."""

    def __init__(self) -> None:
        self.declaration: list[str] = []
        self.configuration: list[str] = []

    def collect(self, call: Any, *args: Any) -> Any:
        """What *call* returns; None where it raised, and then its faults are kept."""
        try:
            return call(*args)
        except DeclarationError as error:
            self.declaration += error.faults
            return None

    def throw(self) -> None:
        """Raise what has been collected, if anything has."""
        if self.declaration and self.configuration:
            raise StartError(*self.declaration, *self.configuration)
        if self.declaration:
            raise DeclarationError(*self.declaration)
        if self.configuration:
            raise ConfigurationError(*self.configuration)


def settings_source(container: containers.Container) -> tuple[Any, type[WorkerSettings]]:
    """The provider of the settings, and the class that says which variables there are."""
    provider = container.providers["settings"]
    made = getattr(provider, "cls", None)
    if isinstance(made, type) and issubclass(made, WorkerSettings):
        return provider, made
    return provider, WorkerSettings


def _named(classes: Sequence[type[Consumer]], faults: Faults) -> dict[str, type[Consumer]]:
    """The classes by their names, which compare as environment variables do."""
    named: dict[str, type[Consumer]] = {}
    seen: dict[str, type[Consumer]] = {}
    for class_ in classes:
        name = getattr(class_, "name", class_.__name__)
        if not isinstance(name, str) or not name:
            faults.declaration.append(f"{place(class_)}: option 'name' is {name!r}: write a string")
            continue
        other = seen.setdefault(folded(name), class_)
        if other is not class_:
            faults.declaration.append(
                f"{place(class_)} and {place(other)} both have the name {name!r}; "
                "give one of them another `name`"
            )
            continue
        named[name] = class_
    return named


def _chosen(
    named: dict[str, type[Consumer]], only: Sequence[str], faults: Faults
) -> dict[str, type[Consumer]]:
    if not only:
        return named
    by_key = {folded(name): name for name in named}
    chosen = {}
    for asked in only:
        name = by_key.get(folded(asked))
        if name is not None:
            chosen[name] = named[name]
            continue
        nearest = difflib.get_close_matches(asked, named, n=1, cutoff=0.4)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        faults.configuration.append(f"--only {asked}: there is no consumer of that name{hint}")
    return chosen


def _wire(class_: type[Consumer], wires: Wires, faults: Faults) -> Wire | None:
    for base in class_.__mro__:
        if base in wires:
            return wires[base]
    known = ", ".join(base.__name__ for base in wires)
    faults.declaration.append(
        f"{place(class_)}: no wire feeds a class of its bases; subclass one of {known}"
    )
    return None


def _declared(
    name: str,
    class_: type[Consumer],
    wire: Wire,
    overrides: Mapping[str, Override],
    plan: Plan,
    faults: Faults,
) -> Declared | None:
    factory = faults.collect(plan.factory, class_)
    options = faults.collect(_options, name, class_, overrides)
    hooks = list(_wrong_hooks(class_))
    faults.declaration += hooks
    signatures = faults.collect(class_.signatures, options, wire.delivery, plan.resolve)
    if hooks or options is None or factory is None or signatures is None:
        return None
    if any(each.batch for each in signatures.values()):
        options = _options(name, class_, overrides, batch=True)
    return Declared(class_, options, signatures, factory)


def _wrong_hooks(class_: type[Consumer]) -> Iterator[str]:
    """Faults of the methods that are awaited besides `handle`."""
    for name in _HOOKS:
        hook = getattr(class_, name)
        if not callable(hook):
            yield f"{place(class_)}: {name} is {hook!r}: it has to be an `async def`"
        elif not inspect.iscoroutinefunction(inspect.unwrap(hook)):
            yield f"{place(hook)}: has to be an `async def`"


def _options(
    name: str, class_: type[Consumer], overrides: Mapping[str, Override], batch: bool = False
) -> Options:
    try:
        return resolve(class_.options_type(), class_, name, overrides, batch=batch)
    except InvalidOption as error:
        raise DeclarationError(*(f"{place(class_)}: {each}" for each in error.faults)) from error


def _contested(all_declared: Iterable[Declared]) -> Iterator[str]:
    """Faults of consumers that claim the same."""
    claimed: dict[str, type[Consumer]] = {}
    for declared in all_declared:
        for claim in declared.consumer.claims(declared.options):
            other = claimed.setdefault(claim, declared.consumer)
            if other is not declared.consumer:
                yield f"{place(declared.consumer)} and {place(other)} both answer {claim}"
