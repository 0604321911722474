"""Load the settings and the options of consumers, and report every fault of the variables.

A variable is read by `sources` and validated as a part of `WorkerSettings`. The values for options
are validated here, since only a consumer knows their types. `Variables` finds the variable for the
location of an error of pydantic, `Faults` makes the sentence.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, WrapValidator, create_model
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError

from workerkit.config.annotations import Location, decode, members
from workerkit.config.certificates import file_faults
from workerkit.config.explain import Faults, in_code
from workerkit.config.settings import WorkerSettings
from workerkit.config.variables import CONSUMERS, Variable, Variables, VariableSource
from workerkit.describe import describe_class
from workerkit.options import (
    Options,
    Override,
    Source,
    class_only_options,
    folded,
    snake_case,
    variable_options,
)

_NO_SETTINGS = "which is not a WorkerSettings: derive its class from workerkit.WorkerSettings"
_INVALID = object()


def load_settings(
    make: Callable[[], WorkerSettings], settings_type: type[WorkerSettings]
) -> tuple[WorkerSettings | None, list[str]]:
    """Create the settings, and report every fault of the variables that they come from.

    Args:
        make: Creates the settings, usually the container's provider.
        settings_type: The class that it creates, which defines the names of the variables.

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
        faults = Faults(Variables(settings_type))
    except (OSError, UnicodeDecodeError, SettingsError) as error:
        return None, [f"{settings_type.__name__} cannot be read: {_reason(error)}"]
    try:
        settings = make()
    except SettingsError as error:
        found.append(f"{settings_type.__name__} cannot be read: {error}")
    except ValidationError as error:
        found += faults.of_errors(_details(error))
    except Exception as error:
        # A provider of the user may run any code.
        found.append(f"{settings_type.__name__} cannot be made: {type(error).__name__}: {error}")
    other: object = settings
    if other is not None and not isinstance(other, WorkerSettings):
        return None, [f"provider 'settings' made a {type(other).__qualname__}, {_NO_SETTINGS}"]
    found += faults.of_names()
    readable = settings or valid_part(settings_type)
    found += [f"{faults.label(at)} {text}" for at, text in file_faults(readable)]
    return settings, list(dict.fromkeys(found))


def load_options(
    settings: WorkerSettings, consumers: Mapping[str, type[Options]], *, complete: bool = True
) -> tuple[dict[str, dict[str, Override]], list[str]]:
    """Validate the options of consumers in the settings, and report every fault of them.

    Names of consumers compare case-folded without underscores. Values are text as an operator
    writes it, or already of the option's type where they were given in code.

    Args:
        settings: Its `consumers` hold the values.
        consumers: The type of the options of every consumer, by the consumer's name.
        complete: Whether these are all consumers. If a module could not be imported, they are not,
            and an unknown name is no fault.

    Returns:
        The valid values by consumer and option, and one sentence for each fault.
    """
    names = {folded(name): name for name in consumers}
    written = {key: names[folded(key)] for key in settings.consumers if folded(key) in names}
    types = {name: _option_types(kind) for name, kind in consumers.items()}
    known = {snake_case(name): each for name, each in types.items()}
    known |= {key: types[name] for key, name in written.items()}
    variables = Variables(type(settings), known)
    faults = Faults(variables)
    overrides: dict[str, dict[str, Override]] = {}
    found: list[str] = []
    for key, options in settings.consumers.items():
        if key not in written and not complete:
            continue
        for option, value in options.items():
            at = (CONSUMERS, key, option)
            holders = _variables_of(variables, at, value)
            if not holders:
                variables.set_in_code(at)
            if option.lower() not in known.get(key, ()):
                kind = consumers.get(written.get(key, ""))
                if kind is not None and option.lower() in class_only_options(kind):
                    found.append(f"{faults.label(at)}: only the class sets {option.lower()!r}")
                else:
                    found += faults.of_option_names(at, value)
                continue
            valid, wrong = _validate(variables, faults, at, value)
            found += wrong
            if valid is _INVALID:
                continue
            override = Override(valid, *_origin(holders, at))
            first = overrides.setdefault(written[key], {}).setdefault(option.lower(), override)
            if first is not override:
                found.append(f"{first.origin} and {override.origin} set the same option: keep one")
    return overrides, list(dict.fromkeys(found))


def valid_part(settings_type: type[WorkerSettings]) -> WorkerSettings | None:
    """Return settings of everything that is valid, for finding faults and not for running.

    What is invalid has its default, or is None where there is none. An invalid entry of a dict is
    left out, but of a section what is valid is kept, and so are the names of connections.

    Returns:
        None where the environment, a `.env` or a secret file cannot be read at all.
    """
    config = {**settings_type.model_config, "extra": "ignore"}
    base: Any = type("Base", (WorkerSettings,), {"model_config": config})
    fields: Any = {
        name: (
            Annotated[field.rebuild_annotation(), WrapValidator(partial(_valid_or_default, field))],
            Field(
                default_factory=partial(_default, field), validation_alias=field.validation_alias
            ),
        )
        for name, field in settings_type.model_fields.items()
    }
    try:
        found: Any = create_model("ValidPart", __base__=base, **fields)()
    except (ValidationError, SettingsError, OSError, UnicodeDecodeError):
        return None
    return settings_type.model_construct(**{name: getattr(found, name) for name in fields})


def _option_types(kind: type[Options]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {option: hints[option] for option in variable_options(kind)}


def _validate(
    variables: Variables, faults: Faults, at: Location, value: Any
) -> tuple[Any, list[str]]:
    """Return the valid value of the option *at*, else `_INVALID`, and a sentence for each fault."""
    annotation = variables.annotation(at)
    try:
        decoded = decode(annotation, value)
    except (ValueError, RecursionError) as error:
        return _INVALID, [faults.of_json(at, error)]
    # Dataclasses ignore unknown keys, so validation alone would miss them.
    found = list(faults.of_option_names(at, decoded))
    if not isinstance(value, Mapping):
        found += faults.of_parts(at)
    try:
        valid = TypeAdapter(annotation).validate_python(decoded)
    except ValidationError as error:
        found += faults.of_errors(_details(error, at))
        return _INVALID, found
    return _INVALID if found else valid, found


def _variables_of(variables: Variables, at: Location, value: Any) -> list[Variable]:
    """Return the variables that the *value* of an option comes from; none if it comes from code."""
    found = variables.locate(at)
    if found and found.value == value:
        return [found.variable]
    return variables.under(at) if isinstance(value, Mapping) else []


def _origin(holders: list[Variable], at: Location) -> tuple[Source, str]:
    """Return the source of an option, and the name of its variables or of the field."""
    origin = ", ".join(variable.name for variable in holders)
    if not origin:
        return Source.SETTINGS, in_code(at)
    if any(variable.source is VariableSource.SECRET_FILE for variable in holders):
        return Source.SETTINGS, f"secret file {origin}"
    return Source.ENVIRONMENT, origin


def _details(error: ValidationError, at: Location = ()) -> list[ErrorDetails]:
    """Return the errors of *error*, with locations that begin with *at*."""
    found = error.errors(include_url=False, include_context=False)
    for each in found:
        each["loc"] = (*at, *each["loc"])
    return found


def _reason(error: Exception) -> str:
    """Return why a file cannot be read, without what is in it."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return "a file is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _valid_or_default(field: FieldInfo, value: Any, _: Any) -> Any:
    part = _valid(field.rebuild_annotation(), value)
    return _default(field) if part is _INVALID else part


def _valid(annotation: Any, value: Any) -> Any:
    """Return what is valid of *value*; `_INVALID` if nothing is."""
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        kinds = members(annotation) if isinstance(value, Mapping) else []
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            fields = kind.model_fields
            types = {name: each.rebuild_annotation() for name, each in fields.items()}
            return kind.model_construct(**_valid_entries(types, value))
        if len(get_args(kind)) == 2:
            return _valid_entries(dict.fromkeys(value, get_args(kind)[1]), value)
    return _INVALID


def _valid_entries(types: Mapping[Any, Any], value: Mapping[Any, Any]) -> dict[Any, Any]:
    parts = {key: _valid(types[key], value[key]) for key in types if key in value}
    return {key: part for key, part in parts.items() if part is not _INVALID}


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return None
    return field.get_default(call_default_factory=True, validated_data={})
