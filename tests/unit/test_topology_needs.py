"""What consumers need at the broker, as permissions and as definitions."""

import re

import pytest

from workerkit import AMQPConsumer, Binding, Exchange, Queue, RetryPolicy
from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.definitions import definitions, without_type
from workerkit.amqp.needs import Needs, needed_queues
from workerkit.amqp.permissions import literal, permissions, undeclared_at_run_time
from workerkit.cli.topology.grants import quoted
from workerkit.options import resolve


def needs(*queues: Queue | str, **options: object) -> Needs:
    """Return the needs of one consumer."""

    async def handle(self: AMQPConsumer, body: bytes) -> None: ...

    attributes = {"queues": list(queues), "handle": handle, **options}
    class_ = type("Orders", (AMQPConsumer,), attributes)
    resolved = resolve(AMQPOptions, class_, "Orders", {})
    assert isinstance(resolved, AMQPOptions)
    found = Needs("default", "/")
    for queue in resolved.queues:
        found.add(needed_queues(resolved, queue, queue), "Orders", resolved.declare)
    return found


def names(found: Needs) -> list[str]:
    """Return the names of the queues."""
    return [each.queue.name for each in found.queues]


def test_the_queues_of_a_consumer() -> None:
    """A stream has no retries, a queue per process has no copies at all."""
    retry = RetryPolicy(delays=(0, 5, 5, 60))

    assert names(needs("q", retry=retry)) == ["q", "q.retry.5s", "q.retry.60s", "q.dlq"]
    assert names(needs(Queue("q", "stream"), retry=retry)) == ["q", "q.dlq"]
    assert names(needs(Queue("q", per_process=True), retry=retry)) == ["q"]
    assert names(needs("q", on_invalid="reject")) == ["q"]


def test_uses_of_one_queue_are_merged() -> None:
    """A queue is listed once, with what is declared about it and the bindings of both classes."""
    found = needs("q", on_invalid="reject")
    bindings = [Binding("a", "1"), Binding("a", "2"), Binding(Exchange("a"), "1")]
    other = needs(Queue("q", "quorum", bindings=bindings), on_invalid="reject")
    for each in other.uses:
        found.add([each.needed], each.consumer, None)

    assert [each.queue.type for each in found.queues] == ["quorum"]
    assert [binding.routing_key for _, binding in found.bindings] == ["1", "2"]
    assert found.exchanges == {"a": Exchange("a")}


def test_limits_by_version() -> None:
    """A limit of -1 is exported for RabbitMQ 4, and only for a queue that is surely quorum."""

    def limits(queue: Queue, version: tuple[int, ...]) -> list[object]:
        exported = definitions([needs(queue)], version)["queues"]
        return [each["arguments"].get("x-delivery-limit") for each in exported]

    assert limits(Queue("q", "quorum"), (4, 3)) == [None, -1]
    assert limits(Queue("q", "quorum"), (3, 10)) == [None, None]
    assert limits(Queue("q"), (4, 3)) == [None, None]
    assert without_type([needs(Queue("q"))]) == ["q", "q.dlq"]


def test_what_is_exported_once() -> None:
    """Two connections to one virtual host, exchanges that each host has, queues of processes."""
    queues = (
        Queue("q", bindings=[Binding(Exchange("amq.topic", "topic"), "k"), Binding("named", "k")]),
        Queue("own", per_process=True, bindings=[Binding(Exchange("changes", "fanout"))]),
    )

    found = definitions([needs(*queues), needs(*queues)], (4, 3), vhosts=True)

    assert found["vhosts"] == [{"name": "/"}]
    assert [each["name"] for each in found["exchanges"]] == ["changes"]
    assert [each["name"] for each in found["queues"]] == ["q", "q.dlq"]
    assert [each["source"] for each in found["bindings"]] == ["amq.topic", "named"]


def test_dead_letter_and_alternate_exchanges() -> None:
    """To declare them needs read on the queue or exchange, and write on where they lead."""
    exchange = Exchange("e", alternate="spare")
    queue = Queue("q", dead_letter_exchange="dead", bindings=[Binding(exchange, "k")])

    granted = permissions(needs(queue, on_invalid="reject"), applied=False, version=(4, 3))

    assert granted.patterns() == ("^(e|q)$", "^(dead|q|spare)$", "^(e|q)$")


def test_exchanges_that_are_published_to() -> None:
    """Each needs write; one that a class declares is created, and one that is only named is not."""
    found = needs("q", on_invalid="reject")
    found.targets += ["named", Exchange("booked", "fanout"), "booked"]

    granted = permissions(found, applied=False, version=(4, 3))
    exported = definitions([found], (4, 3))["exchanges"]

    assert granted.patterns() == ("^(booked|q)$", "^(booked|named)$", "^q$")
    assert permissions(found, applied=True, version=(4, 3)).patterns()[:2] == (
        "^$",
        "^(booked|named)$",
    )
    assert [each["name"] for each in exported] == ["booked"]


def test_a_passive_declaration_needs_a_permission_of_rabbitmq_4() -> None:
    """In 4.0 it needs none; what is granted already is enough."""
    found = needs("q")

    assert permissions(found, applied=True, version=(4, 3)).write == {r"amq\.default", r"q\.dlq"}
    assert permissions(found, applied=True, version=(4, 0)).write == {r"amq\.default"}
    assert permissions(found, applied=True, version=(4, 3)).patterns()[0] == "^$"


@pytest.mark.parametrize(
    ("declare", "granted"), [("always", "^(q|q\\.dlq)$"), ("missing", "^$"), (None, "^$")]
)
def test_classes_that_declare_always(declare: str | None, granted: str) -> None:
    """The option of a class is stronger than that of its connection."""
    found = permissions(needs("q", declare=declare), applied=True, version=(4, 3))

    assert found.patterns()[0] == granted


def test_queues_of_run_time() -> None:
    """The broker deletes them, so a worker declares them, if its class says so."""
    queue = Queue("q", exclusive=True, durable=False)

    missing = needs(queue, declare="missing", on_invalid="reject")
    assert permissions(missing, applied=True, version=(4, 3)).configure == {"q"}
    assert undeclared_at_run_time(missing) == []
    assert [each.queue for each in undeclared_at_run_time(needs(queue))] == [queue]
    assert undeclared_at_run_time(needs(Queue("q", per_process=True))) == []


@pytest.mark.parametrize(
    "name",
    [
        "a.b",
        "a|b",
        "(a)[b]{2}^$*+?",
        "a\\b",
        'a\'b "c" # x',
        "é €",
        "\t\x1b\u202e\U0001f600",
        "a-b",
    ],
)
def test_a_literal_matches_only_its_name(name: str) -> None:
    """It is printable, and matches the bytes of the name."""
    pattern = literal(name)

    assert pattern.isprintable()
    assert re.fullmatch(pattern.encode(), name.encode())
    assert not re.fullmatch(pattern.encode(), name.encode()[:-1])


def test_words_for_a_shell() -> None:
    """Words are quoted where that is needed, and stay on one line."""
    assert quoted("orders") == "orders"
    assert quoted("^a$") == "'^a$'"
    assert quoted("a\n'é\\") == "$'a\\012\\'é\\\\'"
