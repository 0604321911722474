"""The JSON body that a view takes."""

from codecs import BOM_UTF8
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import from_json

from workerkit.codec import Decode
from workerkit.errors import InvalidRequest
from workerkit.http.request import HTTPRequest


@dataclass(frozen=True, slots=True)
class RequestBody:
    """The JSON body that a view takes.

    Attributes:
        argument: The name of the method's parameter.
        type: The annotated type.
        adapter: Its pydantic adapter; None for a `msgspec.Struct`.
        decode: The function that reads it.
        default: `Parameter.empty` if the body is required.
    """

    argument: str
    type: Any
    adapter: TypeAdapter[Any] | None
    decode: Decode
    default: Any = Parameter.empty

    @property
    def required(self) -> bool:
        """Whether the client has to send a body."""
        return self.default is Parameter.empty

    @property
    def described(self) -> Any:
        """What has the schema of the body: the adapter, or a type of msgspec."""
        return self.adapter or self.type

    def read(self, delivery: HTTPRequest, arguments: dict[str, Any]) -> None:
        """Read the body of a request, and add it to the arguments.

        Raises:
            InvalidBody: It does not match the type.
        """
        raw = delivery.raw
        if not raw and not self.required:
            arguments[self.argument] = delivery.body = self.default
            return
        # Pydantic accepts NaN and Infinity, which JSON does not have; both may be part of a string.
        # The search for a byte comes first: it takes 30 ns, the search for both words 0.7 µs.
        if (b"N" in raw and b"NaN" in raw) or (b"I" in raw and b"Infinity" in raw):
            _check_numbers(raw)
        arguments[self.argument] = delivery.body = self.decode(raw)


def _check_numbers(raw: bytes) -> None:
    try:
        from_json(raw.removeprefix(BOM_UTF8), allow_inf_nan=False)
    except ValueError as error:
        text = f"the body is not JSON, which has neither NaN nor Infinity: {error}"
        raise InvalidRequest(400, text) from None
