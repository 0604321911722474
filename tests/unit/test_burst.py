"""A burst of other transports: what they need, and what becomes of those that have not got it."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import pytest
from dependency_injector import providers

from tests.application import container_of, package_of
from workerkit import Runner, SimpleConsumer, SimpleDelivery, SimpleOptions, SimpleTransport
from workerkit.transport import Options, Outcome

HANDLED: list[bytes] = []


class ListConsumer(SimpleConsumer, abstract=True):
    """Handles the items of a list in memory."""


class Endless(SimpleTransport[SimpleOptions]):
    """Receives from a list in memory."""

    kind = "list"

    def __init__(self) -> None:
        super().__init__()
        self.items: deque[SimpleDelivery] = deque(map(SimpleDelivery, (b"a", b"bad", b"c")))
        self.refused: list[bytes] = []

    async def receive(self, options: SimpleOptions) -> AsyncIterator[SimpleDelivery | None]:
        """Take items off the list."""
        yield None
        while True:
            await asyncio.sleep(0)
            if self.items:
                yield self.items.popleft()

    async def settle(self, delivery: SimpleDelivery, outcome: Outcome) -> None:
        """Note what was refused."""
        if outcome.error is not None:
            self.refused.append(delivery.raw)


class Bursting(Endless):
    """A list that reports what is left."""

    def endless(self, options: Options) -> str:
        """Return nothing: every list has an end."""
        return ""

    async def remaining(self) -> list[str]:
        """Return what is in the list, and what is not settled."""
        return [repr(each) for each in self.items] + self.pending()

    def failures(self) -> list[str]:
        """Return what was refused."""
        return [f"{raw!r} was refused" for raw in self.refused]


class Letters(ListConsumer):
    """Handles the items."""

    async def handle(self, body: bytes) -> None:
        """Refuse one of them."""
        HANDLED.append(body)
        if body == b"bad":
            raise ValueError("bad")


def burst(transport: SimpleTransport[Any]) -> int | str | None:
    """Run the consumer in a burst; return the exit code."""
    HANDLED.clear()
    container = container_of("amqp://127.0.0.1:1/", ops={"enabled": False})
    container.extra_transports.override(providers.Object({ListConsumer: transport}))
    try:
        Runner(container, packages=[package_of(Letters)]).run(burst=True)
    except SystemExit as error:
        return error.code
    return 0


def test_a_transport_that_reports_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    """All is handled, and what it reports as failures is exit code 1."""
    code = burst(Bursting())

    assert (code, HANDLED) == (1, [b"a", b"bad", b"c"])
    assert capsys.readouterr().err.splitlines()[-1] == "b'bad' was refused"


def test_a_transport_that_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    """Its consumers are left out, and here nothing remains."""
    code = burst(Endless())

    assert (code, HANDLED) == (2, [])
    assert capsys.readouterr().err == (
        "nothing to run in a burst: Letters: list never runs out of work\n"
    )
