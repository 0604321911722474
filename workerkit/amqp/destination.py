"""The destination of a message, and the errors for messages that do not arrive there."""

from dataclasses import dataclass

from workerkit.amqp.confirms import (
    DEFAULT_EXCHANGE,
    TOO_LARGE,
    MessageRefused,
    MessageReturned,
)
from workerkit.amqp.frames import NO_PERMISSION, NOT_FOUND, PRECONDITION_FAILED
from workerkit.amqp.queue import Exchange
from workerkit.errors import MessageTooLarge, PublishError, PublishRefused, Unroutable


@dataclass(frozen=True, slots=True)
class Destination:
    """The destination of a message.

    Attributes:
        mandatory: Whether the broker returns the message if no queue receives it.
    """

    routing_key: str
    exchange: Exchange | str = ""
    connection: str = "default"
    vhost: str | None = None
    mandatory: bool = True

    def __str__(self) -> str:
        exchange = f"exchange {str(self.exchange)!r}" if self.exchange else "the default exchange"
        return f"{exchange} with routing key {self.routing_key!r}"


def public_error(
    where: str, error: MessageReturned | MessageRefused, exchange: str
) -> PublishError:
    """Return the public error for a message that the broker returned or refused."""
    if isinstance(error, MessageRefused) and error.code == NO_PERMISSION:
        grant = f"grant write on {exchange or DEFAULT_EXCHANGE!r}"
        return PublishRefused(f"{where}: {error}; {grant}")
    if isinstance(error, MessageReturned):
        return Unroutable(f"{where}: no queue receives it ({error})")
    if error.code == PRECONDITION_FAILED and TOO_LARGE in str(error):
        return MessageTooLarge(f"{where}: {error}")
    return (Unroutable if error.code == NOT_FOUND else PublishRefused)(f"{where}: {error}")
