"""What operators can set, and where it is read from: code, environment, `.env`, secret files."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from workerkit.config.connections import AMQPSettings, CorruptCursors, SSESettings
from workerkit.config.sections import (
    Grace,
    HTTPSettings,
    LogSettings,
    MetricsSettings,
    OpsSettings,
    Seconds,
)
from workerkit.config.sources import EnvFile, Environment, SecretFiles

log = logging.getLogger(__name__)

DEFAULT_CONNECTION = "default"


class WorkerSettings(BaseSettings):
    """Every setting of a process; subclass it to add your own and to choose the prefix.

    Highest first: arguments, environment variables, `.env`, the files of `secrets_dir` (with or
    without the prefix in their names). Lists are JSON or separated by commas.

    Attributes:
        amqp: Connections by name, in lower case; `default` always exists.
        sse: Servers of event streams by name, in lower case.
        cursors: Directory for the cursors of event streams; None keeps them in memory.
        cursors_fsync: Whether a cursor outlives a loss of power, and not only of the process.
        cursors_corrupt: What is done with a file that holds no cursor: it is set aside, and its
            stream begins without a cursor; or the stream waits until somebody has mended it.
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


def _laid_over(default: Any, given: Any) -> Any:
    """Merge two descriptions of a connection; a given URL replaces the default altogether."""
    if not isinstance(given, Mapping) or not isinstance(default, Mapping) or "url" in given:
        return given
    # Each of the two replaces the other, because both together are an error.
    replaced = {"hosts"} if "host" in given else {"host"} if "hosts" in given else set()
    return {**{name: value for name, value in default.items() if name not in replaced}, **given}
