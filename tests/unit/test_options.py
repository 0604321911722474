"""Options: framework < class < settings < environment, and the faults of invalid ones."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from workerkit import (
    Action,
    AMQPConsumer,
    Consumer,
    HTTPView,
    PeriodicTask,
    Queue,
    SSEConsumer,
)
from workerkit.amqp.consumer import AMQPOptions
from workerkit.options import (
    InvalidOption,
    Options,
    Override,
    Source,
    adapters,
    folded,
    resolve,
)


class Base(AMQPConsumer, abstract=True):
    """What the classes below share."""

    queues = ["orders"]

    async def handle(self, body: bytes) -> None: ...


def resolved(class_: type, **overrides: Override) -> AMQPOptions:
    """The options of a class."""
    return resolve(AMQPOptions, class_, class_.__name__, overrides)


def declaring(**attributes: Any) -> type:
    """A consumer with attributes."""
    return type("OrderPlaced", (Base,), attributes)


def fault(**attributes: Any) -> str:
    """Return the fault of a class with these attributes."""
    with pytest.raises(InvalidOption) as raised:
        resolved(declaring(**attributes))
    return str(raised.value)


def test_the_defaults() -> None:
    """A class that sets nothing gets what the documentation promises."""
    options = resolved(declaring())

    assert dataclasses.replace(options, sources={}) == AMQPOptions(
        name="OrderPlaced",
        concurrency=16,
        timeout=300.0,
        queues=(Queue("orders"),),
        connection="default",
        vhost=None,
        prefetch=None,
        declare=None,
        on_success=Action.ACK,
        on_exception=Action.REQUEUE,
        on_invalid=Action.DEAD_LETTER,
    )
    assert options.prefetch_count == 32


@pytest.mark.parametrize(
    ("attributes", "prefetch"),
    [
        ({"concurrency": 1}, 2),
        ({"concurrency": 10_000}, 20_000),
        ({"prefetch": 1}, 1),
        ({"prefetch": 65_535, "concurrency": 1}, 65_535),
    ],
)
def test_the_prefetch_in_force(attributes: Mapping[str, int], prefetch: int) -> None:
    """The prefetch is twice the concurrency, unless it is given."""
    assert resolved(declaring(**attributes)).prefetch_count == prefetch


def test_where_each_value_came_from() -> None:
    """The environment wins over settings, these over the class, this over the framework."""
    class_ = declaring(concurrency=2, timeout=3.0, prefetch=4)

    options = resolved(
        class_,
        timeout=Override(5.0, Source.SETTINGS, "settings.consumers"),
        prefetch=Override(6, Source.ENVIRONMENT, "WORKERKIT_CONSUMERS__ORDER_PLACED__PREFETCH"),
    )

    assert (options.concurrency, options.timeout, options.prefetch) == (2, 5.0, 6)
    assert [
        options.sources[name] for name in ("declare", "concurrency", "timeout", "prefetch")
    ] == [
        Source.DEFAULT,
        Source.CLASS,
        Source.SETTINGS,
        Source.ENVIRONMENT,
    ]


def test_an_override_saves_a_class_that_lacks_it() -> None:
    """A required option may come from the environment alone."""

    class Bare(AMQPConsumer):
        async def handle(self, body: bytes) -> None: ...

    queues = Override((Queue("q"),), Source.ENVIRONMENT, "X")

    assert resolve(AMQPOptions, Bare, "Bare", {"queues": queues}).queues == (Queue("q"),)


def test_options_are_inherited() -> None:
    """A class inherits the options of its base, and can override them."""
    parent = declaring(concurrency=2, timeout=None)
    child = type("Child", (parent,), {"concurrency": 3})

    options = resolved(child)

    assert (options.concurrency, options.timeout) == (3, None)


def test_queues_of_every_form() -> None:
    """Names and declarations may be mixed, in a list or a tuple."""
    declared = Queue("b", type="quorum")

    assert resolved(declaring(queues=["a", declared])).queues == (Queue("a"), declared)
    assert resolved(declaring(queues=("a", declared))).queues == (Queue("a"), declared)


def test_a_name_of_its_own() -> None:
    """`name` replaces the name of the class."""
    assert resolved(declaring(name="placed")).name == "placed"


@pytest.mark.parametrize(
    ("attributes", "option", "right"),
    [
        ({"queues": "orders"}, "queues", "write a list, such as ['orders']"),
        ({"queues": Queue("orders")}, "queues", "write a list"),
        ({"queues": []}, "queues", "should have at least 1 item"),
        ({"queues": ()}, "queues", "should have at least 1 item"),
        ({"queues": None}, "queues", ""),
        ({"queues": [""]}, "queues", "1 to 255"),
        ({"queues": ["x" * 256]}, "queues", "1 to 255"),
        ({"queues": [1]}, "queues", "Queue"),
        ({"queues": {"orders"}}, "queues", ""),
        ({"concurrency": 0}, "concurrency", "greater than or equal to 1"),
        ({"concurrency": -1}, "concurrency", "greater than or equal to 1"),
        ({"concurrency": 10_001}, "concurrency", "less than or equal to 10000"),
        ({"concurrency": 1.5}, "concurrency", "integer"),
        ({"concurrency": "many"}, "concurrency", "integer"),
        ({"concurrency": None}, "concurrency", "integer"),
        ({"timeout": 0}, "timeout", "greater than 0"),
        ({"timeout": -1.0}, "timeout", "greater than 0"),
        ({"timeout": float("inf")}, "timeout", "finite"),
        ({"timeout": float("nan")}, "timeout", ""),
        ({"timeout": "soon"}, "timeout", "number"),
        ({"prefetch": 0}, "prefetch", "greater than or equal to 1"),
        ({"prefetch": 65_536}, "prefetch", "less than or equal to 65535"),
        ({"connection": None}, "connection", "string"),
        ({"vhost": 3}, "vhost", "string"),
        ({"declare": "sometimes"}, "declare", "'missing', 'always' or 'never'"),
        ({"on_success": "keep"}, "on_success", "'ack'"),
        ({"on_exception": None}, "on_exception", "'ack'"),
        ({"on_invalid": 1}, "on_invalid", "'ack'"),
    ],
)
def test_wrong_options(attributes: dict[str, Any], option: str, right: str) -> None:
    """The fault of an attribute contains its value and what would be right."""
    text = fault(**attributes)

    assert text.startswith(f"option {option!r} is {attributes[option]!r}: ")
    assert right in text
    assert "\n" not in text


def test_queues_that_are_missing() -> None:
    """A class without `queues` is a fault that names them, and no `TypeError`."""

    class Bare(AMQPConsumer):
        async def handle(self, body: bytes) -> None: ...

    with pytest.raises(InvalidOption, match="queues"):
        resolved(Bare)


def test_actions_by_their_words() -> None:
    """An action may be written as its word."""
    options = resolved(declaring(on_success="reject", on_exception=Action.DEAD_LETTER))

    assert (options.on_success, options.on_exception) == (Action.REJECT, Action.DEAD_LETTER)


@pytest.mark.parametrize("name", ["OrderPlaced", "ORDER_PLACED", "order_placed", "orderplaced"])
def test_names_compare_folded(name: str) -> None:
    """Case and underscores of a consumer's name do not matter."""
    assert folded(name) == folded("OrderPlaced")


def test_options_cannot_be_changed() -> None:
    """Options are frozen, and so are their sources."""
    options = resolve(Options, object, "x", {})

    with pytest.raises(dataclasses.FrozenInstanceError):
        options.concurrency = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        options.sources["concurrency"] = Source.CLASS  # type: ignore[index]


@pytest.mark.parametrize(
    ("attribute", "meant"),
    [("concurency", "concurrency"), ("queue", "queues"), ("time_out", "timeout")],
)
def test_an_attribute_that_is_misspelt(attribute: str, meant: str) -> None:
    """An attribute with a name similar to an option is a fault."""
    queues = {} if meant == "queues" else {"queues": ["q"]}
    declared = type("Each", (AMQPConsumer,), {**queues, attribute: 3})

    with pytest.raises(InvalidOption, match=f"no option '{attribute}'; did you mean '{meant}'"):
        resolve(AMQPOptions, declared, "Each", {})


def test_all_faults_of_a_class() -> None:
    """Every invalid, misspelt and missing option is reported, not only the first one."""
    declared = type(
        "Each", (AMQPConsumer,), {"concurrency": 0, "timeout": -1, "prefech": 3, "queue": ["q"]}
    )

    with pytest.raises(InvalidOption) as raised:
        resolve(AMQPOptions, declared, "Each", {})

    assert raised.value.faults == (
        "option 'concurrency' is 0: should be greater than or equal to 1",
        "option 'timeout' is -1: should be greater than 0",
        "there is no option 'prefech'; did you mean 'prefetch'?",
        "there is no option 'queue'; did you mean 'queues'?",
    )


@pytest.mark.parametrize("kind", [AMQPConsumer, SSEConsumer, HTTPView, PeriodicTask])
def test_every_option_is_an_attribute_that_type_checkers_know(kind: type[Consumer]) -> None:
    """A class that a user derives may set each of them, and an editor proposes it."""
    known = {name for base in kind.__mro__ for name in vars(base).get("__annotations__", {})}

    assert set(adapters(kind.options_type())) - known == set()


PAGES = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        (AMQPConsumer, "consumers.md"),
        (SSEConsumer, "sse.md"),
        (HTTPView, "http.md"),
        (PeriodicTask, "periodic.md"),
    ],
)
def test_every_option_is_documented(kind: type[Consumer], page: str) -> None:
    """On the page of its kind, in a table or in an example."""
    text = (PAGES / page).read_text() + (PAGES / "consumers.md").read_text()

    missing = [
        each
        for each in adapters(kind.options_type())
        if f"`{each}`" not in text and f"    {each} = " not in text
    ]
    assert missing == []
