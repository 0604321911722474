"""What operators can set, and where it is read from: code, environment, `.env`, secret files."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import quote

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from yarl import URL

from workerkit.errors import ConfigurationError
from workerkit.metrics_settings import MetricsSettings
from workerkit.sections import SECTION, Grace, Seconds, SSESettings, TLSSettings
from workerkit.sources import EnvFile, Environment, SecretFiles

log = logging.getLogger(__name__)

DEFAULT_CONNECTION = "default"
DEFAULT_PORTS: Mapping[str, int] = {"amqp": 5672, "amqps": 5671}


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


Port = Annotated[int, Field(ge=1, le=65_535)]
ListenPort = Annotated[int, Field(ge=0, le=65_535)]
Declare = Annotated[Literal["missing", "always", "never"], BeforeValidator(_lower)]
Auth = Annotated[Literal["plain", "external"], BeforeValidator(_lower)]
LogFormat = Annotated[Literal["text", "json"], BeforeValidator(_lower)]
Level = Annotated[
    Literal["CRITICAL", "FATAL", "ERROR", "WARN", "WARNING", "INFO", "DEBUG", "NOTSET"],
    BeforeValidator(_upper),
]


class AMQPSettings(BaseModel):
    """One named connection to a message broker.

    Attributes:
        url: `amqp://user:password@host:port/vhost`, or `amqps`; parts are percent-encoded. An empty
            path and `/` both mean the vhost `/`. Parts of a query are handed to aiormq as they are.
        host: Instead of the URL's.
        port: Instead of the URL's, which defaults to 5672, with TLS to 5671.
        user: Instead of the URL's; not percent-encoded.
        password: Instead of the URL's; not percent-encoded.
        vhost: Instead of the URL's; not percent-encoded.
        heartbeat: Seconds between two signs of life; whole, because AMQP carries an integer.
        declare: Which queues are declared: those that are missing, all, or none.
        connect_timeout: Seconds for one attempt to connect.
        auth: `external` lets the client's certificate say who this is.
    """

    model_config = SECTION

    url: SecretStr = SecretStr("amqp://guest:guest@127.0.0.1:5672/")
    host: str | None = None
    port: Port | None = None
    user: str | None = None
    password: SecretStr | None = None
    vhost: str | None = None
    heartbeat: Annotated[int, Field(ge=1, le=65_535)] = 15
    declare: Declare = "missing"
    connect_timeout: Seconds = 10.0
    auth: Auth = "plain"
    tls: TLSSettings = TLSSettings()

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return URL(self.url.get_secret_value()).scheme == "amqps"

    def vhost_name(self, vhost: str | None = None) -> str:
        """Return the vhost as the broker knows it, neither encoded nor empty.

        Args:
            vhost: Instead of the connection's own.
        """
        name = self.vhost if vhost is None else vhost
        return _vhost_of(URL(self.url.get_secret_value())) if name is None else name or "/"

    def address(self, vhost: str | None = None) -> URL:
        """Build the URL for aiormq, which reads back exactly these credentials and this vhost.

        It contains the password: log `display()` instead.

        Args:
            vhost: Instead of the connection's own; not percent-encoded.

        Raises:
            ConfigurationError: *vhost* contains `%2F`, which aiormq would read as a slash.
        """
        name = self.vhost_name(vhost)
        if not _expressible(name):
            raise ConfigurationError(f"vhost {name!r} must not contain '%2F': aiormq reads a slash")
        url = URL(self.url.get_secret_value())
        if self.host is not None:
            url = url.with_host(self.host)
        if self.user is not None:
            url = url.with_user(self.user).with_password(url.password)
        if self.password is not None:
            url = url.with_password(self.password.get_secret_value())
        url = url.with_port(self.port or url.port or DEFAULT_PORTS[url.scheme])
        path = "/" if name == "/" else "/" + quote(name, safe="")
        return url.with_path(path, encoded=True, keep_query=True)

    def display(self, vhost: str | None = None) -> str:
        """Return the address for logs and people: no password, no query.

        Args:
            vhost: Instead of the connection's own.

        Raises:
            ConfigurationError: *vhost* contains `%2F`, which aiormq would read as a slash.
        """
        return str(self.address(vhost).with_password(None).with_query(None))

    @field_validator("url")
    @classmethod
    def _check_url(cls, given: SecretStr) -> SecretStr:
        try:
            url = URL(given.get_secret_value())
        except ValueError:
            # yarl's text may quote a part of the URL, and a chained error would print it.
            raise PydanticCustomError("amqp_url", "should be a valid URL") from None
        if url.scheme not in DEFAULT_PORTS:
            raise PydanticCustomError("amqp_url", "should start with amqp:// or amqps://")
        if not url.host:
            raise PydanticCustomError("amqp_url", "should name a host")
        return given

    @field_validator("host")
    @classmethod
    def _check_host(cls, given: str | None) -> str | None:
        if given is not None:
            try:
                URL("amqp://127.0.0.1/").with_host(given)
            except ValueError:
                text = "should be a host name or an IP address alone"
                raise PydanticCustomError("amqp_host", text) from None
        return given

    @field_validator("vhost")
    @classmethod
    def _check_vhost(cls, given: str | None) -> str | None:
        if given is not None and not _expressible(given):
            text = "should not contain '%2F': write the name plainly, without percent-encoding"
            raise PydanticCustomError("amqp_vhost", text)
        return given


class HTTPSettings(BaseModel):
    """Where the views are served; bound only when there are views.

    Attributes:
        port: 0 for any free one.
        max_body: Bytes of a request's body; more is answered with 413.
        read_timeout: Seconds for the head, and again for the body, of a request to come.
        reuse_port: Share the port with other processes, between which the kernel distributes.
        openapi: Whether `/openapi.json` and `/docs` are served as well.
    """

    model_config = SECTION

    host: str = "127.0.0.1"
    port: ListenPort = 8080
    max_body: Annotated[int, Field(gt=0)] = 1024 * 1024
    read_timeout: Seconds = 30.0
    reuse_port: bool = False
    openapi: bool = True


class OpsSettings(BaseModel):
    """Where health and metrics are served.

    Attributes:
        port: 0 for any free one.
    """

    model_config = SECTION

    enabled: bool = True
    host: str = "127.0.0.1"
    port: ListenPort = 8081


class LogSettings(BaseModel):
    """What is logged, and how a record looks.

    Attributes:
        level: A name of the standard library's levels, in any case.
        format: None for text when stderr is a terminal and JSON otherwise.
    """

    model_config = SECTION

    level: Level = "INFO"
    format: LogFormat | None = None

    @property
    def threshold(self) -> int:
        """The level as the number that `logging` compares."""
        return logging.getLevelNamesMapping()[self.level]


class WorkerSettings(BaseSettings):
    """Every setting of a process; subclass it to add your own and to choose the prefix.

    Highest first: arguments, environment variables, `.env`, the files of `secrets_dir` (with or
    without the prefix in their names). Lists are JSON or separated by commas.

    Attributes:
        amqp: Connections by name, in lower case; `default` always exists.
        sse: Servers of event streams by name, in lower case.
        cursors: Directory for the cursors of event streams; None keeps them in memory.
        cursors_fsync: Whether a cursor outlives a loss of power, and not only of the process.
        shutdown_grace: Seconds that running handlers get before they are cancelled.
        start_timeout: Seconds for the consumers to become ready; None waits for ever.
        consumer_timeout: Seconds after which the broker takes an unacknowledged message away and
            closes the channel; it cannot be asked, so it is set here if it is not RabbitMQ's own.
        consumers: Options by consumer and option, as they stand in the environment.
    """

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix="WORKERKIT_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        env_file=".env",
        dotenv_filtering="only_existing",
        nested_model_default_partial_update=True,
        hide_input_in_errors=True,
        extra="ignore",
    )

    amqp: dict[str, AMQPSettings] = Field(
        default_factory=lambda: {DEFAULT_CONNECTION: AMQPSettings()}
    )
    sse: dict[str, SSESettings] = Field(default_factory=dict)
    cursors: Path | None = None
    cursors_fsync: bool = True
    http: HTTPSettings = HTTPSettings()
    ops: OpsSettings = OpsSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
    shutdown_grace: Grace = 20.0
    start_timeout: Seconds | None = None
    consumer_timeout: Seconds = 1800.0
    consumers: dict[str, dict[str, Any]] = Field(default_factory=dict)

    _given: dict[str, Any] | None = PrivateAttr(default=None)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._given = given

    def connection(self, name: str) -> AMQPSettings:
        """A named connection, with what its secret files say now.

        Files that cannot be read at the moment leave it as it was.
        """
        return self._as_files_say().amqp.get(name, self.amqp[name])

    def stream_server(self, name: str) -> SSESettings:
        """A named server of event streams, with what its secret files say now."""
        return self._as_files_say().sse.get(name, self.sse[name])

    def with_amqp(self, connections: Mapping[str, AMQPSettings]) -> Self:
        """The same settings with other connections, whatever secret files say."""
        settings = self.model_copy(update={"amqp": dict(connections)})
        settings._given = None
        return settings

    def _as_files_say(self) -> Self:
        if self._given is None or self.model_config.get("secrets_dir") is None:
            return self
        try:
            return type(self)(**self._given)
        except (ValueError, OSError):
            # Without the error, which may contain what is in a file.
            log.warning("secret files cannot be read: going on with what they said before")
            return self

    @field_validator("amqp", "sse", mode="before")
    @classmethod
    def _complete_connections(cls, given: Any, info: ValidationInfo) -> Any:
        """Fold the names, and put back the connections of the class that nobody names."""
        if not isinstance(given, Mapping):
            return given
        field = cls.model_fields[str(info.field_name)]
        default = field.get_default(call_default_factory=True, validated_data={})
        connections: dict[Any, Any] = {}
        if info.field_name == "amqp":
            connections[DEFAULT_CONNECTION] = {}
        for name, connection in default.items():
            connections[name] = connection.model_dump(exclude_unset=True)
        for name, connection in given.items():
            key = name.casefold() if isinstance(name, str) else name
            connections[key] = _laid_over(connections.get(key), connection)
        return connections

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read what an operator wrote without giving up at the first bad value."""
        return (
            init_settings,
            Environment(settings_cls),
            EnvFile(settings_cls, env_file=getattr(dotenv_settings, "env_file", None)),
            SecretFiles(file_secret_settings),
            SecretFiles(file_secret_settings, secrets_prefix=""),
        )


def _vhost_of(url: URL) -> str:
    """Return the vhost that aiormq reads from *url*."""
    return url.path[1:].replace("%2F", "/") or "/"


def _expressible(vhost: str) -> bool:
    """Whether aiormq can be told this name: it decodes `%2F` once more after yarl did."""
    return "%2F" not in vhost


def _laid_over(default: Any, given: Any) -> Any:
    """Merge two descriptions of a connection; a given URL replaces the default altogether."""
    if not isinstance(given, Mapping) or not isinstance(default, Mapping) or "url" in given:
        return given
    return {**default, **given}
