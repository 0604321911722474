"""Load the container and the settings of the package that a command names."""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from dependency_injector import containers
from pydantic import SecretStr, ValidationError

from workerkit.app.assembly import Assembly, settings_source
from workerkit.app.discovery import describe_import_failure
from workerkit.config.broker_url import DEFAULT_PORTS
from workerkit.config.connections import AMQPSettings
from workerkit.config.load import load_settings
from workerkit.config.settings import DEFAULT_CONNECTION, WorkerSettings
from workerkit.container import WorkerContainer
from workerkit.describe import describe_raised
from workerkit.errors import ConfigurationError, DeclarationError, StartError
from workerkit.runner import Runner


def load_container(package: str, container: str | None) -> containers.Container:
    """Return the container of an application.

    Args:
        package: Its `PACKAGE.container:Container` is used if it exists, else a plain
            `WorkerContainer`.
        container: `module:attribute` to use instead.

    Raises:
        DeclarationError: It cannot be imported or created, or is not a container.
    """
    add_current_directory()
    if container is None:
        if not _has_container(package):
            return WorkerContainer()
        container = f"{package}.container:Container"
    module, separator, attribute = container.partition(":")
    if not separator:
        raise DeclarationError(f"--container {container}: write module:attribute")
    try:
        imported = import_module(module)
        if not hasattr(imported, attribute):
            raise DeclarationError(_no_container(imported, attribute))
        found = getattr(imported, attribute)
        instance = found() if isinstance(found, type) else found
    except DeclarationError:
        raise
    except (Exception, SystemExit) as error:
        raise DeclarationError(
            f"cannot create the container {container}: {describe_raised(error, module)}"
        ) from error
    return _checked(container, instance)


def import_package(package: str) -> None:
    """Import a package, to check that it exists.

    Raises:
        DeclarationError: It cannot be imported.
    """
    add_current_directory()
    try:
        import_module(package)
    except (Exception, SystemExit) as error:
        raise DeclarationError(describe_import_failure(package, error)) from error


def is_url(target: str) -> bool:
    """Return whether *target* is a URL, not a package.

    Raises:
        ConfigurationError: It is a URL, but not one of a message broker.
    """
    scheme, separator, _ = target.partition("://")
    if separator and scheme not in DEFAULT_PORTS:
        raise ConfigurationError("the URL is wrong: should start with amqp:// or amqps://")
    return bool(separator)


def settings_of(target: str, container: str | None) -> WorkerSettings:
    """Return the settings of a package, or for an `amqp://` URL settings with that URL only.

    Raises:
        StartError: The settings are wrong, or the package does not exist.
    """
    if is_url(target):
        return _of_url(target)
    import_package(target)
    return read_settings(load_container(target, container))


def read_settings(container: containers.Container) -> WorkerSettings:
    """Return the settings of a container.

    Raises:
        ConfigurationError: With every problem of the environment.
    """
    settings, faults = load_settings(*settings_source(container))
    if settings is None or faults:
        raise ConfigurationError(*faults)
    return settings


def add_current_directory() -> None:
    """Add the current directory, which usually holds the application, to `sys.path`."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def assembled(package: str, container: str | None) -> Assembly:
    """Return what the package declares, checked without opening a connection.

    Raises:
        StartError: With every fault.
    """
    return Runner(loaded(package, container), packages=[package]).assemble()


def loaded(package: str, container: str | None) -> Any:
    """Return the container; if it cannot be created, report modules that fail to import as well."""
    try:
        return load_container(package, container)
    except StartError as error:
        try:
            Runner(WorkerContainer(), packages=[package]).assemble()
        except StartError as more:
            own = f"cannot import {(container or f'{package}.container').partition(':')[0]}:"
            imports = [
                each
                for each in more.faults
                if each.startswith("cannot import") and not each.startswith(own)
            ]
            raise DeclarationError(*error.faults, *imports) from error
        raise


def _of_url(url: str) -> WorkerSettings:
    try:
        connection = AMQPSettings(url=SecretStr(url))
    except ValidationError as error:
        reason = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise ConfigurationError(f"the URL is wrong: {reason}") from None
    return _DefaultSettings().with_amqp({DEFAULT_CONNECTION: connection})


class _DefaultSettings(WorkerSettings):
    """Settings that ignore the environment."""

    @classmethod
    def settings_customise_sources(cls, *_: Any, **__: Any) -> tuple[()]:
        return ()


def _has_container(package: str) -> bool:
    try:
        return find_spec(f"{package}.container") is not None
    except (Exception, SystemExit):
        # The package itself cannot be imported: discovery reports it, with the reason.
        return False


def _no_container(module: ModuleType, attribute: str) -> str:
    """Describe a module that lacks the container, and name the containers that it has."""
    text = f"{module.__name__}:{attribute}: the module has no {attribute!r}"
    others = [
        name
        for name, each in vars(module).items()
        if isinstance(each, type)
        and issubclass(each, WorkerContainer)
        and each.__module__ == module.__name__
    ]
    if not others:
        return f"{text}, and no other subclass of WorkerContainer"
    option = f"--container {module.__name__}:{others[0]}"
    return f"{text}; found {', '.join(others)}: rename it, or use {option}"


def _checked(name: str, instance: Any) -> containers.Container:
    # Not isinstance: an instance of a declarative container is a DynamicContainer.
    missing = [
        each for each in WorkerContainer.providers if each not in getattr(instance, "providers", {})
    ]
    if missing:
        raise DeclarationError(f"{name} is not a WorkerContainer: it has no {', '.join(missing)}")
    container: containers.Container = instance
    return container
