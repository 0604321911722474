"""A consumer whose annotations are strings, for `test_signature.py`."""

from __future__ import annotations

from pydantic import BaseModel

from workerkit import AMQPMessage


class Order(BaseModel):
    id: int


class Consumer:
    async def handle(self, order: Order, message: AMQPMessage[Order]) -> None: ...


class Repository:
    """Something that a container may have."""


class Wants:
    def __init__(self, repository: Repository) -> None:
        self.repository = repository
