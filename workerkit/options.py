"""Options of consumers: framework < class < settings < environment.

`WorkerSettings` chooses between settings and environment, `load_options` validates their values,
and `resolve` chooses between these, the class and the framework. Each value keeps its source.
"""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from workerkit.attributes import misspelt
from workerkit.config.explain import sentence
from workerkit.delivery import Action
from workerkit.retry import RetryTuning
from workerkit.safe_text import HIDDEN, may_hold_credentials

Concurrency = Annotated[int, Field(ge=1, le=10_000)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _settles(found: object) -> object:
    if found == Action.RETRY:
        raise ValueError("set `retry` to a RetryPolicy instead")
    if found not in list(Action):
        raise ValueError("should be 'ack', 'requeue', 'reject' or 'dead_letter'")
    return found


def _as_published(found: object) -> object:
    if not isinstance(found, Mapping):
        raise ValueError("write a dict of types by destination, such as {'booked': OrderBooked}")
    for type_ in found.values():
        if isinstance(type_, str):
            raise ValueError(f"write the type itself, not its name {type_!r}")
    return found


Published = Annotated[Any, BeforeValidator(_as_published)]
"""Types of bodies by their destination."""

Settlement = Annotated[
    Literal[Action.ACK, Action.REQUEUE, Action.REJECT, Action.DEAD_LETTER],
    BeforeValidator(_settles),
]
"""The actions that a class may choose for a delivery."""

# Between the words of a class name: OrderPlaced, HTTPProbe.
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SECRET = frozenset({"url"})
NOT_SET: Mapping[str, bool] = MappingProxyType({"set": False})
"""Metadata of a field that is no option: neither a class nor an operator can set it."""


CLASS_ONLY: Mapping[str, bool] = MappingProxyType({"variable": False})
"""Metadata of an option that only a class can set, and no operator."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition for an option to have an effect.

    Attributes:
        option: The option, or other attribute of the options, that decides.
        given: Whether it has to be set, or has to be absent.
        text: Why there is no effect otherwise, for a fault.
        harmless: Values that may be set in any case.
    """

    option: str
    given: bool
    text: str
    harmless: tuple[object, ...] = ()


def only_with(option: str, text: str) -> Mapping[str, Any]:
    """Return the metadata of a field that has an effect only if *option* is set."""
    return MappingProxyType({"condition": Condition(option, True, text)})


def only_without(option: str, text: str, *harmless: object) -> Mapping[str, Any]:
    """Return the metadata of a field that has an effect only if *option* is not set.

    Args:
        harmless: Values of the field that agree with the effect of *option*.
    """
    return MappingProxyType({"condition": Condition(option, False, text, harmless)})


OF_BATCHES = only_with("batch", "handle takes no list")


def unless_retried(*last: Action) -> Mapping[str, Any]:
    """Return the metadata of `on_exception`, which has no effect with a retry policy.

    Args:
        last: The actions after the last attempt of a policy.
    """
    return only_without("retry", "retry decides what becomes of failures; keep one", *last)


BATCH_DEFAULTS: Mapping[str, Any] = MappingProxyType({"concurrency": 1})
"""The defaults of a consumer whose `handle` takes a list, instead of those of its kind."""


class Source(StrEnum):
    """The source of the value of an option."""

    DEFAULT = "default"
    CLASS = "class"
    SETTINGS = "settings"
    ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True)
class Override:
    """A value for one option from the settings or the environment.

    Attributes:
        value: Already of the option's type.
        origin: The environment variable or the field of the settings, for messages.
    """

    value: Any
    source: Source
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of every consumer. Kinds of consumers add their own fields.

    A field's annotation is the option's type, its default the framework's.

    Attributes:
        name: In logs, metrics and environment variables.
        concurrency: Calls of `handle` at the same time.
        timeout: Seconds for one call of `handle`; None for no limit.
        paused: Whether it is paused when the process starts, until an operator resumes it.
        publishes: What the class publishes, for the AsyncAPI document and `workerkit topology`:
            types of bodies by the name of a queue, or by a `Destination`. It has no effect on
            publishing.
        batch: Whether `handle` takes a list. Its annotation decides; it cannot be set.
        interceptors: Around each call of `handle`, the outermost first: those of the container and
            of the class. The Runner sets them.
        sources: The source of each value, by option.
        origins: The variables or fields of the settings that set values, by option, for faults.
    """

    # A variable that sets it would contain the name that it changes.
    name: str = field(metadata=CLASS_ONLY)
    concurrency: Concurrency = 1
    timeout: Seconds | None = 300.0
    paused: bool = False
    publishes: Published = field(default_factory=dict, metadata=CLASS_ONLY)
    batch: bool = field(default=False, repr=False, metadata=NOT_SET)
    interceptors: tuple[Any, ...] = field(default=(), repr=False, compare=False, metadata=NOT_SET)
    sources: Mapping[str, Source] = field(
        default_factory=dict, repr=False, compare=False, metadata=NOT_SET
    )
    origins: Mapping[str, str] = field(
        default_factory=dict, repr=False, compare=False, metadata=NOT_SET
    )


Kind = TypeVar("Kind", bound=Options)


class InvalidOption(ValueError):
    """Class attributes that are not valid as options, or are missing.

    Args:
        *faults: One sentence each.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__(*faults)
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(self.faults)


def folded(name: str) -> str:
    """Return a consumer's name for comparisons: `OrderPlaced` and `ORDER_PLACED` are the same."""
    return name.replace("_", "").casefold()


def snake_case(name: str) -> str:
    """Return a consumer's name as in variables, in lower case: `order_placed`."""
    return _WORDS.sub("_", name).lower()


def adapters(kind: type[Options]) -> Mapping[str, TypeAdapter[Any]]:
    """Return one validator per option of *kind*, by name."""
    hashable: Any = kind  # mypy takes a frozen dataclass for unhashable.
    return _adapters(hashable)


def class_only_options(kind: type[Options]) -> list[str]:
    """Return the names of the options that only the class can set."""
    fields_ = dataclasses.fields(kind)
    return ["interceptors", *(each.name for each in fields_ if "variable" in each.metadata)]


def variable_options(kind: type[Options]) -> list[str]:
    """Return the names of the options that the settings and the environment can set."""
    fields_ = dataclasses.fields(kind)
    return [each.name for each in fields_ if not {"set", "variable"}.intersection(each.metadata)]


@cache
def _adapters(kind: Any) -> Mapping[str, TypeAdapter[Any]]:
    hints = get_type_hints(kind, include_extras=True)
    names = [each.name for each in dataclasses.fields(kind) if each.metadata.get("set", True)]
    return MappingProxyType({name: TypeAdapter(hints[name]) for name in names})


def resolve(
    kind: type[Kind],
    declared: type,
    name: str,
    overrides: Mapping[str, Override],
    *,
    batch: bool = False,
) -> Kind:
    """Build the options of one consumer class.

    Args:
        kind: The options that this kind of consumer takes.
        declared: The user's class; its attributes named like options count.
        name: The consumer's name, if the class does not set one.
        overrides: From the settings and the environment, by option.
        batch: Whether its `handle` takes a list.

    Raises:
        InvalidOption: Class attributes have the wrong type, are out of bounds, missing or misspelt.
            It contains all faults.
    """
    values: dict[str, Any] = {"name": name, "batch": batch, **(BATCH_DEFAULTS if batch else {})}
    required = _required(kind) - set(values)
    sources: dict[str, Source] = {}
    missing: list[str] = []
    faults: list[str] = []
    for option, adapter in adapters(kind).items():
        sources[option] = _source(option, declared, overrides)
        try:
            if option in overrides:
                values[option] = _overridden(adapter, declared, option, overrides[option])
            elif sources[option] is Source.CLASS:
                values[option] = _validated(adapter, option, getattr(declared, option))
            elif option in required:
                missing.append(option)
        except InvalidOption as error:
            faults += error.faults
    unset = [option for option, source in sources.items() if source is Source.DEFAULT]
    similar = misspelt(declared, declared, sources, unset)
    faults += [unknown_option(name, option) for name, option in similar.items()]
    faults += [
        f"option {option!r} is missing: the class has to set it"
        for option in missing
        if option not in similar.values()
    ]
    if faults:
        raise InvalidOption(*faults)
    origins = {name: each.origin for name, each in overrides.items()}
    return kind(**values, sources=MappingProxyType(sources), origins=MappingProxyType(origins))


def unknown_option(name: str, option: str) -> str:
    """Return the fault of an attribute that looks like *option*."""
    return f"there is no option {name!r}; did you mean {option!r}?"


def without_effect(
    options: Options, declared: type, unknown: Collection[str] = ()
) -> Iterator[tuple[str, str]]:
    """Yield the faults of options that have no effect: the variable or "", and a sentence.

    Inherited options are no faults, because a base may be shared with other classes. Neither are
    options of the class that have no effect because an operator has set another one.

    Args:
        unknown: Attributes of *options* that are not known because of another fault.
    """
    for each in dataclasses.fields(options):
        rule: Condition | None = each.metadata.get("condition")
        source = options.sources.get(each.name, Source.DEFAULT)
        if (
            rule is None
            or rule.option in unknown
            or bool(getattr(options, rule.option)) is rule.given
        ):
            continue
        if getattr(options, each.name) in rule.harmless:
            continue
        overridden = options.sources.get(rule.option) in (Source.SETTINGS, Source.ENVIRONMENT)
        stated = each.name in vars(declared) and not overridden
        if source is Source.DEFAULT or (source is Source.CLASS and not stated):
            continue
        yield options.origins.get(each.name, ""), f"option {each.name!r} has no effect: {rule.text}"


def _source(option: str, declared: type, overrides: Mapping[str, Override]) -> Source:
    """Return where the value of *option* comes from: the one place that decides it.

    Settings and environment arrive as one override: `WorkerSettings` has chosen between them.
    """
    if option in overrides:
        return overrides[option].source
    return Source.CLASS if hasattr(declared, option) else Source.DEFAULT


def _overridden(adapter: TypeAdapter[Any], declared: type, option: str, override: Override) -> Any:
    """Return the value of an override; parts of a retry policy are added to that of the class."""
    if not isinstance(override.value, RetryTuning):
        return override.value
    try:
        policy = _validated(adapter, option, getattr(declared, option, None))
        return override.value.over(policy)
    except ValueError as error:
        raise InvalidOption(f"{override.origin}: {error}") from error


def _required(kind: type[Options]) -> set[str]:
    missing = dataclasses.MISSING
    return {
        each.name
        for each in dataclasses.fields(kind)
        if each.default is missing and each.default_factory is missing
    }


def _validated(adapter: TypeAdapter[Any], option: str, found: object) -> Any:
    try:
        return adapter.validate_python(found, strict=None)
    except ValidationError as error:
        text = sentence(error.errors(include_url=False, include_input=False)[0]["msg"])
        raise InvalidOption(f"option {option!r} is {_quoted(option, found)}: {text}") from error


def _quoted(option: str, found: object) -> str:
    """Return the value of a class for a fault, without URLs: they may contain a password."""
    text = repr(found)
    return HIDDEN if option in _SECRET or may_hold_credentials(text) else text
