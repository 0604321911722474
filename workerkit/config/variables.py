"""Variables of the environment, of `.env` and of secret files, and the settings that they set."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic_settings import NestedSecretsSettingsSource

from workerkit.config.annotations import (
    Location,
    has_parts,
    input_names,
    leaves,
    types_at,
    without_union_tags,
)
from workerkit.config.settings import WorkerSettings
from workerkit.config.sources import is_switch, split_list

CONSUMERS = "consumers"
DELIMITER = "__"

# What Kubernetes injects for the services of a namespace; the value decides about `*_PORT`.
_SERVICE = re.compile(r".*_SERVICE_HOST|.*_SERVICE_PORT(_.*)?|.*_PORT_\d+_.*", re.IGNORECASE)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)


class VariableSource(StrEnum):
    """Where a variable is set, highest priority first."""

    ENVIRONMENT = "environment"
    ENV_FILE = ".env"
    SECRET_FILE = "secret file"


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that is set.

    Attributes:
        name: As it is written there.
        text: Its value; never for logs.
    """

    name: str
    text: str
    source: VariableSource


@dataclass(frozen=True, slots=True)
class LocatedValue:
    """The value of a setting in a variable.

    Attributes:
        path: The path inside the JSON of the variable; empty if it is the whole variable.
        value: As it is written there; never for logs.
    """

    variable: Variable
    path: Location
    value: Any


class Variables:
    """All variables of the process, for one class of settings.

    Args:
        settings_type: Its prefix, `env_file` and `secrets_dir` say where to look.
        consumers: The types of the options by consumer and option, where they are known.

    Raises:
        OSError: An `env_file` or a secret file cannot be read.
        UnicodeDecodeError: One of them is not UTF-8.
    """

    def __init__(
        self, settings_type: type[WorkerSettings], consumers: Mapping[str, Any] | None = None
    ) -> None:
        config, fields = settings_type.model_config, settings_type.model_fields
        self.prefix = str(config.get("env_prefix", ""))
        self._allows_extra = config.get("extra") == "allow"
        self._types: dict[str, Any] = {name: each.annotation for name, each in fields.items()}
        # Any name is possible in `consumers`: its types are for values, not for unknown variables.
        self._types_of_values = self._types | ({CONSUMERS: consumers} if consumers else {})
        self._names = {
            name: input_names(name, field, self.prefix, config) for name, field in fields.items()
        }
        self.all = [
            *(Variable(*each, VariableSource.ENVIRONMENT) for each in os.environ.items()),
            *_in_env_files(config.get("env_file"), config.get("env_file_encoding")),
            *_in_secret_files(config.get("secrets_dir")),
        ]
        by_key: dict[VariableSource, dict[str, Variable]] = {each: {} for each in VariableSource}
        self._by_key = by_key
        for variable in self.all:
            if variable.text:
                by_key[variable.source][self._key(variable)] = variable
        self._in_code: set[Location] = set()

    def set_in_code(self, location: Location) -> None:
        """Ignore the variables for the option at *location*: code overrides them."""
        self._in_code.add(location)

    def annotation(self, location: Location) -> Any:
        """Return the type of the setting at *location*, `Any` if it is not known."""
        found = types_at(
            self._types_of_values.get(self._field(location), Any), map(str, location[1:])
        )
        return found[0] if found else Any

    def without_union_tags(self, location: Location) -> Location:
        """Return the *location* of an error as keys and indices alone."""
        annotation = self._types_of_values.get(self._field(location), Any)
        return location[:1] + without_union_tags(annotation, location[1:])

    def name(self, location: Location) -> str:
        """Return the full name of the variable that would set the setting at *location*."""
        return _joined(self._roots(location)[0], location[1:]).upper()

    def locate(self, location: Location) -> LocatedValue | None:
        """Return the value at *location* from the variable with the highest priority."""
        if location[:3] in self._in_code:
            return None
        for source in VariableSource:
            for depth in range(len(location), 0, -1):
                for root in self._roots(location):
                    key = _joined(root, location[1:depth]).lower()
                    variable = self._by_key[source].get(key)
                    found = variable and _look_up(variable, location[depth:])
                    if found:
                        return found
        return None

    def under(self, location: Location) -> list[Variable]:
        """Return the variables that set parts of the setting at *location*."""
        if not location or location[:3] in self._in_code:
            return []
        roots = (_joined(root, location[1:]).lower() for root in self._roots(location))
        starts = tuple(root + DELIMITER for root in roots)
        every = (pair for by_key in self._by_key.values() for pair in by_key.items())
        return [variable for key, variable in every if key.startswith(starts)]

    def longest_set(self, option: Location) -> Location:
        """Return the longest beginning of a location in an option that a variable sets.

        Return the location itself if there is none.
        """
        beginnings = (option[:depth] for depth in range(len(option), 2, -1))
        return next((each for each in beginnings if self.locate(each) or self.under(each)), option)

    def is_empty(self, location: Location) -> bool:
        """Return whether the variable of *location* is set but empty, which counts as not set."""
        name = self.name(location)
        return any(each.name.upper() == name and not each.text for each in self.all)

    def unknown(self) -> list[Variable]:
        """Return the variables under the prefix that set nothing."""
        if self._allows_extra:
            return []
        found = [
            variable
            for variable in self.all
            if variable.source is not VariableSource.SECRET_FILE
            and self._has_prefix(variable.name)
            and not self._is_known(variable.name)
            and not self._is_from_kubernetes(variable)
        ]
        return list({each.name: each for each in found}.values())

    def contradicting(self) -> list[list[str]]:
        """Return the names that differ only in case and have different values, by variable."""
        groups: dict[tuple[VariableSource, str], list[Variable]] = {}
        for variable in self.all:
            if variable.text and self._is_known(variable.name):
                groups.setdefault((variable.source, variable.name.lower()), []).append(variable)
        different = (each for each in groups.values() if len({one.text for one in each}) > 1)
        return [[variable.name for variable in group] for group in different]

    def nearest(self, name: str) -> str:
        """Return the known name that is most like *name*, in upper case."""
        rest = name.lower().removeprefix(self.prefix.lower()).split(DELIMITER)[1:]
        known = [
            _joined(root, leaf).upper()
            for field, roots in self._names.items()
            for root in roots
            for leaf in leaves(self._types[field], tuple(rest))
        ]
        return most_similar(name, known)

    def _field(self, location: Location) -> str:
        """Return the field of *location*, which may begin with one of its aliases instead."""
        first = str(location[0]).lower() if location else ""
        for name, roots in self._names.items():
            if first == name.lower() or first in map(str.lower, roots):
                return name
        return first

    def _roots(self, location: Location) -> list[str]:
        name = self._field(location)
        return self._names.get(name, [self.prefix + name])

    def _key(self, variable: Variable) -> str:
        """Return the key of *variable*: a secret file may omit the prefix."""
        if variable.source is not VariableSource.SECRET_FILE or self._is_known(variable.name):
            return variable.name.lower()
        return (self.prefix + variable.name).lower()

    def _fields(self, name: str) -> Iterator[tuple[Any, list[str]]]:
        """Yield the type of each field that *name* begins with, and the other parts of *name*."""
        for field, roots in self._names.items():
            for root in map(str.lower, roots):
                head, *steps = name.lower().removeprefix(root).split(DELIMITER)
                if name.lower().startswith(root) and not head:
                    yield self._types[field], steps

    def _is_known(self, name: str) -> bool:
        return any(types_at(annotation, steps) for annotation, steps in self._fields(name))

    def _is_in_section(self, name: str) -> bool:
        """Return whether *name* sets a part of a setting: `SHOP_HTTP__...`."""
        return any(steps and has_parts(annotation) for annotation, steps in self._fields(name))

    def _has_prefix(self, name: str) -> bool:
        if self.prefix:
            return name.lower().startswith(self.prefix.lower())
        return self._is_in_section(name)

    def _is_from_kubernetes(self, variable: Variable) -> bool:
        if self._is_in_section(variable.name):
            return False
        return _SERVICE.fullmatch(variable.name) is not None or (
            variable.name.upper().endswith("_PORT")
            and _SERVICE_ADDRESS.match(variable.text) is not None
        )


def most_similar(name: str, known: Iterable[str]) -> str:
    """Return the one of *known* that is most like *name*, the first of several; "" of none."""

    def similarity(other: str) -> float:
        one, two = (each.casefold().replace(DELIMITER, "_") for each in (name, other))
        return SequenceMatcher(None, one, two).ratio()

    return max(known, key=similarity, default="")


def _joined(root: str, steps: Iterable[str | int]) -> str:
    return DELIMITER.join([root, *map(str, steps)])


def _look_up(variable: Variable, path: Location) -> LocatedValue | None:
    """Return the value at *path* in the JSON of *variable*; None if there is none."""
    if path == ("enabled",) and is_switch(variable.name, variable.text):
        return LocatedValue(variable, (), variable.text)
    value: Any = variable.text
    for step in path:
        value = _parse(value) if isinstance(value, str) else value
        if isinstance(value, dict):
            key = next((key for key in value if key.casefold() == str(step).casefold()), None)
            if key is None:
                return None
            value = value[key]
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return LocatedValue(variable, path, value)


def _parse(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, (dict, list)) or text.lstrip().startswith(("{", "[")):
        return value
    return split_list(text)


def _in_env_files(given: Any, encoding: str | None) -> Iterator[Variable]:
    for path in filter(Path.is_file, _paths(given)):
        for name, text in dotenv_values(path, encoding=encoding or "utf-8").items():
            yield Variable(name, text or "", VariableSource.ENV_FILE)


def _in_secret_files(given: Any) -> Iterator[Variable]:
    for path in filter(Path.is_dir, _paths(given)):
        for name, text in NestedSecretsSettingsSource.load_secrets(path.resolve()).items():
            yield Variable(name, text, VariableSource.SECRET_FILE)


def _paths(given: Any) -> list[Path]:
    if given is None:
        return []
    every = [given] if isinstance(given, (str, os.PathLike)) else given
    return [Path(each).expanduser() for each in every]
