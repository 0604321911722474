"""Options and deliveries of a `SimpleTransport`, and the outcomes that it can carry out."""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Protocol

from pydantic import Field
from typing_extensions import TypeVar

from workerkit.delivery import Action, Delivery, Outcome
from workerkit.options import (
    OF_BATCHES,
    Concurrency,
    Options,
    Seconds,
    Settlement,
    unless_retried,
)
from workerkit.retry import Retries


@dataclass(frozen=True, slots=True, kw_only=True)
class SimpleOptions(Options):
    """The options of a `SimpleConsumer`. Subclass it to add what selects a source.

    Attributes:
        batch_size: Deliveries of a full batch, where `handle` takes a list.
        batch_interval: Seconds that the first delivery of a batch waits for others.
        on_exception: What becomes of a delivery that `handle` raised for; `retry` comes first.
        retry: Tries such a delivery again, and dead-letters it in the end.
    """

    concurrency: Concurrency = 16
    batch_size: Annotated[int, Field(ge=1)] = field(default=100, metadata=OF_BATCHES)
    batch_interval: Seconds = field(default=1.0, metadata=OF_BATCHES)
    on_success: Settlement = Action.ACK
    on_exception: Settlement = field(
        default=Action.REQUEUE, metadata=unless_retried(Action.DEAD_LETTER)
    )
    on_invalid: Settlement = Action.DEAD_LETTER
    retry: Retries = None


Body = TypeVar("Body", default=Any)


class SimpleDelivery(Delivery, Generic[Body]):
    """A delivery with a body. Subclass it to add what identifies it at its source.

    Attributes:
        body: The decoded body.
    """

    __slots__ = ("body",)

    body: Body


OptionsType = TypeVar("OptionsType", bound=SimpleOptions, default=SimpleOptions)
DeliveryType = TypeVar("DeliveryType", bound=Delivery, default=SimpleDelivery[Any])
Options_contra = TypeVar("Options_contra", bound=SimpleOptions, contravariant=True)


class TwoFunctions(Protocol[Options_contra, DeliveryType]):
    """What a receiver needs from its transport."""

    @property
    def actions(self) -> Collection[Action]:
        """What `settle` can carry out beside `ACK`."""

    @property
    def ready_after(self) -> float | None:
        """Seconds after which a `receive` that waits counts as connected."""

    def receive(self, options: Options_contra) -> AsyncIterator[DeliveryType | None]:
        """Yield the deliveries of one consumer."""

    async def settle(self, delivery: DeliveryType, outcome: Outcome) -> None:
        """Carry out an outcome."""


def possible_outcome(outcome: Outcome, actions: Collection[Action]) -> Outcome | None:
    """Return the outcome as a transport can carry it out, or None for another attempt in place.

    | decided     | if the transport cannot do that                                    |
    |-------------|--------------------------------------------------------------------|
    | ack         | (it always can)                                                    |
    | reject      | ack                                                                |
    | dead_letter | as reject                                                          |
    | requeue     | in place, after a growing pause                                    |
    | retry       | in place, after its delay; so is a delay of zero                   |

    Args:
        actions: What the transport can do.
    """
    action = outcome.action
    if action not in actions:
        action = action.without_broker
    if action is Action.REJECT and action not in actions:
        action = Action.ACK
    if action is Action.REQUEUE and action not in actions:
        return None
    if action is Action.RETRY and (action not in actions or not outcome.delay):
        return None
    return outcome if action is outcome.action else outcome._replace(action=action)
