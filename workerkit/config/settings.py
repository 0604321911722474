"""The settings of a process, from code, environment variables, `.env` and secret files."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from workerkit.config.connections import AMQPSettings, CorruptCursors, SSESettings
from workerkit.config.sections import (
    FleetSettings,
    Grace,
    HTTPSettings,
    LogSettings,
    MetricsSettings,
    OpsSettings,
    Processes,
    Seconds,
    TracingMode,
)
from workerkit.config.sources import EnvFile, Environment, SecretFiles

log = logging.getLogger(__name__)

DEFAULT_CONNECTION = "default"


class WorkerSettings(BaseSettings):
    """All settings of a process; subclass it to add your own and to choose the prefix.

    The sources, highest priority first, are arguments, environment variables, `.env`, and the files
    of `secrets_dir`, whose names may omit the prefix. Lists are JSON or separated by commas.

    Attributes:
        amqp: Connections by name, in lower case; `default` always exists.
        sse: Servers of event streams by name, in lower case.
        cursors: Directory for the cursors of event streams; None keeps them in memory.
        cursors_fsync: Write each cursor to the disk, so that it survives a loss of power.
        cursors_corrupt: With a cursor file that is invalid, `set-aside` renames it and starts the
            stream without a cursor; `wait` does not start the stream until the file is repaired.
        fleet: How the processes of one application find each other, for the console.
        tracing: Whether to create OpenTelemetry spans: `auto` does if the application has
            configured an SDK.
        processes: The number of processes that `workerkit run` starts; `auto` for the number of
            CPUs.
        shutdown_grace: Seconds that running handlers get before they are cancelled.
        start_timeout: Seconds for the consumers to become ready; None for no limit.
        consumer_timeout: The broker's `consumer_timeout` in seconds: after that time without an
            acknowledgement it closes the channel. Set it if it is not RabbitMQ's default, because
            a client cannot query it.
        consumers: Options by consumer and option, as written in the environment.
    """

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix="WORKERKIT_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        env_file=".env",
        env_file_encoding="utf-8-sig",  # Editors of Windows begin a file with a byte order mark.
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
    cursors_corrupt: CorruptCursors = "set-aside"
    http: HTTPSettings = HTTPSettings()
    ops: OpsSettings = OpsSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
    fleet: FleetSettings = FleetSettings()
    tracing: TracingMode = "auto"
    processes: Processes = 1
    shutdown_grace: Grace = 20.0
    start_timeout: Seconds | None = None
    consumer_timeout: Seconds = 1800.0
    consumers: dict[str, dict[str, Any]] = Field(default_factory=dict)

    _given: dict[str, Any] | None = PrivateAttr(default=None)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._given = given

    def connection(self, name: str) -> AMQPSettings:
        """Return a named connection with the current contents of its secret files.

        If the files cannot be read at the moment, the previous values stay.
        """
        return self._with_current_files().amqp.get(name, self.amqp[name])

    def stream_server(self, name: str) -> SSESettings:
        """Return a named server of event streams with the current contents of its secret files."""
        return self._with_current_files().sse.get(name, self.sse[name])

    def with_amqp(self, connections: Mapping[str, AMQPSettings]) -> Self:
        """Return the same settings with other connections, which ignore secret files."""
        settings = self.model_copy(update={"amqp": dict(connections)})
        settings._given = None
        return settings

    def _with_current_files(self) -> Self:
        if self._given is None or self.model_config.get("secrets_dir") is None:
            return self
        try:
            return type(self)(**self._given)
        except (ValueError, OSError):
            # The error is not logged: it may contain the content of a file.
            log.warning("cannot read secret files: keeping the previous values")
            return self

    @field_validator("amqp", "sse", mode="before")
    @classmethod
    def _complete_connections(cls, given: Any, info: ValidationInfo) -> Any:
        """Convert names to lower case, and add the default connections of the class."""
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
            connections[key] = _merged(connections.get(key), connection)
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
        """Read all variables, including those with invalid values: validation reports them all."""
        return (
            init_settings,
            Environment(settings_cls),
            EnvFile(settings_cls, env_file=getattr(dotenv_settings, "env_file", None)),
            SecretFiles(file_secret_settings),
            SecretFiles(file_secret_settings, secrets_prefix=""),
        )


def _merged(default: Any, given: Any) -> Any:
    """Merge two descriptions of a connection; a given URL replaces the whole default."""
    if not isinstance(given, Mapping) or not isinstance(default, Mapping) or "url" in given:
        return given
    # Each of the two replaces the other, because both together are an error.
    replaced = {"hosts"} if "host" in given else {"host"} if "hosts" in given else set()
    return {**{name: value for name, value in default.items() if name not in replaced}, **given}
