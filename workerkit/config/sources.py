"""Where settings are read from: environment, `.env`, secret files, each without giving up early."""

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
    """Hands on what it cannot decode, so that validation finds it together with all the rest."""

    def decode_complex_value(self, field_name: str, field: FieldInfo | None, value: Any) -> Any:
        try:
            if field is None:  # An untyped dict: only what cannot be a plain word is decoded.
                return json.loads(value) if value.lstrip().startswith(("{", "[")) else value
            if takes_list(field.annotation) and NoDecode not in field.metadata:
                return split_list(value)
            return super().decode_complex_value(field_name, field, value)
        except (ValueError, RecursionError):
            return value

    def next_field(
        self, field: FieldInfo | Any | None, key: str, case_sensitive: bool | None = None
    ) -> FieldInfo | None:
        # Inside dicts pydantic-settings returns the bare type, which would hide lists from us.
        found: Any = super().next_field(field, key, case_sensitive)
        if found is None or isinstance(found, FieldInfo):
            return found
        return FieldInfo.from_annotation(found)

    def explode_env_vars(
        self, field_name: str, field: FieldInfo, env_vars: Mapping[str, str | None]
    ) -> dict[str, Any]:
        # Parents first: a JSON value read later would replace the parts that were read before.
        parts = {_part(name, text): text for name, text in sorted(env_vars.items())}
        return super().explode_env_vars(field_name, field, parts)


def is_switch(name: str, text: str | None) -> bool:
    """Whether a variable switches a section of the settings on or off, as `HTTP__OPENAPI` does."""
    return name.lower().endswith(_SWITCH) and not (text or "").lstrip().startswith("{")


def _part(name: str, text: str | None) -> str:
    """The name of the part that a variable sets: a switch would replace all others."""
    return f"{name}__enabled" if is_switch(name, text) else name


class EnvFile(Environment, DotEnvSettingsSource):
    """The same for `.env`."""


class SecretFiles(Environment, NestedSecretsSettingsSource):
    """The same for the files of `secrets_dir`, such as `amqp__default__password`."""


def split_list(text: str) -> Any:
    """Read a list as an operator writes it: JSON when it starts with `[`, else commas.

    Raises:
        ValueError: It starts with `[` and is not JSON.
    """
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [item.strip() for item in text.split(",")] if text.strip() else []


def takes_list(annotation: Any) -> bool:
    """Whether *annotation* is a list, tuple or set, or one of them or None."""
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
