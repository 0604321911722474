"""A `FakePublisher` is a `Publisher`: to a type checker, to a container, and in what it takes."""

import inspect
from typing import assert_type

import pytest
from dependency_injector import providers

from workerkit import AMQPConsumer, Publisher, WorkerContainer
from workerkit.testing import FakePublisher, build, override


class Shipping(AMQPConsumer):
    """Takes the publisher by its type."""

    queues = ["orders"]

    def __init__(self, sender: Publisher) -> None:
        self.sender = sender

    async def handle(self, body: bytes) -> None:
        await self.sender.publish(body, "shipping", priority=3)


@pytest.mark.parametrize("name", ["publish", "publish_many", "publish_threadsafe", "open", "close"])
def test_fp15_the_signatures_are_the_same(name: str) -> None:
    """What an editor proposes for one, and what it refuses, holds for the other."""
    fake, real = (inspect.signature(getattr(each, name)) for each in (FakePublisher, Publisher))

    assert fake == real


async def test_fp15_a_fake_fits_where_a_publisher_does() -> None:
    """Type checkers accept it in the constructor, and know what it returns."""
    fake = FakePublisher()
    publisher: Publisher = fake

    await Shipping(fake).handle(b"x")

    assert_type(await publisher.publish(b"x", "q"), str)
    assert_type(await fake.publish(b"x", "q"), str)
    assert_type(await fake.publish_many([b"x"], "q", window=2), list[str])
    assert_type(fake.publish_threadsafe(b"x", "q"), str)
    assert [each.routing_key for each in fake.published] == ["shipping", "q", "q", "q", "q"]
    assert fake.published[0].options == {"priority": 3}


async def test_fp15_a_container_gives_it_by_type() -> None:
    """By its class, in a container that has it from the start, and in one that it is put into."""

    class Container(WorkerContainer):
        publisher = providers.Singleton(FakePublisher)

    container, fake = WorkerContainer(), FakePublisher()
    with override(container, publisher=fake):
        overridden = build(Shipping, container).sender

    assert overridden is fake
    assert isinstance(build(Shipping, Container()).sender, FakePublisher)
