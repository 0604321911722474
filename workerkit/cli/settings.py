"""List all environment variables of an application with their current values."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, SecretStr

from workerkit.amqp.queue import Queue
from workerkit.app.assembly import Assembly
from workerkit.cli.listing import DEFAULT, value_cells
from workerkit.cli.terminal import Cell, Column, print_line, print_table
from workerkit.config.annotations import Location, leaves, members, types_at
from workerkit.config.explain import is_secret
from workerkit.config.settings import WorkerSettings
from workerkit.config.variables import Variables
from workerkit.options import snake_case, variable_options
from workerkit.safe_text import HIDDEN, one_line, without_credentials
from workerkit.transport import Declared

_WIDEST = 24  # Of a value: those of lists are long.
_WIDE = 110
_NAMES = {SecretStr: "str", Queue: "str", Path: "path"}


@dataclass(frozen=True, slots=True)
class Row:
    """One variable.

    Attributes:
        default: The value if the variable is not set.
        value: The current value; secrets are `***`.
        source: The source of the value: `default`, `class`, `settings`, `environment`, `.env` or
            `secret file`.
    """

    variable: str
    type: str
    default: Any
    value: Any
    source: str


def inventory(assembly: Assembly) -> list[Row]:
    """Return the variables of the settings, then those of the options of each consumer."""
    settings = assembly.settings
    variables = Variables(type(settings))
    rows = []
    for name, field in type(settings).model_fields.items():
        if name == "consumers":
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        rows += [
            _setting(settings, variables, location, default)
            for location in _locations(settings, name, field.annotation)
        ]
    for declared in assembly.declared:
        rows += _options(variables, declared)
    return rows


def line_of(row: Row) -> str:
    """Return the line that a pipe gets for one variable."""
    return one_line(f"{row.variable}={_text(row.value)}  ({row.type}, {row.source})")


def print_variables(rows: Sequence[Row], *, all_values: bool) -> None:
    """Print a table of the variables, for people.

    Args:
        all_values: Also variables with their default.
    """
    columns = [
        Column("VARIABLE", whole=True),
        Column("VALUE", most=_WIDEST),
        Column("SOURCE", whole=True),
        Column("DEFAULT", most=_WIDEST, wide=_WIDE),
        Column("TYPE", most=_WIDEST, wide=_WIDE),
    ]
    shown = [row for row in rows if all_values or row.source != DEFAULT]
    cells = [
        (
            *value_cells(row.variable, _text(row.value), row.source),
            Cell("" if row.source == DEFAULT else _text(row.default), "dim"),
            Cell(row.type, "dim"),
        )
        for row in shown
    ]
    if cells:
        print_table(columns, cells)
    if hidden := len(rows) - len(shown):
        print_line(Cell(f"{hidden} variables are not set; --all shows them", "dim"))


def _text(value: Any) -> str:
    """Return a value as text for an environment variable."""
    if isinstance(value, dict) or (isinstance(value, list) and not all(map(_is_plain, value))):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict | list)


def _locations(settings: WorkerSettings, name: str, annotation: Any) -> Iterator[Location]:
    present = getattr(settings, name)
    keys = list(present) if isinstance(present, Mapping) else [""]
    for key in keys:
        for leaf in leaves(annotation, (key,) if key else ()):
            yield (name, *leaf)


def _setting(
    settings: WorkerSettings, variables: Variables, location: Location, default: Any
) -> Row:
    annotation = variables.annotation(location)
    found = variables.locate(location)
    secret = is_secret(location, annotation)
    return Row(
        variables.name(location),
        _type_name(annotation),
        _shown(_at(default, location[1:]), secret),
        _shown(_at(settings, location), secret),
        str(found.variable.source) if found else "default",
    )


def _options(variables: Variables, declared: Declared) -> Iterator[Row]:
    options = declared.options
    hints = get_type_hints(type(options), include_extras=True)
    defaults = {each.name: each.default for each in dataclasses.fields(options)}
    key = snake_case(options.name)
    for option in variable_options(type(options)):
        default = None if defaults[option] is dataclasses.MISSING else defaults[option]
        for leaf in leaves(hints[option], ()):
            location = ("consumers", key, option, *leaf)
            yield Row(
                variables.name(location),
                _type_name(types_at(hints[option], leaf)[0]),
                _shown(_at(default, leaf), secret=False),
                _shown(_at(getattr(options, option), leaf), secret=False),
                str(options.sources[option]),
            )


def _at(value: Any, steps: Location) -> Any:
    """Return the value at *steps*, which are attributes and keys; None if there is none."""
    for step in steps:
        keyed = isinstance(value, Mapping)
        value = value.get(step) if keyed else getattr(value, str(step), None)
    return value


def _shown(value: Any, secret: bool) -> Any:
    """Return a value for JSON, without secrets."""
    if value is None or isinstance(value, bool | int | float):
        return HIDDEN if secret and value is not None else value
    if secret or isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_shown(each, secret=False) for each in value]
    if isinstance(value, Mapping):
        return {str(key): _shown(each, secret=False) for key, each in value.items()}
    if isinstance(value, BaseModel):
        return HIDDEN
    return without_credentials(str(value))


def _type_name(annotation: Any) -> str:
    """Return a type for operators, with the values of an enum instead of its name."""
    return " | ".join(dict.fromkeys(_member_name(each) for each in members(annotation)))


def _member_name(kind: Any) -> str:
    if kind is type(None):
        return "none"
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " | ".join(str(each.value) for each in kind)
    if get_origin(kind) in (list, tuple, set):
        return f"list of {_type_name(get_args(kind)[0])}"
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))
