"""Which processes `workerkit top` and `workerkit console` show, and how they reach them."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import typer
from aiohttp import ClientConnectorError, ClientError, ClientSession, ClientTimeout
from pydantic import SecretStr, ValidationError
from yarl import URL

from workerkit.app.assembly import settings_source
from workerkit.app.console import fleet_connection
from workerkit.cli.application import assembled, is_url, settings_of
from workerkit.cli.parameters import Container, packages
from workerkit.config.load import load_settings
from workerkit.config.sections import OpsSettings
from workerkit.config.settings import DEFAULT_CONNECTION, WorkerSettings
from workerkit.console.fleet import LoneFleet
from workerkit.console.model import FleetView
from workerkit.console.sources import Source
from workerkit.console.targets import Targets
from workerkit.container import WorkerContainer
from workerkit.errors import ConfigurationError, RunError
from workerkit.transport import Declared

_TIMEOUT = 5.0
_LARGEST = 2**24  # Bytes of a view.
_PART = 2**16
_NAME = re.compile(r"[\w.-]{1,100}")
_TOKEN = "WORKERKIT_OPS__TOKEN"

ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""For addresses that listen on all of a machine, those for clients on it."""


@dataclass(frozen=True)
class Which:
    """The options that name the processes."""

    package: Annotated[
        str | None,
        typer.Argument(help="The package that the processes run.", autocompletion=packages),
    ] = None
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The amqp:// URL of the broker, instead of PACKAGE."),
    ] = None
    app: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The name of the application; by default that of the settings or of PACKAGE.",
        ),
    ] = None
    targets: Annotated[
        str | None,
        typer.Option(
            metavar="URL,URL",
            help="The ops servers of the processes, such as http://10.0.0.7:8081.",
        ),
    ] = None
    container: Container = None


@dataclass(frozen=True, slots=True)
class Found:
    """What the options mean.

    Attributes:
        settings: Of the package, or of the URL with `ops` and `fleet` of the environment.
        app: The name of the application; empty if only targets are known.
        targets: Addresses of ops servers; none if the processes are found over the broker.
        has_broker: Whether a package or a URL names the connection to the broker.
        connection: The name of the connection of the consumers.
        vhost: Its virtual host; None for that of the settings.
        declared: The consumers of the package.
    """

    settings: WorkerSettings
    app: str
    targets: Sequence[str]
    has_broker: bool
    connection: str = DEFAULT_CONNECTION
    vhost: str | None = None
    declared: Sequence[Declared] = ()


def sources_of(found: Found, token: str | None) -> list[Source]:
    """Return where the processes are found: at their addresses, else over the broker.

    Args:
        token: For the ops servers.
    """
    if found.targets:
        return [Targets(lambda: found.targets, token)]
    return [LoneFleet(found.app, found.settings, found.connection, found.vhost)]


class Views(Protocol):
    """Where the views of a fleet come from."""

    async def view(self) -> FleetView:
        """Return the state of all processes now.

        Raises:
            RunError: It is unknown, with the reason.
        """

    async def close(self) -> None:
        """Close connections."""


def find(which: Which) -> Found:
    """Check the options.

    Raises:
        StartError: One of them is wrong, or the settings or the package are.
    """
    package, url = which.package, which.url
    if package is not None and is_url(package):
        package, url = None, url or package
    if package is not None and url is not None:
        raise ConfigurationError(
            "PACKAGE and --url are for different things: leave one of them out"
        )
    if url is not None and not is_url(url):
        raise ConfigurationError("--url should start with amqp:// or amqps://")
    targets = _targets(which.targets)
    declared: Sequence[Declared] = ()
    connection, vhost = DEFAULT_CONNECTION, None
    if package is not None:
        assembly = assembled(package, which.container)
        settings, declared = assembly.settings, assembly.declared
        connection, vhost = fleet_connection(assembly) or (connection, vhost)
    elif url is not None:
        own = _of_environment()
        settings = settings_of(url, None).model_copy(update={"ops": own.ops, "fleet": own.fleet})
    else:
        settings = _of_environment()
    app = which.app or settings.fleet.name or (package or "").partition(".")[0]
    if app and not _NAME.fullmatch(app):
        raise ConfigurationError(
            f"--app {app}: should have at most 100 letters, digits, dots, hyphens and underscores"
        )
    if url is not None and not targets and not app:
        raise ConfigurationError(
            "--url needs --app: the name of the package that the processes run, or of the setting"
            " FLEET__NAME"
        )
    return Found(settings, app, targets, bool(package or url), connection, vhost, declared)


def this_machine(settings: WorkerSettings) -> str:
    """Return the address of the ops server of the settings, for a client on this machine."""
    host = ANY_ADDRESS.get(settings.ops.host, settings.ops.host)
    return str(URL.build(scheme="http", host=host, port=settings.ops.port or 8081))


def token_to_read(ops: OpsSettings) -> str | None:
    """Return the token with the least rights; None if there is none."""
    found: SecretStr | None = ops.view_token or ops.operate_token or ops.token
    return None if found is None else found.get_secret_value()


class Served:
    """The view that the console of a worker serves.

    Args:
        url: Of its ops server.
    """

    def __init__(self, url: str, token: str | None) -> None:
        headers = {"Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._url = url
        self._client = ClientSession(headers=headers, timeout=ClientTimeout(total=_TIMEOUT))

    async def view(self) -> FleetView:
        """Return the state of all processes now.

        Raises:
            RunError: There is no response, or it is no view.
        """
        try:
            # Not to another address: the request has a token.
            async with self._client.get(
                f"{self._url}/api/v1/fleet", allow_redirects=False
            ) as response:
                body = b""
                async for part in response.content.iter_chunked(_PART):
                    body += part
                    if len(body) > _LARGEST:
                        raise RunError(f"{self._url}: the response is too large")
                status = response.status
        except TimeoutError:
            raise RunError(f"{self._url}: no response within {_TIMEOUT:g} s") from None
        except (ClientError, ValueError) as error:
            raise RunError(
                f"{self._url}: no response: {_reason(error)}; name running workers with PACKAGE,"
                " --url or --targets"
            ) from error
        if status != 200:
            raise RunError(f"{self._url}: {_refusal(status)}")
        try:
            return FleetView.model_validate_json(body)
        except ValidationError as error:
            raise RunError(f"{self._url}: the response is not that of a console") from error

    async def close(self) -> None:
        """Close connections."""
        await self._client.close()


def _reason(error: Exception) -> str:
    if isinstance(error, ClientConnectorError):
        number = error.os_error.errno or 0
        return os.strerror(number) if number > 0 else error.os_error.strerror or "unknown host"
    return str(error) or type(error).__name__


def _refusal(status: int) -> str:
    if status == 401:
        return f"it needs a token: set {_TOKEN}"
    if status == 403:
        return "the token is not allowed to look, or was not accepted"
    if status == 404:
        return "no console there: OPS__CONSOLE is off, or it is another server"
    if status == 429:
        return "too many wrong tokens were sent from this address: wait a minute"
    return f"status {status}"


def _targets(option: str | None) -> list[str]:
    if option is None:
        return []
    found = [_target(each.strip()) for each in option.split(",") if each.strip()]
    if not found:
        raise ConfigurationError("--targets names no address: write http://HOST:PORT")
    return list(dict.fromkeys(found))


def _target(text: str) -> str:
    """Return an address without a slash at its end.

    Raises:
        ConfigurationError: It is no URL, or has what a token would be sent with.
    """
    try:
        url = URL(text)
        valid = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except ValueError:
        valid = False
    if not valid:
        raise ConfigurationError(f"--targets {text}: should be an address such as http://HOST:PORT")
    if url.user or url.password:
        raise ConfigurationError(f"--targets {text}: has a user; set a token with {_TOKEN}")
    if url.query or url.fragment:
        raise ConfigurationError(f"--targets {text}: should end after the port or the path")
    return str(url).rstrip("/")


def _of_environment() -> WorkerSettings:
    """Return the settings of the environment, whatever else an application reads from it.

    Raises:
        ConfigurationError: They are wrong.
    """
    settings, faults = load_settings(*settings_source(WorkerContainer()))
    if settings is None:
        raise ConfigurationError(*faults)
    return settings
