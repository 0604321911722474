"""Messages whose bodies are too large to be kept in memory."""

import logging
from functools import cached_property
from typing import Any, NoReturn

from workerkit.amqp.acks import Acks
from workerkit.amqp.message import AMQPMessage
from workerkit.delivery import Action
from workerkit.errors import InvalidBody


class Oversized(AMQPMessage[Any]):
    """A message whose body was discarded while it arrived. Reading the body raises.

    Attributes:
        size: The size of the body in bytes.
        setting: The name of the variable that limits it.
    """

    __slots__ = ("setting", "size")

    def __init__(
        self,
        size: int,
        setting: str,
        *,
        queue: str,
        tag: int,
        envelope: bytes,
        properties: bytes,
        acks: Acks,
    ) -> None:
        super().__init__(
            b"", queue=queue, tag=tag, envelope=envelope, properties=properties, acks=acks
        )
        del self.raw
        self.size = size
        self.setting = setting

    def __getattr__(self, name: str) -> NoReturn:
        if name == "raw":
            raise InvalidBody(f"the body has {self.size} bytes, more than {self.setting} allows")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _said(self) -> str:
        name = self.message_id or f"#{self.tag}"
        return f"{name} of {self.queue!r}, {self.size} bytes, not kept"

    def log_failure(self, action: Action, error: Exception | None) -> tuple[int, str]:
        """Return level and message of its log record; a dead letter has one of its own already."""
        level, message = super().log_failure(action, error)
        return logging.DEBUG if self.fate is Action.DEAD_LETTER else level, message

    @cached_property
    def fingerprint(self) -> tuple[str, bytes]:
        """The fingerprint, with the size instead of the body."""
        return self.queue, b"%d %s" % (self.size, (self.message_id or "").encode())
