"""FR22: queues, exchanges and routing keys have any names that RabbitMQ accepts."""

import random
import unicodedata

from tests.application import running
from tests.consumers import collector
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from workerkit import Action, AMQPConsumer, AMQPMessage, Binding, Exchange, Queue, RetryPolicy

SIGNS = [*"*;=$[]~&`äß日🐇'\"\\%{}<>|!?^()\t\0", "queue.*", "a b", "#", "Ü" * 60]


def texts(number: int, longest: int) -> list[str]:
    """Texts of all kinds of characters, each of a limited number of bytes; the same each time."""
    chance = random.Random(22)
    found: list[str] = []
    while len(found) < number:
        ranges = [(1, 127), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, 0x10FFFF)]
        text = "".join(
            chr(chance.randint(*chance.choice(ranges))) for _ in range(chance.randint(1, 40))
        )
        text = "".join(sign for sign in text if unicodedata.category(sign) != "Cs")
        text = text.replace("\r", "").replace("\n", "").encode()[:longest].decode(errors="ignore")
        if text and not text.startswith("amq."):
            found.append(text)
    return found


async def test_fr22_any_name_is_declared_bound_consumed_retried_and_dead_lettered(
    url: str,
) -> None:
    """Exchange and routing key have the same names; retries and dead letters begin with them."""
    names = list(dict.fromkeys([*SIGNS, *texts(15, 120)]))
    tries: list[tuple[str, str, str, int]] = []

    class Failing(AMQPConsumer):
        queues = [Queue(name, bindings=[Binding(Exchange(name), name)]) for name in names]
        retry = RetryPolicy(delays=(0.1,))

        async def handle(self, message: AMQPMessage[str]) -> None:
            tries.append((message.queue, message.exchange, message.routing_key, message.attempt))
            raise ValueError("no")

    letters, bodies = collector(*(f"{name}.dlq" for name in names), on_invalid=Action.REJECT)
    async with running(url, Failing, letters), publishing(url) as publisher:
        for name in names:
            await publisher.publish(name.encode(), name, exchange=name)
        await eventually(lambda: set(bodies) >= {name.encode() for name in names}, 120)

    assert {body.decode() for body in bodies} == set(names)
    expected = {(name, name, name, attempt) for name in names for attempt in (1, 2)}
    assert set(tries) == expected


async def test_fr22_names_of_the_largest_length(rabbit: PrivateRabbit, url: str) -> None:
    """251 bytes, in characters of one, two and four bytes; four more for the dead letters.

    RabbitMQ 4 closes the connection when it has to truncate a text inside such a name that is not
    ASCII: workerkit refuses it, and other consumers are not affected.
    """
    names = ["x" * 251, "ü" * 125, "🐇" * 62]
    long = [name for name in names if name.isascii() or rabbit.version < (4,)]
    consumers = [
        collector(Queue(name, bindings=[Binding(Exchange(name), name)]), name=f"Consumer{number}")
        for number, name in enumerate(names)
    ]
    async with (
        running(url, *(consumer for consumer, _ in consumers), ready=False) as runner,
        publishing(url) as publisher,
    ):
        await eventually(lambda: sum(each.was_ready for each in runner.health) == len(long))
        for name in long:
            await publisher.publish(name, name, exchange=name)
        await eventually(lambda: sum(len(bodies) for _, bodies in consumers) == len(long))
        await eventually(lambda: sum(bool(each.reason) for each in runner.health) == 3 - len(long))
        reasons = [each.reason for each in runner.health if each.reason]

    assert [body.decode() for _, bodies in consumers for body in bodies] == long
    assert all("that is not ASCII: use a shorter name" in reason for reason in reasons)


async def test_fr22_a_name_that_is_reserved_is_refused_by_the_broker(url: str) -> None:
    """The broker decides, and its text is reported."""
    consumer, _ = collector("amq.orders")
    async with running(url, consumer, ready=False) as runner:
        reason = await eventually(lambda: runner.health[0].reason)

    assert "queue name 'amq.orders' contains reserved prefix 'amq.*'" in reason
