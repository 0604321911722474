"""Variables against settings and options: every fault at once, each with the variable to mend."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_type_hints

from pydantic import ValidationError
from pydantic_settings import SettingsError

from workerkit.config.annotations import Location, as_written, leaves, strays
from workerkit.config.certificates import file_faults
from workerkit.config.explain import Faults, bad_json, did_you_mean, in_code
from workerkit.config.salvage import valid_part
from workerkit.config.settings import WorkerSettings
from workerkit.config.variables import Place, Variables, most_like
from workerkit.describe import describe_class
from workerkit.options import Options, Override, Source, adapters, folded, in_words

CONSUMERS = "consumers"

_NO_SETTINGS = "which is no WorkerSettings: derive its class from workerkit.WorkerSettings"


def read(
    make: Callable[[], WorkerSettings], settings_type: type[WorkerSettings]
) -> tuple[WorkerSettings | None, list[str]]:
    """Make the settings, and say everything that is wrong with the variables they come from.

    Args:
        make: Makes the settings, usually the container's provider.
        settings_type: What it makes; says under which names to look.

    Returns:
        The settings, None where they are invalid, and one sentence for each fault. There may be
        faults although there are settings: a variable that sets nothing is one.
    """
    settings: WorkerSettings | None = None
    found: list[str] = []
    made: Any = getattr(make, "cls", None)
    if isinstance(made, type) and not issubclass(made, WorkerSettings):
        return None, [f"provider 'settings' makes {describe_class(made)}, {_NO_SETTINGS}"]
    try:
        variables = Variables(settings_type)
    except (OSError, UnicodeDecodeError, SettingsError) as error:
        return None, [f"{settings_type.__name__} cannot be read: {_reason(error)}"]
    faults = Faults(variables)
    try:
        settings = make()
    except SettingsError as error:
        found.append(f"{settings_type.__name__} cannot be read: {error}")
    except ValidationError as error:
        found += faults.of_settings(error)
    except Exception as error:
        # The container may make them by any code of the user's.
        found.append(f"{settings_type.__name__} cannot be made: {type(error).__name__}: {error}")
    other: object = settings
    if other is not None and not isinstance(other, WorkerSettings):
        return None, [f"provider 'settings' made a {type(other).__qualname__}, {_NO_SETTINGS}"]
    found += faults.of_names()
    readable = settings or valid_part(settings_type)
    found += [f"{faults.label(at)} {text}" for at, text in file_faults(readable)]
    return settings, list(dict.fromkeys(found))


def overrides(
    settings: WorkerSettings, consumers: Mapping[str, type[Options]], *, complete: bool = True
) -> tuple[dict[str, dict[str, Override]], list[str]]:
    """Parse what the settings say about the options of consumers.

    Names of consumers compare case-folded without underscores. Values are text as an operator
    writes it, or already of the option's type where they were given in code.

    Args:
        settings: Its `consumers` hold the values.
        consumers: The type of the options of every consumer, by the consumer's name.
        complete: Whether these are all; if a module could not be imported, there may be others,
            and nothing is wrong with a name that is not among them.

    Returns:
        The values by consumer and option, and one sentence for each fault. What is at fault is
        not among the values.
    """
    variables = Variables(type(settings))
    names = {folded(name): name for name in consumers}
    chosen: dict[str, dict[str, Override]] = {}
    faults: list[str] = []
    for key, given in settings.consumers.items():
        name = names.get(folded(key))
        if name is None:
            if complete:
                faults += _unknown_consumer(variables, key, given, list(consumers))
            continue
        options = _ConsumerOptions(variables, key, consumers[name])
        for option, value in given.items():
            override, wrong = options.parse(option, value)
            faults += wrong
            if override is None:
                continue
            first = chosen.setdefault(name, {}).setdefault(option.lower(), override)
            if first is not override:
                faults.append(f"{first.origin} and {override.origin} set the same option: keep one")
    return chosen, list(dict.fromkeys(faults))


class _ConsumerOptions:
    """The options of one consumer, which is called *key* in the settings."""

    def __init__(self, variables: Variables, key: str, kind: type[Options]) -> None:
        self._variables = variables
        self._faults = Faults(variables)
        self._key = key
        self._hints = get_type_hints(kind, include_extras=True)
        self._adapters = dict(adapters(kind))
        # Renaming a consumer by its own name would change the very variable that does it.
        self._adapters.pop("name", None)

    def parse(self, option: str, value: Any) -> tuple[Override | None, list[str]]:
        """Return the override, or None and what is wrong with it."""
        at: Location = (CONSUMERS, self._key, option)
        adapter = self._adapters.get(option.lower())
        if adapter is None:
            return None, list(self._unknown(at, value))
        hint = self._hints[option.lower()]
        try:
            written = as_written(hint, value)
        except (ValueError, RecursionError) as error:
            return None, [f"{self._faults.label(at, value)} {bad_json(error)}"]
        # Dataclasses ignore keys that they do not know, so validation alone would miss them.
        faults = [self._stray(at, path, hint) for path in strays(hint, written)]
        if not isinstance(value, Mapping):
            faults += self._without_effect(at)
        try:
            valid = adapter.validate_python(written)
        except ValidationError as error:
            faults += self._faults.of_option(error, at, hint, value)
        if faults:
            return None, faults
        return Override(valid, *_origin(self._variables, at, value)), []

    def _without_effect(self, at: Location) -> Iterator[str]:
        """Faults of variables for parts of an option that another one sets as a whole."""
        for part in self._variables.under(at):
            yield f"{part.name} has no effect beside {self._variables.name(at)}: keep one"

    def _unknown(self, at: Location, value: Any) -> Iterator[str]:
        nearest = most_like(str(at[-1]), self._adapters)
        hint = did_you_mean(self._variables.name((*at[:-1], nearest)))
        for label in self._faults.labels(at, value):
            yield f"{label}: no option of that name{hint}"

    def _stray(self, at: Location, path: Location, hint: Any) -> str:
        known = {".".join(leaf): leaf for leaf in leaves(hint, ()) if leaf}
        nearest = known[most_like(".".join(map(str, path)), known)]
        name = self._variables.name((*at, *nearest))
        return f"{self._faults.label((*at, *path))}: no option of that name{did_you_mean(name)}"


def _unknown_consumer(
    variables: Variables, key: str, given: Mapping[str, Any], names: list[str]
) -> Iterator[str]:
    known = [in_words(name) for name in names]
    nearest = most_like(key, known)
    for option, value in given.items():
        at: Location = (CONSUMERS, key, option)
        name = variables.name((CONSUMERS, nearest, option)) if nearest else ""
        for label in Faults(variables).labels(at, value):
            yield f"{label}: no consumer of that name{did_you_mean(name)}"


def _origin(variables: Variables, at: Location, value: Any) -> tuple[Source, str]:
    """Return where the *value* of an option comes from, and what an operator calls it."""
    found = variables.locate(at)
    standing = [found.variable] if found and found.value == value else []
    if not standing and isinstance(value, Mapping):
        standing = variables.under(at)
    origin = ", ".join(variable.name for variable in standing)
    if not origin:
        return Source.SETTINGS, in_code(at)
    if any(variable.place is Place.SECRET_FILE for variable in standing):
        return Source.SETTINGS, f"secret file {origin}"
    return Source.ENVIRONMENT, origin


def _reason(error: Exception) -> str:
    """Return why a file cannot be read, without what is in it."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return "a file is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
