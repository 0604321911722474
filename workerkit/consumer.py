"""The base class of all consumers. Nothing here opens a socket."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from workerkit.attributes import misspelt_hooks
from workerkit.codec import BUILT_IN, Codecs
from workerkit.delivery import Delivery
from workerkit.describe import describe_class
from workerkit.errors import DeclarationError
from workerkit.options import Options
from workerkit.signature import Arguments, Resolve, Signature


class Consumer:
    """Base of every class that the Runner finds and runs.

    Users subclass one of its children, `AMQPConsumer` for instance. One instance lives as long
    as the process; the container fills the parameters of its constructor.

    Attributes:
        name: In logs, metrics and environment variables; the class name by default.
        concurrency: Calls of `handle` at the same time.
        timeout: Seconds for one call of `handle`; None for no limit.
        paused: Whether it is paused when the process starts, until an operator resumes it.
        interceptors: Around each call of `handle`, inside those of the container, the outermost
            first: functions that take a `Call` and return an asynchronous context manager, classes
            with such a `__call__`, or providers of either.
        publishes: What it publishes, for the AsyncAPI document and `workerkit topology`: types of
            bodies by the name of a queue, or by a `Destination`; a union where there are several.
            It has no effect on publishing.
        options: The options that this kind of consumer takes, with the framework's defaults.
    """

    name: ClassVar[str]
    concurrency: ClassVar[int]
    timeout: ClassVar[float | None]
    paused: ClassVar[bool]
    interceptors: ClassVar[Sequence[Any]] = ()
    publishes: ClassVar[Mapping[Any, Any]]
    options: ClassVar[Any] = Options  # A view may have a method of that name.
    handle: Callable[..., Any]
    _abstract: ClassVar[bool] = True
    _may_answer: ClassVar[bool] = False  # Whether its transport uses what `handle` returns.

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        """Note whether the class is a shared base: `class Base(AMQPConsumer, abstract=True)`."""
        super().__init_subclass__(**kwargs)
        cls._abstract = abstract

    @classmethod
    def is_abstract(cls) -> bool:
        """Return whether this class is only a base of others and is never run."""
        return cls._abstract

    @classmethod
    def options_type(cls) -> type[Options]:
        """Return the options of its kind, even where it has a method called `options`."""
        found = (vars(base).get("options") for base in cls.__mro__)
        return next(each for each in found if isinstance(each, type))

    @classmethod
    def signatures(
        cls,
        options: Options | None,
        delivery: type[Delivery] | None,
        resolve: Resolve,
        codecs: Codecs = BUILT_IN,
    ) -> Mapping[str, Arguments]:
        """Read the methods that the transport of this kind of consumer calls, by name.

        Args:
            options: Its options; None if they are invalid.
            delivery: The type that the transport hands over.
            resolve: Gives the container's provider for a parameter and its type.
            codecs: Those of the container.

        Raises:
            DeclarationError: With every fault of the methods.
        """
        if not callable(getattr(cls, "handle", None)):
            text = f"{describe_class(cls)}: needs a method `handle`"
            found = [name for _, name, meant in misspelt_hooks(cls) if meant == "handle"]
            raise DeclarationError(f"{text}; it has {found[0]!r}" if found else text)
        signature = Signature(
            cls.handle,
            delivery,
            resolve,
            cls,
            answers=cls._may_answer,
            codecs=codecs,
            by_name=bool(cls.body_types()),
        )
        return {"handle": signature}

    @classmethod
    def body_types(cls) -> Mapping[str, Any]:
        """Return the types of bodies by the name that a delivery has; none where it has no name."""
        return {}

    @classmethod
    def claims(cls, options: Options) -> Iterable[str]:
        """Return what only one consumer may have, such as a route; by default nothing."""
        return ()

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
