"""Read the signature of `handle` once, then turn deliveries into its arguments."""

import inspect
from collections.abc import Callable
from typing import Any, get_args, get_origin, get_type_hints

from workerkit.codec import UnknownType, decoder
from workerkit.delivery import Delivery
from workerkit.errors import DeclarationError
from workerkit.places import place

Provide = Callable[[], Any]
Resolve = Callable[[inspect.Parameter, Any], Provide]
Read = Callable[[Any], Any]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Unresolved(LookupError):
    """A resolver has nothing for a parameter; its text says what there is."""


class Signature:
    """The plan of one `handle`.

    The first parameter takes the body, or the delivery with its body in it, or a list of either;
    a further one that is annotated with the delivery's type takes the delivery; the others come
    from the container, anew for each call.

    Args:
        handle: The function as the class has it, `self` first.
        delivery: The type that the wire hands over, such as `AMQPMessage`.
        resolve: Gives the container's provider for a parameter and its type.

    Attributes:
        batch: Whether the first parameter is a list.
        read: Makes the first argument of one delivery, or an item of it.

    Raises:
        DeclarationError: With every fault of the signature.
    """

    def __init__(
        self, handle: Callable[..., Any], delivery: type[Delivery], resolve: Resolve
    ) -> None:
        self._where = place(handle)
        self._delivery = delivery
        self._resolve = resolve
        self._faults: list[str] = []
        self._provide: dict[str, Provide] = {}
        self._deliver: list[str] = []
        self.batch = False
        parameters = self._parameters(handle)
        self.read: Read = self._first(*parameters[0]) if parameters else _nothing
        for parameter, type_ in parameters[1:]:
            self._further(parameter, type_)
        if self._faults:
            raise DeclarationError(*self._faults)

    @property
    def provides(self) -> bool:
        """Whether a call needs anything of the container."""
        return bool(self._provide)

    def bind(self, delivery: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Read the arguments that come from the delivery.

        Raises:
            InvalidBody: The body does not fit.
            Exception: Whatever a validator of the user's raises.
        """
        arguments = (self.read(delivery),)
        return arguments, dict.fromkeys(self._deliver, delivery) if self._deliver else {}

    async def provide(self) -> dict[str, Any]:
        """Ask the container for the other arguments of one call."""
        values = {name: provide() for name, provide in self._provide.items()}
        # An asynchronous provider gives a future instead of the value.
        return {
            name: await value if inspect.isawaitable(value) else value
            for name, value in values.items()
        }

    def _parameters(self, handle: Callable[..., Any]) -> list[tuple[inspect.Parameter, Any]]:
        try:
            hints = get_type_hints(handle, include_extras=True)
        except (NameError, TypeError) as error:
            raise DeclarationError(
                f"{self._where}: its annotations cannot be read: {error}"
            ) from error
        found = []
        for parameter in list(inspect.signature(handle).parameters.values())[1:]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                self._fault(parameter, "cannot be filled; name each parameter instead")
            elif parameter.name not in hints:
                self._fault(parameter, "needs a type annotation")
            else:
                found.append((parameter, hints[parameter.name]))
        if not found and not self._faults:
            self._faults.append(f"{self._where}: needs a first parameter, which takes the body")
        return found

    def _first(self, parameter: inspect.Parameter, type_: Any) -> Read:
        if parameter.kind not in _POSITIONAL:
            self._fault(parameter, "takes the body and must not be keyword-only")
        if type_ is list or get_origin(type_) is list:
            self.batch = True
            type_ = (get_args(type_) or (Any,))[0]
        whole = self._is_delivery(type_)
        body = (get_args(type_) or (Any,))[0] if whole else type_
        try:
            decode = decoder(body)
        except UnknownType as error:
            self._fault(parameter, f"has a type that no body can be read as: {error}")
            return _nothing
        return _reader(decode, whole)

    def _further(self, parameter: inspect.Parameter, type_: Any) -> None:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            self._fault(parameter, "must not be positional-only")
        elif self._is_delivery(type_) and self.batch:
            self._fault(parameter, f"is one of many; write list[{self._delivery.__name__}[...]]")
        elif self._is_delivery(type_):
            self._deliver.append(parameter.name)
        else:
            try:
                self._provide[parameter.name] = self._resolve(parameter, type_)
            except Unresolved as error:
                self._fault(parameter, str(error))

    def _is_delivery(self, type_: Any) -> bool:
        return (get_origin(type_) or type_) is self._delivery

    def _fault(self, parameter: inspect.Parameter, sentence: str) -> None:
        self._faults.append(f"{self._where}: parameter {parameter.name!r} {sentence}")


def _nothing(delivery: object) -> None:
    """Stands in for the reader of a signature that has faults."""


def _reader(decode: Callable[[bytes], Any], whole: bool) -> Read:
    def read(delivery: Any) -> Any:
        body = delivery.body = decode(delivery.raw)
        return delivery if whole else body

    return read
