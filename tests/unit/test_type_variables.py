"""Generic base classes: what their type variables stand for in the classes derived from them."""

from collections.abc import Sequence
from typing import Annotated, Any, Generic, Optional, TypeVar

import pytest
from pydantic import BaseModel
from typing_extensions import TypeVar as TypeVarWithDefault

from workerkit import AMQPConsumer, AMQPMessage, DeclarationError, HTTPView, SSEConsumer, SSEEvent
from workerkit.signature import ArgumentSource, Signature, Unresolved
from workerkit.type_variables import hints

T = TypeVar("T")
U = TypeVar("U")
M = TypeVar("M", bound=BaseModel)
D = TypeVarWithDefault("D", default=int)


class Order(BaseModel):
    """A body."""

    id: int


class Page(BaseModel, Generic[T]):
    """A generic body."""

    items: list[T]


class Base(Generic[T, U]):
    """With everything that a type variable may stand in."""

    def handle(
        self,
        a: T,
        b: list[U],
        c: dict[str, T] | None,
        d: Optional[U],  # noqa: UP045
        e: Annotated[T, "x"],
        f: Page[U],
        g: Page,  # type: ignore[type-arg]
        h: AMQPMessage[T],
    ) -> Sequence[T]:
        """Nothing."""
        raise NotImplementedError


class Middle(Base[U, T]):
    """Turns the two round."""


class Given(Middle[str, int]):
    """U is str and T is int here, and in the base it is the other way round."""


class Overwriting(Given):
    """Has a method of its own."""

    def handle(self, a: bytes) -> None:  # type: ignore[override]
        """Nothing."""


def test_type_variables_are_filled_through_every_base() -> None:
    """However often they are renamed on the way."""
    assert hints(Given.handle, Given) == {
        "a": str,
        "b": list[int],
        "c": dict[str, str] | None,
        "d": Optional[int],  # noqa: UP045
        "e": Annotated[str, "x"],
        "f": Page[int],
        "g": Page,
        "h": AMQPMessage[str],
        "return": Sequence[str],
    }
    assert hints(Overwriting.handle, Overwriting) == {"a": bytes, "return": type(None)}


def nothing(parameter: Any, type_: Any) -> ArgumentSource:
    """A container that is empty."""
    raise Unresolved("has no provider")


class Consuming(AMQPConsumer, Generic[M], abstract=True):
    """A base as users write it."""

    async def handle(self, messages: list[AMQPMessage[M]]) -> None:
        """Nothing."""


class Orders(Consuming[Order]):
    """Which says what it consumes."""

    queues = ["orders"]


class Anything(Consuming):  # type: ignore[type-arg]
    """Which does not."""

    queues = ["anything"]


def test_a_body_of_a_generic_base_is_validated() -> None:
    """It is what the class derived from it says."""
    signature = Signature(Orders.handle, AMQPMessage, nothing, Orders)

    assert (signature.batch, signature.whole, signature.body) == (True, True, Order)


def test_a_body_that_nobody_has_named_is_no_body() -> None:
    """Otherwise anything would be one."""
    with pytest.raises(DeclarationError, match="'messages' has the type variable 'M' in its type"):
        Signature(Anything.handle, AMQPMessage, nothing, Anything)


def test_attributes_that_compare_in_their_own_way() -> None:
    """Columns and arrays among the attributes of a class are not methods."""

    class Column:
        def __eq__(self, other: object) -> bool:
            raise TypeError("the truth of it is ambiguous")

        __hash__ = None  # type: ignore[assignment]

    class Stored(Consuming[Order]):
        column = Column()

    assert Signature(Stored.handle, AMQPMessage, nothing, Stored).body is Order


def test_a_default_will_do() -> None:
    """A type variable that has one stands for that."""

    class Counting(SSEConsumer, Generic[D], abstract=True):
        async def handle(self, event: SSEEvent[D]) -> None: ...

    class Plain(Counting): ...

    class Other(Counting[str]): ...

    found = [Signature(each.handle, SSEEvent, nothing, each).body for each in (Plain, Other)]
    assert found == [int, str]


def test_views_may_be_generic() -> None:
    """Both what they take and what they return."""

    class Storing(HTTPView, Generic[M], abstract=True):
        async def post(self, body: M) -> M:
            return body

    class Stored(Storing[Order]):
        routes = ["/orders"]

    class Unnamed(Storing):  # type: ignore[type-arg]
        routes = ["/things"]

    found: Any = Stored.signatures(None, None, nothing)["post"]
    assert (found.body.type, found.returns) == (Order, Order)
    with pytest.raises(DeclarationError, match=r"what it stands for; write class .*Unnamed\("):
        Unnamed.signatures(None, None, nothing)
