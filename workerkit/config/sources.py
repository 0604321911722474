"""Sources of settings: environment, `.env`, secret files. They leave all faults to validation."""

import json
from collections.abc import Collection, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_settings import (
    DotEnvSettingsSource,
    EnvSettingsSource,
    NestedSecretsSettingsSource,
    NoDecode,
)

_SWITCH = "http__openapi"


class Environment(EnvSettingsSource):
    """Environment variables. Text that cannot be decoded stays as it is: validation reports it."""

    def decode_complex_value(self, field_name: str, field: FieldInfo | None, value: Any) -> Any:
        try:
            if field is None:  # An untyped dict: only JSON objects and lists are decoded.
                return json.loads(value) if value.lstrip().startswith(("{", "[")) else value
            if takes_list(field.annotation) and NoDecode not in field.metadata:
                return split_list(value)
            return super().decode_complex_value(field_name, field, value)
        except (ValueError, RecursionError):
            return value

    def next_field(
        self, field: FieldInfo | Any | None, key: str, case_sensitive: bool | None = None
    ) -> FieldInfo | None:
        # For values of dicts pydantic-settings returns a type, for which it would not decode lists.
        found: Any = super().next_field(field, key, case_sensitive)
        if found is None or isinstance(found, FieldInfo):
            return found
        return FieldInfo.from_annotation(found)

    def explode_env_vars(
        self, field_name: str, field: FieldInfo, env_vars: Mapping[str, str | None]
    ) -> dict[str, Any]:
        # Parents first: JSON that is read later would replace the parts that were read before it.
        parts = {_part(name, text): text for name, text in sorted(env_vars.items())}
        return super().explode_env_vars(field_name, field, parts)


def is_switch(name: str, text: str | None) -> bool:
    """Return whether a variable switches a section on or off, as `HTTP__OPENAPI=off` does."""
    return name.lower().endswith(_SWITCH) and not (text or "").lstrip().startswith("{")


def _part(name: str, text: str | None) -> str:
    """Return the name of the part that a variable sets: a switch must not replace other parts."""
    return f"{name}__enabled" if is_switch(name, text) else name


class EnvFile(Environment, DotEnvSettingsSource):
    """Variables of `.env`, decoded in the same way."""


class SecretFiles(Environment, NestedSecretsSettingsSource):
    """Files of `secrets_dir`, such as `amqp__default__password`, decoded in the same way."""


def split_list(text: str) -> Any:
    """Parse a list as an operator writes it: JSON if it starts with `[`, else commas.

    Raises:
        ValueError: It starts with `[` and is not JSON.
    """
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [item.strip() for item in text.split(",")] if text.strip() else []


def takes_list(annotation: Any) -> bool:
    """Return whether *annotation* is a list, a tuple or a set, or one of them or None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return takes_list(get_args(annotation)[0])
    if origin in (Union, UnionType):
        members = [each for each in get_args(annotation) if each is not type(None)]
        return all(map(takes_list, members))
    kind = origin or annotation
    return (
        isinstance(kind, type)
        and issubclass(kind, Collection)
        and not issubclass(kind, (str, bytes, bytearray, Mapping))
    )
