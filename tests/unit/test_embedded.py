"""The pure parts of the embedded broker: no socket, and a clock that stands still."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerkit.embedded import arguments, properties, table
from workerkit.embedded.arguments import QueueArguments
from workerkit.embedded.behaviour import behaviour_of
from workerkit.embedded.clock import Clock
from workerkit.embedded.counting import Settlement
from workerkit.embedded.errors import Refusal
from workerkit.embedded.exchange import headers_match, topic_matches
from workerkit.embedded.memory import Memory
from workerkit.embedded.message import Message
from workerkit.embedded.order import Backlog
from workerkit.embedded.properties import Properties
from workerkit.embedded.queue import Consumer, Copy, Queue
from workerkit.embedded.table import Field, MalformedTable, Table, text
from workerkit.embedded.x_death import dead_letter, is_cycle


def fields(**values: Any) -> Table:
    """Return a table, as a client would send it."""
    kinds = {str: "longstr", int: "signedint", bool: "bool", float: "double", type(None): "void"}
    return {
        name.replace("_", "-"): Field(kinds[type(value)], value) for name, value in values.items()
    }


def message(body: bytes = b"", **values: Any) -> Message:
    """Return a message to the queue `q`, with properties."""
    return Message("", "q", properties.write(Properties(**values)), body)


class Shop:
    """A queue with all that it needs, and what happened to it."""

    def __init__(self, table: Table | None = None, version: str = "3.10") -> None:
        self.clock = Clock()
        self.memory = Memory(10**9, lambda on: None)
        self.dead: list[tuple[bytes, str]] = []
        self.delivered: list[tuple[str, bytes]] = []
        self.copies: list[Copy] = []
        self.gone = False
        self.room = True
        self.queue = Queue(
            "q",
            "/",
            QueueArguments.of(table or {}, behaviour_of(version)),
            self.clock,
            self.memory,
            durable=False,
            auto_delete=False,
            owner=None,
            dead_letter=lambda copy, reason: self.dead.append((copy.message.body, reason)),
            unused=lambda queue: setattr(self, "gone", True),
        )

    def publish(self, *bodies: bytes, **values: Any) -> list[bool]:
        """Publish messages; whether each was taken."""
        return [self.queue.publish(message(body, **values)) for body in bodies]

    def consume(self, tag: str = "c", prefetch: int = 0, priority: int = 0) -> Consumer:
        """Add a consumer that keeps what it gets."""
        consumer = Consumer(
            self,
            self.queue,
            tag,
            acknowledges=True,
            exclusive=False,
            prefetch=prefetch,
            priority=priority,
        )
        self.queue.subscribe(consumer)
        self.queue.pump()
        return consumer

    def has_room(self) -> bool:
        return self.room

    def deliver(self, consumer: Consumer, copy: Copy) -> None:
        self.delivered.append((consumer.tag, copy.message.body))
        self.copies.append(copy)

    def queue_deleted(self, consumer: Consumer) -> None:
        self.delivered.append((consumer.tag, b"cancelled"))

    def waiting(self) -> list[bytes]:
        return [copy.message.body for copy in self.queue.waiting]

    def take(self) -> list[bytes]:
        """Return everything that waits, one after the other."""
        taken = []
        while (copy := self.queue.get()) is not None:
            taken.append(copy.message.body)
        return taken


# Matching


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("#", "", True),
        ("#", "a.b", True),
        ("*", "", False),
        ("", "", True),
        ("", "a", False),
        ("#.b", "a.a.b", True),
        ("#.b", "b", True),
        ("#.b", "b.a", False),
        ("a.#.b.#.c", "a.x.b.y.b.z.c", True),
        ("*.#", "a", True),
        ("#.*", "", False),
        ("a.*.#.c", "a.b.c", True),
        ("a.*.#.c", "a.c", False),
        ("#.#.#", "a", True),
    ],
)
def test_topics(pattern: str, key: str, expected: bool) -> None:
    """`*` is one word, `#` any number of them."""
    words = [each.split(".") if each else [] for each in (pattern, key)]

    assert topic_matches(*words) is expected


def test_a_hostile_pattern_is_cheap() -> None:
    """Many `#` in a row do not make matching explode."""
    assert not topic_matches(["#", "a"] * 100 + ["b"], ["a"] * 1000)


@pytest.mark.parametrize(
    ("wanted", "headers", "expected"),
    [
        (fields(), fields(a=1), True),
        (fields(a=1), fields(a=1, b=2), True),
        (fields(a=1, b=2), fields(a=1), False),
        (fields(a=1, b=2, x_match="any"), fields(a=1), True),
        (fields(a=1, x_match="any"), fields(a=2), False),
        (fields(x_match="any"), fields(a=2), False),
        (fields(a=None), fields(a="anything"), True),
        (fields(a=None), fields(b=1), False),
        (fields(a=1), fields(a=1.0), True),
        (fields(a=1), fields(a=True), False),
        (fields(a=1), fields(a="1"), False),
        (fields(x_a=1), fields(), True),
        (fields(x_a=1, x_match="all-with-x"), fields(), False),
        (fields(x_a=1, x_match="any-with-x"), fields(**{"x-a": 1}), True),
    ],
)
def test_headers(wanted: Table, headers: Table, expected: bool) -> None:
    """All or any of a binding's arguments, compared by kind and value."""
    assert headers_match(wanted, headers) is expected


# Tables and properties

_leaves = (
    st.builds(Field, st.just("longstr"), st.text())
    | st.builds(Field, st.just("binary"), st.binary())
    | st.builds(Field, st.just("bool"), st.booleans())
    | st.builds(Field, st.just("signedint"), st.integers(-(2**31), 2**31 - 1))
    | st.builds(Field, st.just("long"), st.integers(-(2**63), 2**63 - 1))
    | st.builds(Field, st.just("byte"), st.integers(-128, 127))
    | st.builds(Field, st.just("double"), st.floats(allow_nan=False))
    | st.builds(Field, st.just("timestamp"), st.integers(0, 2**64 - 1))
    | st.just(Field("void", None))
    | st.just(Field("decimal", Decimal("-12.50")))
)
_names = st.text(max_size=20)
_values = st.recursive(
    _leaves,
    lambda inner: (
        st.builds(Field, st.just("array"), st.lists(inner, max_size=3))
        | st.builds(Field, st.just("table"), st.dictionaries(_names, inner, max_size=3))
    ),
    max_leaves=10,
)


@given(st.dictionaries(_names, _values, max_size=5))
def test_a_table_survives_the_wire(before: Table) -> None:
    """An encoded table is decoded with its types."""
    written = table.write(before)

    assert table.read(written) == (before, len(written))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_malformed(raw: bytes) -> None:
    """Decoding raises only one error, and a decoded table is encoded byte for byte."""
    try:
        read, end = table.read(raw)
    except MalformedTable:
        return

    again, _ = table.read(table.write(read))
    assert table.write(again) == table.write(read)
    assert end <= len(raw)


@given(st.binary(min_size=2, max_size=100))
def test_properties_that_pass_the_check_can_be_read(raw: bytes) -> None:
    """Properties that pass the check can be decoded."""
    try:
        properties.checked(raw)
    except MalformedTable:
        return

    assert properties.write(properties.read(raw))[:2] == raw[:2]


# Arguments


@pytest.mark.parametrize(
    ("declared", "current", "words"),
    [
        (
            fields(x_max_length=5),
            fields(),
            "received the value '5' of type 'signedint' but current is none",
        ),
        (
            fields(),
            fields(x_max_length=5),
            "received none but current is the value '5' of type 'signedint'",
        ),
        (fields(x_max_length=5), fields(x_max_length=6), "received '5' but current is '6'"),
        (
            fields(x_single_active_consumer=True),
            fields(),
            "received the value 'true' of type 'bool' but current is none",
        ),
    ],
)
def test_inequivalent_arguments(declared: Table, current: Table, words: str) -> None:
    """Another declaration of a queue is refused with RabbitMQ's text."""
    with pytest.raises(Refusal, match="PRECONDITION_FAILED - inequivalent arg 'x-") as caught:
        arguments.compare(declared, current, "queue 'q' in vhost '/'")

    assert words in caught.value.text
    assert (caught.value.code, caught.value.closes_connection) == (406, False)


@pytest.mark.parametrize(
    ("declared", "current"),
    [
        (fields(x_max_length=5), {"x-max-length": Field("byte", 5)}),
        (fields(x_queue_type="classic"), {}),
        (fields(mine="a"), fields(mine="b")),
    ],
)
def test_equivalent_arguments(declared: Table, current: Table) -> None:
    """The size of a number, a default spelt out, and arguments of others make no difference."""
    arguments.compare(declared, current, "queue 'q' in vhost '/'")


# Deaths


def test_a_death_is_recorded() -> None:
    """The first death has separate headers, and the expiration is removed."""
    dead = dead_letter(message(b"x", expiration="20"), "q", "expired", 99, "dlx", "key")

    read = dead.read_properties()
    assert (dead.exchange, dead.routing_key, read.expiration) == ("dlx", "key", None)
    assert table.plain(read.headers or {})["x-first-death-reason"] == "expired"
    death = (read.headers or {})["x-death"].value[0].value
    assert [death[name].value for name in ("count", "queue", "time")] == [1, "q", 99]
    assert death["original-expiration"].value == "20"


def test_the_same_death_again_is_counted_and_comes_first() -> None:
    """Two entries for two queues, each with a count."""
    dead = message()
    for queue in ("a", "b", "a"):
        dead = dead_letter(dead, queue, "rejected", 0, "", "q")

    deaths = [entry.value for entry in dead.headers()["x-death"].value]
    assert [(death["queue"].value, death["count"].value) for death in deaths] == [
        ("a", 2),
        ("b", 1),
    ]


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [(["expired"], True), (["rejected"], False), (["expired", "rejected"], False), ([], False)],
)
def test_cycles(reasons: Iterable[str], expected: bool) -> None:
    """A message that returns to its queue without a rejection is in a cycle."""
    dead = message()
    for number, reason in enumerate(reasons):
        dead = dead_letter(dead, f"q{number}", reason, 0, "", "q")

    assert is_cycle("q0", dead.headers()) is expected


def test_rabbitmq_4_ignores_deaths_that_clients_write() -> None:
    """An `x-death` of a client is ignored, and there is a last death."""
    foreign = message(headers={"x-death": Field("array", [Field("table", {"queue": text("q")})])})

    dead = dead_letter(foreign, "q", "rejected", 0, "", None, discards_client_deaths=True)

    assert len(dead.headers()["x-death"].value) == 1
    assert table.plain(dead.headers())["x-last-death-reason"] == "rejected"


# Queues


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.randoms())
def test_a_requeued_item_keeps_its_position(priorities: list[int], random: Any) -> None:
    """Items leave by priority and position, in any order of requeueing."""
    backlog: Backlog[Copy] = Backlog()
    items = [Copy(message(), Shop().queue, position) for position in range(len(priorities))]
    for item, priority in zip(items, priorities, strict=True):
        item.priority = priority
        backlog.add(item)
    taken = [backlog.pop() for _ in range(random.randint(0, len(items)))]
    random.shuffle(taken)
    for item in taken:
        backlog.restore(item)

    order = sorted(items, key=lambda item: (-item.priority, item.position))
    assert list(backlog) == order
    assert [backlog.pop() for _ in items] == order


@pytest.mark.parametrize("version", ["3.10", "4.0", "4.3"])
@pytest.mark.parametrize("table", [{}, fields(x_delivery_limit=3)])
@given(st.lists(st.none() | st.integers(0, 9), max_size=12), st.randoms())
def test_fr24_iteration_shows_the_order_of_deliveries(
    version: str, table: Table, priorities: list[int | None], random: Any
) -> None:
    """What waits in a quorum queue is listed in the order in which it will be delivered."""
    shop = Shop(fields(x_queue_type="quorum") | table, version)
    for place, priority in enumerate(priorities):
        shop.publish(str(place).encode(), priority=priority)
    held = [shop.queue.get() for _ in range(random.randint(0, len(priorities)))]
    random.shuffle(held)
    for copy in held:
        assert copy is not None
        shop.queue.requeue([copy], Settlement.REQUEUE)

    shown = [copy.message.body for copy in shop.queue.waiting]
    assert shown == shop.take()
    assert sorted(shown) == sorted(str(place).encode() for place in range(len(priorities)))


def test_priorities_are_capped() -> None:
    """A priority above the highest counts as the highest; none is the lowest."""
    shop = Shop(fields(x_max_priority=5))
    for priority in (1, 9, 3, 5, None):
        shop.publish(str(priority).encode(), priority=priority)

    assert shop.take() == [b"9", b"5", b"3", b"1", b"None"]


def test_messages_expire_by_the_clock() -> None:
    """Advancing the clock expires what is due, and nothing else."""
    shop = Shop(fields(x_message_ttl=1000))
    shop.publish(b"a")
    shop.clock.advance(0.5)
    shop.publish(b"b")

    shop.clock.advance(0.6)

    assert (shop.dead, shop.waiting()) == ([(b"a", "expired")], [b"b"])


def test_an_expiration_counts_at_the_head_only() -> None:
    """An expired message stays after one that is not expired."""
    shop = Shop()
    shop.publish(b"a")
    shop.publish(b"b", expiration="10")
    shop.clock.advance(1)
    assert shop.waiting() == [b"a", b"b"]

    assert shop.take() == [b"a"]
    assert shop.dead == [(b"b", "expired")]


def test_an_idle_queue_expires() -> None:
    """Use postpones the expiry of a queue; consumers prevent it."""
    shop = Shop(fields(x_expires=1000))
    shop.clock.advance(0.9)
    shop.queue.get()
    shop.clock.advance(0.9)
    consumer = shop.consume()
    shop.clock.advance(5)
    assert not shop.gone

    shop.queue.unsubscribe(consumer)
    shop.clock.advance(1)
    assert shop.gone


@pytest.mark.parametrize(
    ("overflow", "taken", "waiting", "dead"),
    [
        ("drop-head", [True] * 3, [b"b", b"c"], [(b"a", "maxlen")]),
        ("reject-publish", [True, True, False], [b"a", b"b"], []),
        ("reject-publish-dlx", [True, True, False], [b"a", b"b"], [(b"c", "maxlen")]),
    ],
)
def test_a_full_queue(
    overflow: str, taken: list[bool], waiting: list[bytes], dead: list[tuple[bytes, str]]
) -> None:
    """Drops its head, or refuses, or refuses and dead-letters."""
    shop = Shop(fields(x_max_length=2, x_overflow=overflow))

    assert shop.publish(b"a", b"b", b"c") == taken
    assert (shop.waiting(), shop.dead) == (waiting, dead)


def test_bytes_are_limited() -> None:
    """The bodies count, not their number."""
    shop = Shop(fields(x_max_length_bytes=5))
    shop.publish(b"123", b"45", b"6")

    assert shop.waiting() == [b"45", b"6"]


def test_turns_and_priorities_of_consumers() -> None:
    """Consumers of one priority take turns; a lower one gets what the others cannot take."""
    shop = Shop()
    for tag, priority in (("low", 0), ("a", 5), ("b", 5)):
        shop.consume(tag, prefetch=2, priority=priority)
    shop.publish(*(b"%d" % number for number in range(7)))

    assert [tag for tag, _ in shop.delivered] == ["a", "b", "a", "b", "low", "low"]
    assert shop.waiting() == [b"6"]


def test_nothing_is_delivered_without_room() -> None:
    """A client without room gets no deliveries."""
    shop = Shop()
    shop.consume()
    shop.room = False
    shop.publish(b"a")
    assert shop.delivered == []

    shop.room = True
    shop.queue.pump()
    assert shop.delivered == [("c", b"a")]


def test_a_single_active_consumer() -> None:
    """One consumer gets everything until it goes; then the next one does."""
    shop = Shop(fields(x_single_active_consumer=True))
    first, _ = shop.consume("a"), shop.consume("b")
    shop.publish(b"1", b"2")
    shop.queue.unsubscribe(first)
    shop.publish(b"3")

    assert shop.delivered == [("a", b"1"), ("a", b"2"), ("b", b"3")]


@pytest.mark.parametrize(
    ("table", "version", "limit"),
    [(fields(x_delivery_limit=2), "3.10", 2), ({}, "4.0", 20), ({}, "4.3", 20)],
)
def test_the_delivery_limit_of_a_quorum_queue(table: Table, version: str, limit: int) -> None:
    """A message that is requeued too often is dead-lettered."""
    shop = Shop(fields(x_queue_type="quorum") | table, version)
    shop.publish(b"x")
    returns = 0
    while (copy := shop.queue.get()) is not None:
        shop.queue.requeue([copy], Settlement.RETURN)
        returns += 1

    assert (returns, shop.dead) == (limit + 1, [(b"x", "delivery_limit")])


def test_memory_is_counted_until_the_last_byte_is_free() -> None:
    """Memory is released for every end of a message."""
    shop = Shop(fields(x_max_length=3))
    shop.publish(b"a", b"b", b"c", b"d")
    copy = shop.queue.get()
    assert copy is not None
    shop.queue.reject(copy)
    shop.queue.get()
    assert shop.memory.held > 0

    shop.queue.delete()
    shop.memory.release(message(b"c").size)
    assert shop.memory.held == 0
