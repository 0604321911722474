"""Assemble an application: check everything that can be checked without opening anything."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dependency_injector import containers

from workerkit.app.discovery import find_consumers
from workerkit.app.injection import Injector
from workerkit.app.interceptors import Interceptors
from workerkit.app.sections import extended_type, sections_of, with_sections
from workerkit.asyncapi import DescribesPublishing
from workerkit.attributes import (
    kind_of,
    misspelt,
    misspelt_hooks,
    of_other_kinds,
    users_classes,
)
from workerkit.codec import BUILT_IN, Codecs
from workerkit.config.load import load_options, load_settings, valid_part
from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.container import codecs_of, transports_of, unprovided
from workerkit.describe import describe_class
from workerkit.errors import ConfigurationError, DeclarationError, StartError
from workerkit.options import (
    InvalidOption,
    Options,
    Override,
    adapters,
    folded,
    resolve,
    unknown_option,
    without_effect,
)
from workerkit.tracing import tracing_faults
from workerkit.transport import Declared, Publishes, Transport, Warns

_HOOKS = ("on_start", "on_stop", "on_connection_error")

Transports = Mapping[type[Consumer], Transport]


@dataclass(frozen=True, slots=True)
class Assembly:
    """An application that is ready to start.

    Attributes:
        transports: Those with at least one consumer, each with its consumers.
        publishing: Those that can publish, with consumers or without.
        describing: Those that describe what classes publish, with consumers or without.
        codecs: Those of the container, and the built-in ones.
        name: Of the application: that of the settings, or of its first package.
    """

    settings: WorkerSettings
    transports: list[tuple[Transport, list[Declared]]]
    publishing: Sequence[Publishes]
    describing: Sequence[DescribesPublishing]
    codecs: Codecs
    name: str = "app"

    @property
    def declared(self) -> list[Declared]:
        """Every consumer."""
        return [each for _, declared in self.transports for each in declared]

    @property
    def serves_views(self) -> bool:
        """Whether there is an HTTP view."""
        return any(transport.kind == "http" for transport, _ in self.transports)

    @property
    def warnings(self) -> list[str]:
        """What is allowed but probably not intended, one sentence each."""
        return [
            text
            for transport, declared in self.transports
            if isinstance(transport, Warns)
            for each in declared
            for text in transport.warnings(each)
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
    faults = FaultCollector()
    classes, not_found = find_consumers(packages)
    faults.declaration += [*not_found, *unprovided(container)]
    transports: Transports = transports_of(container)
    settings, settings_type = _read_settings(container, transports, faults)
    named = _named(classes, faults)
    kinds = {name: class_.options_type() for name, class_ in named.items()}
    readable = settings or valid_part(settings_type)
    overrides: dict[str, dict[str, Override]] = {}
    if readable is not None:
        overrides, faulty = load_options(readable, kinds, complete=not not_found)
        faults.configuration += faulty
    # An unknown name may be that of a class in a module that cannot be imported.
    chosen = _chosen(named, only, FaultCollector() if not_found else faults)
    interceptors = Interceptors(container, Injector(container))
    codecs: Codecs = faults.collect(codecs_of, container) or BUILT_IN
    kinds_by_option = _kinds_by_option(transports)
    consumers: dict[Transport, list[Declared]] = {}
    describing = [each for each in transports.values() if isinstance(each, DescribesPublishing)]
    for name, class_ in chosen.items():
        transport = _transport(class_, transports, faults)
        if transport is None:
            continue
        own = overrides.get(name, {})
        declared = _declared(name, class_, transport, own, interceptors, codecs, faults)
        faults.declaration += _ineffective_attributes(class_, kinds_by_option)
        if declared is None:
            continue
        consumers.setdefault(transport, []).append(declared)
        if readable is not None:
            checks = [transport.check, *(each.publish_faults for each in describing)]
            faults.declaration += _checked(checks, declared, readable, valid=settings is not None)
    faults.declaration += _claimed_twice(each for every in consumers.values() for each in every)
    faults.throw()
    assert settings is not None
    used = [(each, consumers[each]) for each in transports.values() if each in consumers]
    name = settings.fleet.name or "".join(packages[:1]).partition(".")[0]
    return Assembly(settings, used, _publishing(transports), describing, codecs, name)


def _publishing(transports: Transports) -> Sequence[Publishes]:
    return [each for each in transports.values() if isinstance(each, Publishes)]


def _read_settings(
    container: containers.Container, transports: Transports, faults: "FaultCollector"
) -> tuple[WorkerSettings | None, type[WorkerSettings]]:
    """Return the settings with the sections of the transports, and their class."""
    make, settings_type = settings_source(container)
    settings, faulty = load_settings(make, settings_type)
    faults.configuration += faulty
    if settings is not None:
        faults.configuration += tracing_faults(settings)
        settings, faulty = with_sections(settings, sections_of(transports.values()))
        faults.configuration += faulty
    return settings, settings_type


def _checked(
    checks: Sequence[Callable[[Declared, WorkerSettings], Iterable[str]]],
    declared: Declared,
    settings: WorkerSettings,
    *,
    valid: bool,
) -> Sequence[str]:
    try:
        return [fault for check in checks for fault in check(declared, settings)]
    except Exception:
        # A transport may need the part of the settings that is invalid: its faults are found once
        # those of the settings are corrected.
        if valid:
            raise
        return ()


class FaultCollector:
    """Collects faults, so that all of them can be reported at once."""

    def __init__(self) -> None:
        self.declaration: list[str] = []
        self.configuration: list[str] = []

    def collect(self, call: Any, *args: Any) -> Any:
        """Return what *call* returns; None where it raised, and collect its faults."""
        try:
            return call(*args)
        except DeclarationError as error:
            self.declaration += error.faults
            return None

    def throw(self) -> None:
        """Raise what was collected, if anything was; each fault once."""
        self.declaration = list(dict.fromkeys(self.declaration))
        if self.declaration and self.configuration:
            raise StartError(*self.declaration, *self.configuration)
        if self.declaration:
            raise DeclarationError(*self.declaration)
        if self.configuration:
            raise ConfigurationError(*self.configuration)


def settings_source(container: containers.Container) -> tuple[Any, type[WorkerSettings]]:
    """Return the provider of the settings, and the class that has all variables.

    The class has the sections that transports add; what the provider creates does not.
    """
    provider = container.providers["settings"]
    settings_type = getattr(provider, "cls", None)
    if not (isinstance(settings_type, type) and issubclass(settings_type, WorkerSettings)):
        settings_type = WorkerSettings
    return provider, extended_type(settings_type, sections_of(transports_of(container).values()))


def _named(classes: Sequence[type[Consumer]], faults: FaultCollector) -> dict[str, type[Consumer]]:
    """Return the classes by name; names compare as environment variables do."""
    named: dict[str, type[Consumer]] = {}
    seen: dict[str, type[Consumer]] = {}
    for class_ in classes:
        name = getattr(class_, "name", class_.__name__)
        if not isinstance(name, str) or not name:
            faults.declaration.append(
                f"{describe_class(class_)}: option 'name' is {name!r}: write a string"
            )
            continue
        other = seen.setdefault(folded(name), class_)
        if other is not class_:
            faults.declaration.append(
                f"{describe_class(class_)} and {describe_class(other)} both have the name"
                f" {name!r}; give one of them another `name`"
            )
            continue
        named[name] = class_
    return named


def _chosen(
    named: dict[str, type[Consumer]], only: Sequence[str], faults: FaultCollector
) -> dict[str, type[Consumer]]:
    if not only:
        return named
    by_key = {folded(name): name for name in named}
    chosen = {}
    for wanted in only:
        name = by_key.get(folded(wanted))
        if name is not None:
            chosen[name] = named[name]
            continue
        nearest = difflib.get_close_matches(wanted, named, n=1, cutoff=0.4)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        faults.configuration.append(f"--only {wanted}: there is no consumer of that name{hint}")
    return chosen


def _transport(
    class_: type[Consumer], transports: Transports, faults: FaultCollector
) -> Transport | None:
    for base in class_.__mro__:
        if base in transports:
            return transports[base]
    known = ", ".join(base.__name__ for base in transports)
    faults.declaration.append(
        f"{describe_class(class_)}: workerkit does not know this kind of consumer; subclass one of"
        f" {known}"
    )
    return None


def _declared(
    name: str,
    class_: type[Consumer],
    transport: Transport,
    overrides: Mapping[str, Override],
    around: Interceptors,
    codecs: Codecs,
    faults: FaultCollector,
) -> Declared | None:
    injector = around.injector
    factory = faults.collect(injector.factory, class_)
    interceptors = faults.collect(around.of, class_)
    options = faults.collect(_options, name, class_, overrides)
    hooks = list(_faulty_hooks(class_))
    faults.declaration += hooks
    signatures = faults.collect(
        class_.signatures, options, transport.delivery, injector.resolve, codecs
    )
    batch = any(each.batch for each in (signatures or {}).values())
    if batch and options is not None:
        options = _options(name, class_, overrides, batch=True)
    if options is not None:
        unknown = ("batch",) if signatures is None else ()
        for variable, text in without_effect(options, class_, unknown):
            faults.declaration.append(f"{variable or describe_class(class_)}: {text}")
    if hooks or None in (options, factory, interceptors, signatures):
        return None
    return Declared(class_, options, signatures, factory, interceptors)


def _faulty_hooks(class_: type[Consumer]) -> Iterator[str]:
    """Yield the faults of the hooks."""
    for name in _HOOKS:
        hook = getattr(class_, name)
        if not callable(hook):
            yield f"{describe_class(class_)}: {name} is {hook!r}: it has to be an `async def`"
        elif not inspect.iscoroutinefunction(inspect.unwrap(hook)):
            yield f"{describe_class(hook)}: has to be an `async def`"


def _kinds_by_option(transports: Transports) -> Mapping[str, list[str]]:
    """Return the kinds of consumers that have an option, by option."""
    found: dict[str, list[str]] = {}
    for base in transports:
        for option in adapters(base.options_type()):
            found.setdefault(option, []).append(base.__name__)
    return found


def _ineffective_attributes(
    class_: type[Consumer], kinds: Mapping[str, list[str]]
) -> Iterator[str]:
    """Yield the faults of attributes and methods that have no effect."""
    known_options = adapters(class_.options_type())
    # A kind may have an option that cannot be set; then its transport reports it.
    known = {each.name for each in dataclasses.fields(class_.options_type())}
    for owner, name, meant in misspelt_hooks(class_):
        if meant != "handle":
            yield f"{describe_class(owner)}: nothing calls {name!r}; did you mean {meant!r}?"
    for owner in users_classes(class_):
        at = describe_class(owner)
        unset = [option for option in known_options if not hasattr(class_, option)]
        looks_like = misspelt(class_, owner, known_options, unset)
        if owner is not class_:  # Those of the class itself are found with its options.
            yield from (f"{at}: {unknown_option(*each)}" for each in looks_like.items())
        for name in of_other_kinds(class_, owner, known, kinds):
            if name not in looks_like:
                others, own_kind = ", ".join(kinds[name]), kind_of(class_).__name__
                yield f"{at}: {name!r} is an option of {others}, not of {own_kind}"


def _options(
    name: str, class_: type[Consumer], overrides: Mapping[str, Override], batch: bool = False
) -> Options:
    try:
        return resolve(class_.options_type(), class_, name, overrides, batch=batch)
    except InvalidOption as error:
        raise DeclarationError(
            *(f"{describe_class(class_)}: {each}" for each in error.faults)
        ) from error


def _claimed_twice(all_declared: Iterable[Declared]) -> Iterator[str]:
    """Yield the faults of consumers that claim the same."""
    claimed: dict[str, type[Consumer]] = {}
    for declared in all_declared:
        for claim in declared.consumer.claims(declared.options):
            other = claimed.setdefault(claim, declared.consumer)
            if other is not declared.consumer:
                here, there = describe_class(declared.consumer), describe_class(other)
                yield f"{here} and {there} both answer {claim}"
