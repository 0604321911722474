"""A consumer's options: framework < class < settings < environment, and where each came from."""

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


Settlement = Annotated[
    Literal[Action.ACK, Action.REQUEUE, Action.REJECT, Action.DEAD_LETTER],
    BeforeValidator(_settles),
]
"""What a class may say that becomes of a delivery."""

# Between the words of a class name: OrderPlaced, HTTPProbe.
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SECRET = frozenset({"url"})
NOT_SET: Mapping[str, bool] = MappingProxyType({"set": False})
"""Metadata of a field that is no option: neither a class nor an operator sets it."""


@dataclass(frozen=True, slots=True)
class Matters:
    """When an option has an effect.

    Attributes:
        option: The option, or other attribute of the options, that decides.
        given: Whether that has to be set, or has to be absent.
        text: Why there is no effect otherwise, for a fault.
        harmless: Values that may be set nevertheless.
    """

    option: str
    given: bool
    text: str
    harmless: tuple[object, ...] = ()


def matters_with(option: str, text: str) -> Mapping[str, Any]:
    """Metadata of a field that has an effect only where *option* is set."""
    return MappingProxyType({"matters": Matters(option, True, text)})


def matters_without(option: str, text: str, *harmless: object) -> Mapping[str, Any]:
    """Metadata of a field that has an effect only where *option* is not set.

    Args:
        harmless: Values of the field that agree with what *option* does.
    """
    return MappingProxyType({"matters": Matters(option, False, text, harmless)})


OF_BATCHES = matters_with("batch", "handle takes no list")


def unless_retried(*last: Action) -> Mapping[str, Any]:
    """Metadata of `on_exception`: a policy decides in its place, and *last* is how that ends."""
    return matters_without("retry", "retry decides what becomes of failures; keep one", *last)


BATCH_DEFAULTS: Mapping[str, Any] = MappingProxyType({"concurrency": 1})
"""What a consumer whose `handle` takes a list has instead of the defaults of its kind."""


class Source(StrEnum):
    """Where the value of an option came from."""

    FRAMEWORK = "framework"
    CLASS = "class"
    SETTINGS = "settings"
    ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True)
class Override:
    """A value that the settings or the environment give to one option.

    Attributes:
        value: Already of the option's type.
        origin: The environment variable, or the settings field, as an operator would write it.
    """

    value: Any
    source: Source
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What every consumer can be told. Kinds of consumers add their own fields.

    A field's annotation is the option's type, its default the framework's.

    Attributes:
        name: In logs, metrics and environment variables.
        concurrency: Calls of `handle` at the same time.
        timeout: Seconds for one call of `handle`; None for no limit.
        batch: Whether `handle` takes a list; what it declares decides, and nobody sets it.
        sources: Where each value came from, by option.
        origins: The variable or settings field that gave it, by option, for faults.
    """

    name: str
    concurrency: Concurrency = 1
    timeout: Seconds | None = 300.0
    batch: bool = field(default=False, repr=False, metadata=NOT_SET)
    sources: Mapping[str, Source] = field(
        default_factory=dict, repr=False, compare=False, metadata=NOT_SET
    )
    origins: Mapping[str, str] = field(
        default_factory=dict, repr=False, compare=False, metadata=NOT_SET
    )


Kind = TypeVar("Kind", bound=Options)


class InvalidOption(ValueError):
    """Class attributes do not fit the options of their names, or are missing.

    Args:
        *faults: One sentence each.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__(*faults)
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(self.faults)


def folded(name: str) -> str:
    """A consumer's name as it compares: `OrderPlaced` and `ORDER_PLACED` are the same."""
    return name.replace("_", "").casefold()


def in_words(name: str) -> str:
    """A consumer's name as it stands in variables, in lower case: `order_placed`."""
    return _WORDS.sub("_", name).lower()


def adapters(kind: type[Options]) -> Mapping[str, TypeAdapter[Any]]:
    """One validator per option of *kind*, by name."""
    hashable: Any = kind  # mypy holds the hash of a frozen dataclass against the cache.
    return _adapters(hashable)


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
        name: The consumer's name, where the class does not set one.
        overrides: From the settings and the environment, by option.
        batch: Whether its `handle` takes a list.

    Raises:
        InvalidOption: Class attributes have the wrong type, are out of bounds, missing or misspelt;
            with all of them.
    """
    values: dict[str, Any] = {"name": name, "batch": batch, **(BATCH_DEFAULTS if batch else {})}
    sources = dict.fromkeys(adapters(kind), Source.FRAMEWORK)
    missing: list[str] = []
    faults: list[str] = []
    for option, adapter in adapters(kind).items():
        try:
            if option in overrides:
                sources[option] = overrides[option].source
                values[option] = _laid_over(adapter, declared, option, overrides[option])
            elif _states(declared, option):
                sources[option] = Source.CLASS
                values[option] = _validated(adapter, option, getattr(declared, option))
            elif option not in values and option in _required(kind):
                missing.append(option)
        except InvalidOption as error:
            faults += error.faults
    unset = [option for option, source in sources.items() if source is Source.FRAMEWORK]
    meant = misspelt(declared, declared, sources, unset)
    faults += [no_option(name, option) for name, option in meant.items()]
    faults += [
        f"option {option!r} is missing: the class has to set it"
        for option in missing
        if option not in meant.values()
    ]
    if faults:
        raise InvalidOption(*faults)
    origins = {name: each.origin for name, each in overrides.items()}
    return kind(**values, sources=MappingProxyType(sources), origins=MappingProxyType(origins))


def no_option(name: str, meant: str) -> str:
    """Return what is wrong with an attribute that looks like the option *meant*."""
    return f"there is no option {name!r}; did you mean {meant!r}?"


def without_effect(
    options: Options, declared: type, unknown: Collection[str] = ()
) -> Iterator[tuple[str, str]]:
    """Yield options that were set in vain: the variable or "", and what is wrong with it.

    What a class inherits is not among them, because a base may be that of other classes too, and
    neither is what an override by an operator has put out of force.

    Args:
        unknown: Attributes of *options* that nothing is known of because something else is wrong.
    """
    for each in dataclasses.fields(options):
        rule: Matters | None = each.metadata.get("matters")
        source = options.sources.get(each.name, Source.FRAMEWORK)
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
        if source is Source.FRAMEWORK or (source is Source.CLASS and not stated):
            continue
        yield options.origins.get(each.name, ""), f"option {each.name!r} has no effect: {rule.text}"


def _laid_over(adapter: TypeAdapter[Any], declared: type, option: str, override: Override) -> Any:
    """The value of an override; one that is in parts is laid over what the class says."""
    if not isinstance(override.value, RetryTuning):
        return override.value
    stated = getattr(declared, option, None)
    try:
        return override.value.over(_validated(adapter, option, stated))
    except ValueError as error:
        raise InvalidOption(f"{override.origin}: {error}") from error


def _required(kind: type[Options]) -> set[str]:
    missing = dataclasses.MISSING
    return {
        each.name
        for each in dataclasses.fields(kind)
        if each.default is missing and each.default_factory is missing
    }


def _states(declared: type, option: str) -> bool:
    """Whether the class or one of its bases gives *option* a value."""
    return hasattr(declared, option)


def _validated(adapter: TypeAdapter[Any], option: str, found: object) -> Any:
    try:
        return adapter.validate_python(found, strict=None)
    except ValidationError as error:
        text = sentence(error.errors(include_url=False, include_input=False)[0]["msg"])
        raise InvalidOption(f"option {option!r} is {_quoted(option, found)}: {text}") from error


def _quoted(option: str, found: object) -> str:
    """A class's value for a fault; a URL may have a password in it."""
    text = repr(found)
    return HIDDEN if option in _SECRET or may_hold_credentials(text) else text
