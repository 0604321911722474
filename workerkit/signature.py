"""Read the signature of `handle` once, then turn deliveries into its arguments."""

import asyncio
import inspect
import re
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import (
    Annotated,
    Any,
    Never,
    NoReturn,
    Protocol,
    get_args,
    get_origin,
)

from workerkit.codec import BUILT_IN, Codecs, UnknownType
from workerkit.delivery import Delivery
from workerkit.describe import describe_class
from workerkit.errors import DeclarationError
from workerkit.reading import Read, body_reader
from workerkit.type_variables import hints, variables

# The text of pydantic about a class that it cannot validate, with the name of the class.
_UNKNOWN_CLASS = re.compile(r"schema for (?:<class ')?(?P<name>[^'>]+?)(?:'>)?\. Set ")
# Allowed return annotations of a method whose value is not used; Any promises no value.
_NO_VALUE = (None, type(None), Never, NoReturn, Any)
_GENERATORS = (types.GeneratorType, types.AsyncGeneratorType)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class ArgumentSource:
    """The source of an argument that does not come from the delivery.

    Attributes:
        per_call: It gives a new object for each call.
        iterated: The parameter is annotated as an iterator, and takes a generator as it is.
    """

    provide: Callable[[], Any]
    per_call: bool = False
    iterated: bool = False


Resolve = Callable[[inspect.Parameter, Any], ArgumentSource]


class Arguments(Protocol):
    """The arguments of one method: what an endpoint needs from a signature.

    Attributes:
        batch: Whether one call takes many deliveries.
        answers: Whether the value that the method returns is used.
    """

    batch: bool
    answers: bool

    @property
    def read(self) -> Read:
        """Return the function that reads the first argument, or an item of it, from a delivery."""

    @property
    def provides(self) -> bool:
        """Return whether a call needs arguments from the container."""

    def bind(self, delivery: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Read the arguments that come from the delivery.

        Raises:
            Exception: The delivery does not fit.
        """

    def provided(self) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Return a context with the arguments of one call that come from the container."""


class Unresolved(LookupError):
    """A resolver finds nothing for a parameter; the text lists what is available."""


class Signature:
    """The parameters of one `handle`, and where their arguments come from.

    The first parameter takes the body, or the delivery with its body in it, or a list of either;
    a further one that is annotated with the delivery's type takes the delivery; the others come
    from the container, once per call.

    Args:
        handle: The function as the class has it, `self` first.
        delivery: The type of its deliveries, such as `AMQPMessage`; None where the transport has no
            body, so that all parameters come from the container.
        resolve: Gives the container's provider for a parameter and its type.
        of: The class that is used; it may have inherited the method from a generic base class.
        answers: Whether the transport can use a returned value; else an annotation of one is a
            fault.
        codecs: Those of the application, where the transport states content types.
        by_name: Whether each delivery names the type of its body. Then the transport sets `read`,
            and the annotation may be a union that cannot be read as a whole.

    Attributes:
        answers: Whether a value that `handle` returns is used: not where it is annotated with None.
        returns: The type that `handle` is annotated to return; None for no value, `Any` if it is
            not annotated.
        batch: Whether the first parameter is a list.
        body: The type that bodies are read as.
        whole: Whether `handle` takes deliveries with their bodies, not the bodies alone.
        read: Reads the first argument, or an item of it, from a delivery.

    Raises:
        DeclarationError: With every fault of the signature.
    """

    def __init__(
        self,
        handle: Callable[..., Any],
        delivery: type[Delivery] | None,
        resolve: Resolve,
        of: type | None = None,
        *,
        answers: bool = False,
        codecs: Codecs = BUILT_IN,
        by_name: bool = False,
    ) -> None:
        self._where = describe_class(handle)
        self._codecs = codecs
        self.answers = False
        self.returns: Any = Any
        self._delivery = delivery
        self._resolve = resolve
        self._by_name = by_name
        self._faults: list[str] = []
        self._provide: dict[str, ArgumentSource] = {}
        self._deliver: list[str] = []
        self.batch = False
        self.whole = False
        self.body: Any = None
        parameters = annotated(handle, self._faults, of)
        if delivery is not None and not parameters and not self._faults:
            self._faults.append(
                f"{self._where}: needs a parameter after self, which takes the body"
            )
        self.read: Read = _nothing
        if delivery is not None and parameters:
            self.read = self._first(*parameters.pop(0))
        for parameter, type_ in parameters:
            self._further(parameter, type_)
        if not self._faults:
            self._returns(handle, of, answers)
        if self._faults:
            raise DeclarationError(*self._faults)

    @property
    def provides(self) -> bool:
        """Return whether a call needs arguments from the container."""
        return bool(self._provide)

    def bind(self, delivery: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Read the arguments that come from the delivery.

        Raises:
            InvalidBody: The body does not fit.
            Exception: A validator of the user raised it.
        """
        arguments = () if self._delivery is None else (self.read(delivery),)
        return arguments, dict.fromkeys(self._deliver, delivery) if self._deliver else {}

    def provided(self) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Return a context with the arguments of one call that come from the container."""
        return provided(self._provide)

    def reader(self, body: Any) -> Read:
        """Create the function that reads the first argument, or an item of it, from a delivery.

        Args:
            body: The type of the body.

        Raises:
            UnknownType: No codec can read a body as this type.
        """
        return body_reader(body, self._delivery, self._codecs, whole=self.whole)

    def _first(self, parameter: inspect.Parameter, type_: Any) -> Read:
        if parameter.kind not in _POSITIONAL:
            self._fault(parameter, "takes the body and must not be keyword-only")
        if type_ is list or get_origin(type_) is list:
            self.batch = True
            type_ = (get_args(type_) or (Any,))[0]
        self.whole = self._is_delivery(type_)
        self.body = (get_args(_unannotated(type_)) or (Any,))[0] if self.whole else type_
        if self._by_name:
            return _nothing
        try:
            return self.reader(self.body)
        except UnknownType as error:
            self._fault(parameter, _unreadable(self.body, error, self._delivery))
            return _nothing

    def _further(self, parameter: inspect.Parameter, type_: Any) -> None:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            self._fault(parameter, "must not be positional-only")
        elif self._is_delivery(type_) and self.batch:
            self._fault(
                parameter,
                f"is a single delivery, and a batch has many: annotate the first parameter with "
                f"list[{getattr(self._delivery, '__name__', 'Delivery')}[...]] instead",
            )
        elif self._is_delivery(type_):
            self._deliver.append(parameter.name)
        else:
            try:
                self._provide[parameter.name] = self._resolve(parameter, type_)
            except Unresolved as error:
                self._fault(parameter, f"{error}{self._body_hint(type_)}")

    def _returns(self, handle: Callable[..., Any], of: type | None, answers: bool) -> None:
        """Read the annotation of the value. Refuse one that would be lost, or cannot be sent."""
        type_ = hints(handle, of).get("return", Any)
        if get_origin(type_) in (Awaitable, Coroutine) and not _is_asynchronous(handle):
            type_ = get_args(type_)[-1]
        if type_ is not Any and type_ in _NO_VALUE:
            self.returns = None
            return
        self.returns = type_
        self.answers = answers and not self.batch
        if type_ is Any:
            return
        if not self.answers:
            many = "; a batch has no single sender to reply to" if answers else ""
            found = f"returns {shown_type(type_)}, and nothing reads what handle returns"
            self._faults.append(f"{self._where}: {found}: write -> None{many}")
            return
        try:
            self.reader(type_)
        except UnknownType as error:
            text = _unreadable(type_, error, None)
            text = text.removeprefix(f"is of type {_named(type_)}, which ")
            self._faults.append(f"{self._where}: returns {shown_type(type_)}, which {text}")

    def _body_hint(self, type_: Any) -> str:
        """Return a hint if the parameter is probably meant as the body, else an empty text."""
        if not self.whole or self.body is not Any or not _is_record(type_):
            return ""
        assert self._delivery is not None
        right = f"{self._delivery.__name__}[{_named(type_)}]"
        return f"; if it is the body: the first parameter takes it, write {right}"

    def _is_delivery(self, type_: Any) -> bool:
        bare = _unannotated(type_)
        return self._delivery is not None and (get_origin(bare) or bare) is self._delivery

    def _fault(self, parameter: inspect.Parameter, sentence: str) -> None:
        self._faults.append(f"{self._where}: parameter {parameter.name!r} {sentence}")


def annotated(
    handle: Callable[..., Any], faults: list[str], of: type | None = None
) -> list[tuple[inspect.Parameter, Any]]:
    """Return the parameters of a method after `self`, each with its type.

    Args:
        faults: Faults of the other parameters and of the method are added here.
        of: The class that is used, which sets the type variables of its generic base classes.

    Raises:
        DeclarationError: It is not a method, or the annotations cannot be read.
    """
    # Python would call it without `self`; up to 3.13 a partial as well.
    if not hasattr(type(handle), "__get__") or isinstance(handle, partial):
        by = "" if of is None else f"{describe_class(of)}: "
        raise DeclarationError(f"{by}{describe_class(handle)} is no method: write a `def`")
    where = describe_class(handle)
    function = inspect.unwrap(handle)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        faults.append(f"{where}: is a generator; return instead of yielding")
    try:
        types_ = hints(handle, of)
    except Exception as error:
        # An annotation that is a string may be any expression.
        raise DeclarationError(f"{where}: its annotations cannot be read: {error}") from error
    found = []
    for parameter in list(inspect.signature(handle).parameters.values())[1:]:
        start = f"{where}: parameter {parameter.name!r}"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            faults.append(f"{start} cannot be filled; name each parameter instead")
        elif parameter.name not in types_:
            faults.append(f"{start} needs a type annotation")
        elif open_ := variables(types_[parameter.name]):
            faults.append(f"{start} has {_unfilled(open_, of)}")
        else:
            found.append((parameter, types_[parameter.name]))
    return found


@asynccontextmanager
async def provided(sources: Mapping[str, ArgumentSource]) -> AsyncIterator[dict[str, Any]]:
    """The arguments of one call that come from the container.

    An asynchronous provider gives a future, which is awaited. An asynchronous context manager
    that was created for this call, such as a database session, is entered, and exited after the
    call, with its exception if there is one.

    Raises:
        TypeError: A provider returned a generator; only the call could show that.
    """
    async with AsyncExitStack() as stack:
        values = {}
        for name, source in sources.items():
            value = source.provide()
            if inspect.isawaitable(value):
                value = await given(value)
            if source.per_call and hasattr(type(value), "__aenter__"):
                value = await stack.enter_async_context(value)
            elif type(value) in _GENERATORS and not source.iterated:
                raise TypeError(f"{name!r} is a generator: its provider has to give what it yields")
            values[name] = value
        yield values


async def given(value: Any) -> Any:
    """Return what a provider gives; await it where it is asynchronous.

    dependency-injector sets the result of its futures in any case. One that was cancelled with the
    task that waits for it would log an error then.
    """
    if not inspect.isawaitable(value):
        return value
    if isinstance(value, asyncio.Future) and not isinstance(value, asyncio.Task):
        return await asyncio.shield(value)
    return await value


def _unfilled(open_: Sequence[Any], of: type | None) -> str:
    """Describe the fault of a type whose type variables have no value."""
    names = " and ".join(repr(each.__name__) for each in open_)
    right = "" if of is None else f"; write class {of.__qualname__}(...[...])"
    return f"the type variable {names} in its type, and nothing says what it stands for{right}"


def _unreadable(body: Any, error: UnknownType, delivery: type[Delivery] | None) -> str:
    """Explain why a body cannot be read as this type, and what to write instead."""
    ours = f"{delivery.__name__}[...]" if delivery is not None else "Any"
    right = (
        f"write bytes, str, a pydantic model, a dataclass, a TypedDict, a msgspec.Struct or {ours}"
    )
    unknown = _UNKNOWN_CLASS.search(str(error))
    if unknown is None:
        return f"has a type that no body can be read as: {error}"
    if isinstance(get_origin(body) or body, type) and not _is_record(body):
        name = _named(body)
        if unknown["name"].partition("[")[0].rpartition(".")[2] == name.rpartition(".")[2]:
            return f"is of type {name}, which is no type of a body: {right}"
    return f"has {unknown['name']} in its type, which is no type of a body: {right}"


def _unannotated(type_: Any) -> Any:
    """Return a type without its `Annotated`."""
    return get_args(type_)[0] if get_origin(type_) is Annotated else type_


def _is_record(type_: Any) -> bool:
    """Return whether a type is a class with fields, as most bodies are."""
    fields = ("__pydantic_fields__", "__dataclass_fields__", "__struct_fields__", "__total__")
    return isinstance(type_, type) and any(hasattr(type_, each) for each in fields)


def _named(type_: Any) -> str:
    return str(getattr(get_origin(type_) or type_, "__qualname__", type_)).rpartition("<locals>.")[
        2
    ]


def shown_type(type_: Any) -> str:
    """Return a type as text, as in source code, without module names."""
    named = isinstance(type_, type) and get_origin(type_) is None
    text = type_.__qualname__ if named else str(type_)
    return re.sub(r"(?:\w+\.)+(?=\w)", "", text.rpartition("<locals>.")[2])


def _is_asynchronous(handle: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(handle))


def _nothing(delivery: object) -> None:
    """Read nothing: the reader of a signature that has faults."""
