"""The variables that stand in the environment, and the settings that they could name."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic.fields import FieldInfo
from pydantic_settings import NestedSecretsSettingsSource

from workerkit.config.annotations import (
    Location,
    input_names,
    inside,
    is_nested,
    leads_somewhere,
    leaves,
    without_tags,
)
from workerkit.config.settings import WorkerSettings
from workerkit.config.sources import is_switch, split_list

DELIMITER = "__"

# What Kubernetes injects for the services of a namespace; the value decides about `*_PORT`.
_SERVICE = re.compile(r".*_SERVICE_HOST|.*_SERVICE_PORT(_.*)?|.*_PORT_\d+_.*", re.IGNORECASE)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)


class Place(StrEnum):
    """Where a variable stands, highest first."""

    ENVIRONMENT = "environment"
    ENV_FILE = ".env"
    SECRET_FILE = "secret file"


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable as it stands there.

    Attributes:
        text: Its value; never for logs.
    """

    name: str
    text: str
    place: Place


@dataclass(frozen=True, slots=True)
class Found:
    """Where the value of a setting stands.

    Attributes:
        path: The way to it inside the JSON of the variable; empty if it is the whole variable.
        value: The value there, as written; never for logs.
    """

    variable: Variable
    path: Location
    value: Any


class Variables:
    """Every variable of the process, seen by the settings of one class.

    Args:
        settings_type: Its prefix, `env_file` and `secrets_dir` say where to look.

    Raises:
        OSError: An `env_file` or a secret file cannot be read.
        UnicodeDecodeError: One of them is not UTF-8.
    """

    def __init__(self, settings_type: type[WorkerSettings]) -> None:
        config = settings_type.model_config
        self.prefix = str(config.get("env_prefix", ""))
        self._open = config.get("extra") == "allow"
        self._fields = dict(settings_type.model_fields)
        self._names = {
            name: input_names(name, field, self.prefix, config)
            for name, field in self._fields.items()
        }
        self.standing = [
            *(Variable(*each, Place.ENVIRONMENT) for each in os.environ.items()),
            *_of_env_files(config.get("env_file"), config.get("env_file_encoding")),
            *_of_secret_files(config.get("secrets_dir")),
        ]
        self._by_key: dict[Place, dict[str, Variable]] = {place: {} for place in Place}
        for variable in self.standing:
            if variable.text:
                self._by_key[variable.place][self._key(variable)] = variable

    def annotation(self, location: Location) -> Any:
        """Return the type of the setting at *location*, `Any` where there is none of its own."""
        field = self._fields.get(self._field_name(location))
        found = [field.annotation] if field else []
        for step in location[1:]:
            found = [inner for each in found for inner in inside(each, str(step))]
        return found[0] if found else Any

    def plain(self, location: Location) -> Location:
        """Return an error's *location* without the tags that pydantic puts in for unions."""
        field = self._fields.get(self._field_name(location))
        return location[:1] + without_tags(field.annotation if field else Any, location[1:])

    def name(self, location: Location) -> str:
        """Return the full name of the variable that would set the setting at *location*."""
        return _joined(self._roots(location)[0], location[1:]).upper()

    def locate(self, location: Location) -> Found | None:
        """Find the variable that the value at *location* came from, the highest one that has it."""
        for place in Place:
            for depth in range(len(location), 0, -1):
                for root in self._roots(location):
                    key = _joined(root, location[1:depth]).lower()
                    variable = self._by_key[place].get(key)
                    found = variable and _followed(variable, location[depth:])
                    if found:
                        return found
        return None

    def under(self, location: Location) -> list[Variable]:
        """Return the variables that set parts of the setting at *location*."""
        starts = tuple(
            _joined(root, location[1:]).lower() + DELIMITER for root in self._roots(location)
        )
        return [
            variable
            for place in self._by_key.values()
            for key, variable in place.items()
            if key.startswith(starts)
        ]

    def empty(self, location: Location) -> bool:
        """Whether the variable of *location* is there but empty, which counts as not set."""
        name = self.name(location)
        return any(each.name.upper() == name and not each.text for each in self.standing)

    def unknown(self) -> list[Variable]:
        """Return the variables under the prefix that set nothing."""
        found = [
            variable
            for variable in self.standing
            if variable.place is not Place.SECRET_FILE
            and self._is_ours(variable.name)
            and not self._is_known(variable.name)
            and not self._is_injected(variable)
        ]
        return [] if self._open else list({each.name: each for each in found}.values())

    def contradicting(self) -> list[list[str]]:
        """Return the names that differ only in case and have different values, by variable."""
        groups: dict[tuple[Place, str], list[Variable]] = {}
        for variable in self.standing:
            if variable.text and self._is_known(variable.name):
                groups.setdefault((variable.place, variable.name.lower()), []).append(variable)
        return [
            [each.name for each in group]
            for group in groups.values()
            if len({each.text for each in group}) > 1
        ]

    def nearest(self, name: str) -> str:
        """Return the known name that is most like *name*, in upper case."""
        rest = name.lower().removeprefix(self.prefix.lower()).split(DELIMITER)[1:]
        known = [
            _joined(root, leaf).upper()
            for field, roots in self._names.items()
            for root in roots
            for leaf in leaves(self._fields[field].annotation, tuple(rest))
        ]
        return most_like(name, known)

    def _field_name(self, location: Location) -> str:
        """Return the field of *location*, which may begin with one of its aliases instead."""
        first = str(location[0]).lower() if location else ""
        for name, roots in self._names.items():
            if first == name.lower() or first in map(str.lower, roots):
                return name
        return first

    def _roots(self, location: Location) -> list[str]:
        name = self._field_name(location)
        return self._names.get(name, [self.prefix + name])

    def _key(self, variable: Variable) -> str:
        """Return the name that *variable* goes by; a secret file may leave the prefix out."""
        if variable.place is not Place.SECRET_FILE or self._is_known(variable.name):
            return variable.name.lower()
        return (self.prefix + variable.name).lower()

    def _is_ours(self, name: str) -> bool:
        if self.prefix:
            return name.lower().startswith(self.prefix.lower())
        return self._has_root(name)

    def _has_root(self, name: str) -> bool:
        """Whether *name* goes into a setting that has parts: `SHOP_HTTP__...`."""
        return any(
            name.lower().startswith(root.lower() + DELIMITER) and is_nested(field.annotation)
            for field, root in self._pairs()
        )

    def _is_known(self, name: str) -> bool:
        for field, root in self._pairs():
            head, found, rest = name.lower().partition(root.lower())
            joint, *steps = rest.split(DELIMITER)
            # Below the root comes the delimiter: SHOP_AMQPS is no part of SHOP_AMQP.
            if found and not head and not joint and leads_somewhere(field.annotation, steps):
                return True
        return False

    def _is_injected(self, variable: Variable) -> bool:
        if self._has_root(variable.name):
            return False
        return _SERVICE.fullmatch(variable.name) is not None or (
            variable.name.upper().endswith("_PORT")
            and _SERVICE_ADDRESS.match(variable.text) is not None
        )

    def _pairs(self) -> Iterator[tuple[FieldInfo, str]]:
        for name, field in self._fields.items():
            for root in self._names[name]:
                yield field, root


def most_like(name: str, known: Iterable[str]) -> str:
    """Return the one of *known* that is most like *name*, the first of several; "" of none."""

    def likeness(other: str) -> float:
        return SequenceMatcher(None, _folded(name), _folded(other)).ratio()

    return max(known, key=likeness, default="")


def _folded(name: str) -> str:
    return name.casefold().replace(DELIMITER, "_")


def _joined(root: str, steps: Iterable[str | int]) -> str:
    return DELIMITER.join([root, *map(str, steps)])


def _followed(variable: Variable, path: Location) -> Found | None:
    """Go *path* into the JSON of *variable*; None if it does not lead to a value."""
    if path == ("enabled",) and is_switch(variable.name, variable.text):
        return Found(variable, (), variable.text)
    value: Any = variable.text
    walked: list[str | int] = []
    for step in path:
        value = _decoded(value) if isinstance(value, str) else value
        if isinstance(value, dict):
            key = next((key for key in value if key.casefold() == str(step).casefold()), None)
            if key is None:
                return None
            value = value[key]
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
        walked.append(step)
    return Found(variable, tuple(walked), value)


def _decoded(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, (dict, list)) or text.lstrip().startswith(("{", "[")):
        return value
    return split_list(text)


def _of_env_files(given: Any, encoding: str | None) -> Iterator[Variable]:
    for path in filter(Path.is_file, _paths(given)):
        for name, text in dotenv_values(path, encoding=encoding or "utf-8").items():
            yield Variable(name, text or "", Place.ENV_FILE)


def _of_secret_files(given: Any) -> Iterator[Variable]:
    for path in filter(Path.is_dir, _paths(given)):
        for name, text in NestedSecretsSettingsSource.load_secrets(path.resolve()).items():
            yield Variable(name, text, Place.SECRET_FILE)


def _paths(given: Any) -> list[Path]:
    if given is None:
        return []
    every = [given] if isinstance(given, (str, os.PathLike)) else given
    return [Path(each).expanduser() for each in every]
