"""The valid part of settings that are invalid, so that faults elsewhere are found as well."""

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, WrapValidator, create_model
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsError

from workerkit.config.annotations import members
from workerkit.config.settings import WorkerSettings

_INVALID = object()


def valid_part(settings_type: type[WorkerSettings]) -> WorkerSettings | None:
    """Make settings of everything that is valid, for finding faults and not for running.

    What is invalid has its default, or is None where there is none; an entry of a dict is left
    out, but for a section, which keeps what is valid of it. So the names of connections remain.

    Returns:
        None where the environment, a `.env` or a secret file cannot be read at all.
    """
    config = {**settings_type.model_config, "extra": "ignore"}
    base: Any = type("Base", (WorkerSettings,), {"model_config": config})
    fields: Any = {
        name: (_lenient(field), _optional(field))
        for name, field in settings_type.model_fields.items()
    }
    try:
        found: Any = create_model("ValidPart", __base__=base, **fields)()
    except (ValidationError, SettingsError, OSError, UnicodeDecodeError):
        return None
    return settings_type.model_construct(**{name: getattr(found, name) for name in fields})


def _lenient(field: FieldInfo) -> Any:
    """The type of a field, which takes its default in place of what is invalid."""
    typed: Any = _typed(field)

    def validate(value: Any, validator: Any) -> Any:
        try:
            return validator(value)
        except ValidationError:
            part = _valid(typed, value)
            return _default(field) if part is _INVALID else part

    return Annotated[typed, WrapValidator(validate)]


def _valid(annotation: Any, value: Any) -> Any:
    """Return what is valid of *value*; `_INVALID` if nothing is."""
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        if not isinstance(value, Mapping):
            return _INVALID
    for kind in members(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            parts = {
                name: _valid(_typed(field), value[name])
                for name, field in kind.model_fields.items()
                if name in value
            }
            return kind.model_construct(**_without_invalid(parts))
        if len(get_args(kind)) == 2:
            item = get_args(kind)[1]
            return _without_invalid({key: _valid(item, each) for key, each in value.items()})
    return _INVALID


def _without_invalid(parts: dict[Any, Any]) -> dict[Any, Any]:
    return {name: part for name, part in parts.items() if part is not _INVALID}


def _typed(field: FieldInfo) -> Any:
    annotation: Any = field.annotation
    for each in field.metadata:
        annotation = Annotated[annotation, each]
    return annotation


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return None
    return field.get_default(call_default_factory=True, validated_data={})


def _optional(field: FieldInfo) -> Any:
    """The same field, with a default and without its constraints."""
    default: Any = {"default": None}
    if not field.is_required():
        default = {"default_factory": lambda: _default(field)}
    return Field(validation_alias=field.validation_alias, **default)
