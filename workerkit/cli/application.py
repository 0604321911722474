"""Find the application that a command is about."""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from dependency_injector import containers
from pydantic import SecretStr, ValidationError

from workerkit.app.assembly import settings_source
from workerkit.app.discovery import not_imported
from workerkit.config.broker_url import DEFAULT_PORTS
from workerkit.config.connections import AMQPSettings
from workerkit.config.load import load_settings
from workerkit.config.settings import DEFAULT_CONNECTION, WorkerSettings
from workerkit.container import WorkerContainer
from workerkit.describe import describe_raised
from workerkit.errors import ConfigurationError, DeclarationError


def load_container(package: str, container: str | None) -> containers.Container:
    """The container of an application.

    Args:
        package: `PACKAGE.container:Container` is used where there is one, else a plain
            `WorkerContainer`.
        container: `module:attribute`, instead.

    Raises:
        DeclarationError: It cannot be imported or made, or is no container.
    """
    _look_here()
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
        made = found() if isinstance(found, type) else found
    except DeclarationError:
        raise
    except (Exception, SystemExit) as error:
        raise DeclarationError(
            f"cannot make the container {container}: {describe_raised(error, module)}"
        ) from error
    return _checked(container, made)


def import_package(package: str) -> None:
    """Make sure that there is such a package.

    Raises:
        DeclarationError: It cannot be imported.
    """
    _look_here()
    try:
        import_module(package)
    except (Exception, SystemExit) as error:
        raise DeclarationError(not_imported(package, error)) from error


def is_url(target: str) -> bool:
    """Whether *target* is no package.

    Raises:
        ConfigurationError: It is the URL of something else than a message broker.
    """
    scheme, separator, _ = target.partition("://")
    if separator and scheme not in DEFAULT_PORTS:
        raise ConfigurationError("the URL is wrong: should start with amqp:// or amqps://")
    return bool(separator)


def settings_of(target: str, container: str | None) -> WorkerSettings:
    """The settings of a package, or for a bare broker those of an `amqp://` URL.

    Raises:
        StartError: The settings are wrong, or there is no such package.
    """
    if is_url(target):
        return _of_url(target)
    import_package(target)
    return read_settings(load_container(target, container))


def read_settings(container: containers.Container) -> WorkerSettings:
    """The settings of a container.

    Raises:
        ConfigurationError: With every fault of the environment.
    """
    settings, faults = load_settings(*settings_source(container))
    if settings is None or faults:
        raise ConfigurationError(*faults)
    return settings


def _look_here() -> None:
    """Put the current directory on the path, where an application usually is."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _of_url(url: str) -> WorkerSettings:
    try:
        connection = AMQPSettings(url=SecretStr(url))
    except ValidationError as error:
        reason = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise ConfigurationError(f"the URL is wrong: {reason}") from None
    return _Bare().with_amqp({DEFAULT_CONNECTION: connection})


class _Bare(WorkerSettings):
    """Settings that no environment has a say in."""

    @classmethod
    def settings_customise_sources(cls, *_: Any, **__: Any) -> tuple[()]:
        return ()


def _has_container(package: str) -> bool:
    try:
        return find_spec(f"{package}.container") is not None
    except (Exception, SystemExit):
        # The package itself cannot be imported; discovery says so, with the reason.
        return False


def _no_container(module: ModuleType, attribute: str) -> str:
    """What is said of a module that has no container of that name, but perhaps of others."""
    text = f"{module.__name__}:{attribute}: the module has no {attribute!r}"
    there = [
        name
        for name, each in vars(module).items()
        if isinstance(each, type)
        and issubclass(each, WorkerContainer)
        and each.__module__ == module.__name__
    ]
    if not there:
        return f"{text}, and no other subclass of WorkerContainer"
    return (
        f"{text}; found {', '.join(there)}: rename it, or --container {module.__name__}:{there[0]}"
    )


def _checked(name: str, made: Any) -> containers.Container:
    # Not isinstance: an instance of a declarative container is a DynamicContainer.
    missing = [
        each for each in WorkerContainer.providers if each not in getattr(made, "providers", {})
    ]
    if missing:
        raise DeclarationError(f"{name} is no WorkerContainer: it has no {', '.join(missing)}")
    container: containers.Container = made
    return container
