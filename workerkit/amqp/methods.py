"""Methods of AMQP 0-9-1 that allow any names: the broker decides which it accepts.

pamqp refuses most characters in the names of queues and exchanges. RabbitMQ accepts all characters
but line breaks, which it drops.
"""

from pamqp.base import Frame
from pamqp.commands import Basic, Exchange, Queue

_LONGEST = 255


class _AnyName(Frame):
    """A method that checks only whether it can be encoded."""

    def validate(self) -> None:
        """Refuse short strings that are too long: their length is one byte.

        Raises:
            ValueError: One has more than 255 bytes.
        """
        for name in self.attributes():
            value = getattr(self, name)
            if self.amqp_type(name) == "shortstr" and len(value.encode()) > _LONGEST:
                size = len(value.encode())
                raise ValueError(f"{name} is {size} bytes long, and AMQP allows {_LONGEST}")


class Consume(_AnyName, Basic.Consume):
    """`basic.consume` of any queue."""


class DeclareQueue(_AnyName, Queue.Declare):
    """`queue.declare` of any name."""


class BindQueue(_AnyName, Queue.Bind):
    """`queue.bind` of any queue to any exchange."""


class DeclareExchange(_AnyName, Exchange.Declare):
    """`exchange.declare` of any name."""
