"""Sections that transports add to the settings; see `workerkit.transport.Configured`."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError, create_model
from pydantic_settings import BaseSettings, SettingsError

from workerkit.config.explain import Faults
from workerkit.config.settings import WorkerSettings
from workerkit.config.variables import Variables
from workerkit.errors import DeclarationError
from workerkit.transport import Configured, Transport

Sections = Mapping[str, type[BaseModel]]


def sections_of(transports: Iterable[Transport]) -> Sections:
    """Return the sections of these transports, by name.

    Raises:
        DeclarationError: Two transports use one name for different sections.
    """
    found: dict[str, type[BaseModel]] = {}
    for transport in transports:
        if not isinstance(transport, Configured):
            continue
        name, model = transport.section
        if found.setdefault(name, model) is not model:
            raise DeclarationError(
                f"two transports add the section {name!r} to the settings:"
                f" {found[name].__qualname__} and {model.__qualname__}"
            )
    return found


def extended_type(settings_type: type[WorkerSettings], sections: Sections) -> type[WorkerSettings]:
    """Return the settings class with a field for each section that it does not have itself.

    Raises:
        DeclarationError: It has a field of that name and another type.
    """
    missing: dict[str, Any] = {}
    for name, model in sections.items():
        field = settings_type.model_fields.get(name)
        if field is None:
            missing[name] = _field(model)
        elif not (isinstance(field.annotation, type) and issubclass(field.annotation, model)):
            raise DeclarationError(
                f"{settings_type.__qualname__}.{name} should be a {model.__qualname__}, as a"
                " transport of the container has a section of that name"
            )
    if not missing:
        return settings_type
    extended: type[WorkerSettings] = create_model(
        settings_type.__name__,
        __base__=settings_type,
        __module__=settings_type.__module__,
        **missing,
    )
    return extended


def with_sections(
    settings: WorkerSettings, sections: Sections
) -> tuple[WorkerSettings | None, list[str]]:
    """Read the sections, and return the settings with them.

    Returns:
        The settings, None where a section is invalid, and one sentence for each fault.
    """
    extended = extended_type(type(settings), sections)
    if extended is type(settings):
        return settings, []
    names = [name for name in sections if name not in type(settings).model_fields]
    base: Any = type(
        "Base",
        (BaseSettings,),
        {
            "model_config": {**extended.model_config, "extra": "ignore"},
            "settings_customise_sources": vars(WorkerSettings)["settings_customise_sources"],
        },
    )
    fields: dict[str, Any] = {name: _field(sections[name]) for name in names}
    try:
        read: Any = create_model("Sections", __base__=base, **fields)()
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        return None, Faults(Variables(extended)).of_errors(details)
    except SettingsError as error:
        return None, [f"{extended.__name__} cannot be read: {error}"]
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    copy = extended.model_construct(
        settings.model_fields_set, **values, **{name: getattr(read, name) for name in names}
    )
    object.__setattr__(copy, "__pydantic_private__", settings.__pydantic_private__)
    return copy, []


def _field(model: type[BaseModel]) -> Any:
    """Return type and default of a section; it is required if one of its fields is."""
    required = any(field.is_required() for field in model.model_fields.values())
    return (model, ...) if required else (model, model())
