"""What a user's class declares. Nothing here opens a socket."""

from collections.abc import Callable
from typing import Any, ClassVar

from workerkit.options import Options


class Consumer:
    """Base of every class that the Runner finds and runs.

    Users subclass one of its children, `AMQPConsumer` for instance. One instance lives as long
    as the process; the container fills the parameters of its constructor.

    Attributes:
        name: In logs, metrics and environment variables; the class name by default.
        concurrency: Calls of `handle` at the same time.
        timeout: Seconds for one call of `handle`; None for no limit.
        options: The options that this kind of consumer takes, with the framework's defaults.
    """

    name: ClassVar[str]
    concurrency: ClassVar[int]
    timeout: ClassVar[float | None]
    options: ClassVar[type[Options]] = Options
    handle: Callable[..., Any]
    _abstract: ClassVar[bool] = True

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        """Note whether the class is a shared base: `class Base(AMQPConsumer, abstract=True)`."""
        super().__init_subclass__(**kwargs)
        cls._abstract = abstract

    @classmethod
    def is_abstract(cls) -> bool:
        """Whether this class is only a base of others and is never run."""
        return cls._abstract

    async def on_start(self) -> None:
        """Called once before the first delivery; an exception fails the start."""

    async def on_stop(self) -> None:
        """Called once after the last delivery is settled; an exception is logged."""

    async def on_connection_error(self, error: Exception, attempt: int) -> None:
        """Called for each failed attempt to connect; an exception is logged.

        Args:
            error: Why the attempt failed.
            attempt: From 1, counted since the connection was last up.
        """
