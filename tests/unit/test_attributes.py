"""Class attributes and methods that would be ignored without a word are faults at start."""

import keyword
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.application import container_of, package_of
from workerkit import (
    Action,
    AMQPConsumer,
    HTTPView,
    PeriodicTask,
    Queue,
    RetryPolicy,
    Runner,
    SSEConsumer,
    StartError,
)
from workerkit.attributes import FOREIGN, FOREIGN_HOOKS
from workerkit.options import adapters


def checked(*consumers: Any, **settings: Any) -> list[str]:
    """The faults of an application of these classes."""
    container = container_of("amqp://h/", **settings)
    try:
        Runner(container, packages=[package_of(*consumers)]).assemble()
    except StartError as error:
        return list(error.faults)
    return []


async def one(self: Any, body: bytes) -> None: ...
async def many(self: Any, bodies: list[bytes]) -> None: ...
async def none(self: Any) -> None: ...


KINDS: list[tuple[Any, dict[str, Any]]] = [
    (AMQPConsumer, {"queues": ["q"], "handle": one}),
    (SSEConsumer, {"url": "https://h/", "handle": one}),
    (HTTPView, {"routes": ["/"], "handle": none}),
    (PeriodicTask, {"every": 1.0, "handle": none}),
]


def declaring(kind: Any, **attributes: Any) -> Any:
    """A consumer of that kind, with attributes."""
    return type("Each", (kind,), {**dict(KINDS)[kind], **attributes})


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [
        (AMQPConsumer, "max_retries", "retry"),
        (AMQPConsumer, "prefetch_count", "prefetch"),
        (AMQPConsumer, "retries", "retry"),
        (AMQPConsumer, "routes", "queues"),
        (AMQPConsumer, "batch_sise", "batch_size"),
        (SSEConsumer, "autoretry_for", "retry"),
        (SSEConsumer, "queues", "routes"),
        (SSEConsumer, "event_types", "events"),
        (HTTPView, "path", "routes"),
        (HTTPView, "http_method_names", "methods"),
        (PeriodicTask, "interval", "every"),
        (PeriodicTask, "schedule", "cron"),
        (PeriodicTask, "time_zone", "timezone"),
    ],
)
def test_fp7_an_attribute_of_another_framework_is_a_fault(kind: Any, name: str, meant: str) -> None:
    """It is named with the option that has its meaning here."""
    [fault] = checked(declaring(kind, **{name: 3}))

    assert fault.endswith(f"Each: there is no option {name!r}; did you mean {meant!r}?")


@pytest.mark.parametrize(
    ("kind", "name", "others"),
    [
        (AMQPConsumer, "every", "PeriodicTask"),
        (AMQPConsumer, "methods", "HTTPView"),
        (SSEConsumer, "declare", "AMQPConsumer"),
        (HTTPView, "retry", "AMQPConsumer, SSEConsumer, PeriodicTask"),
        (HTTPView, "batch_size", "AMQPConsumer, SSEConsumer"),
        (PeriodicTask, "on_success", "AMQPConsumer, SSEConsumer"),
    ],
)
def test_fp7_an_option_of_another_kind_is_a_fault(kind: Any, name: str, others: str) -> None:
    """It is named with the kinds that have it."""
    [fault] = checked(declaring(kind, **{name: 3}))

    assert fault.endswith(f": {name!r} is an option of {others}, not of {kind.__name__}")


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [
        (AMQPConsumer, "on_startup", "on_start"),
        (AMQPConsumer, "on_shutdown", "on_stop"),
        (SSEConsumer, "on_disconnect", "on_connection_error"),
        (SSEConsumer, "header", "headers"),
        (HTTPView, "on_strat", "on_start"),
        (PeriodicTask, "on_stopp", "on_stop"),
    ],
)
def test_fp7_a_misspelt_hook_is_a_fault(kind: Any, name: str, meant: str) -> None:
    """A method that nothing calls is named with the hook that it looks like."""
    [fault] = checked(declaring(kind, **{name: none}))

    assert fault.endswith(f": nothing calls {name!r}; did you mean {meant!r}?")


@pytest.mark.parametrize("name", ["handler", "handel", "handle_message", "on_message"])
def test_fp7_a_misspelt_handle_is_one_fault(name: str) -> None:
    """The fault of the missing `handle` names what is there."""
    consumer = type("Each", (AMQPConsumer,), {"queues": ["q"], name: one})

    [fault] = checked(consumer)

    assert fault.endswith(f": needs a method `handle`; it has {name!r}")


def test_fp7_every_foreign_name_means_something_of_ours() -> None:
    """The tables name only options and hooks that exist, and no hook that is an option."""
    options = {each for kind, _ in KINDS for each in adapters(kind.options_type())}
    hooks = {"handle", "on_start", "on_stop", "on_connection_error"}

    assert {each for every in FOREIGN.values() for each in every} <= {*options, "interceptors"}
    assert set(FOREIGN_HOOKS.values()) <= hooks
    assert not set(FOREIGN_HOOKS) & (options | hooks)


def test_fp7_an_attribute_that_the_class_reads_is_its_own() -> None:
    """However it reads it: in its body, in a method, by getattr, or in a base."""

    class Base(AMQPConsumer, abstract=True):
        def limit(self) -> object:
            return getattr(self, "max_retries", 0)

    class Own(Base):
        max_retries = 3
        routes = ("eu", "us")
        exchange = "orders"
        path = "/tmp"
        interval = 4.0
        url: ClassVar[str] = "https://h/"
        queues = [f"orders.{each}" for each in routes]
        retry = RetryPolicy((5,) * int(interval))

        async def handle(self, body: bytes) -> None:
            self.on_startup()
            print(self.path, type(self).exchange, Own.url)

        def on_startup(self) -> None: ...

    assert checked(Own) == []


class Timed(AMQPConsumer, abstract=True):
    """A base with attributes that one of its classes reads, and a function of this module."""

    attempts = 3
    interval = 2.0
    backoff: ClassVar[float] = 0.5
    retry_policy = "gentle"
    topic = "orders"


def topic_of(consumer: Any) -> object:
    """Somebody else who reads."""
    return consumer.topic


def test_fp7_an_attribute_that_others_read_is_no_fault() -> None:
    """Another class of the same base, a function beside it, whatever the object is called there."""

    class Reading(Timed):
        queues = ["a"]

        async def handle(self, body: bytes) -> None:
            kind = type(self)
            print(self.attempts, self.__class__.interval, kind.backoff)
            match self:
                case Timed(retry_policy=policy):
                    print(policy)

    class Plain(Timed):
        queues = ["b"]

        async def handle(self, body: bytes) -> None: ...

    assert checked(Reading, Plain) == []
    assert checked(Plain) == []


def test_fp7_ordinary_attributes_are_legal() -> None:
    """Constants, private names, classes, methods, properties, other words."""

    class Own(AMQPConsumer):
        """A docstring."""

        queues = ["q"]
        MAX_RETRIES = 3
        _retries = 3
        template = "a"
        color: str = "red"
        currency: ClassVar[str] = "EUR"

        class Meta:
            """Nested."""

        async def handle(self, body: bytes) -> None: ...

        @property
        def retries(self) -> int:
            return 3

        async def on_order(self) -> None: ...

        @staticmethod
        def process(body: bytes) -> None: ...

    assert checked(Own) == []


def test_fp7_the_fields_of_a_dataclass_are_its_constructor() -> None:
    """A field with a default is an argument, no option."""

    @dataclass
    class Own(AMQPConsumer):
        queues: ClassVar[list[str]] = ["q"]
        retries: int = 3

        async def handle(self, body: bytes) -> None: ...

    assert checked(Own) == []


def test_fp7_a_misspelt_attribute_of_a_base_is_told_once() -> None:
    """By the place of the base, however many classes have it."""

    class Base(AMQPConsumer, abstract=True):
        max_retries = 3
        every = 5.0
        handle = one

        async def on_startup(self) -> None: ...

    first, second = (type(name, (Base,), {"queues": [name]}) for name in ("A", "B"))

    found = checked(first, second)

    assert all(".Base (test_attributes.py:" in fault for fault in found)
    assert [fault.partition("): ")[2] for fault in found] == [
        "nothing calls 'on_startup'; did you mean 'on_start'?",
        "there is no option 'max_retries'; did you mean 'retry'?",
        "'every' is an option of PeriodicTask, not of AMQPConsumer",
    ]


def test_fp14_it_is_told_together_with_other_faults() -> None:
    """A constructor without arguments does not hide it; an unknown signature is no fault."""

    class Each(AMQPConsumer):
        queues = ["q"]
        batch_size = 3

        def __init__(self, missing: object) -> None: ...

        async def handle(self, body: bytes) -> None: ...

    class Wrong(AMQPConsumer):
        queues = ["w"]
        batch_size = 3

        async def handle(self, bodies) -> None: ...  # type: ignore[no-untyped-def]

    found = checked(Each, Wrong)

    assert [fault.partition("'")[2].partition("'")[0] for fault in found] == [
        "missing",
        "batch_size",
        "bodies",
    ]


def test_fp14_a_mixin_may_have_options_of_several_kinds() -> None:
    """What one of the kinds lacks is no fault there, since the other one has it."""

    class Shared:
        prefetch = 5
        retry = RetryPolicy((5,))
        max_body = 100

    queue = type("A", (Shared, AMQPConsumer), dict(KINDS)[AMQPConsumer])
    view = type("B", (Shared, HTTPView), dict(KINDS)[HTTPView])

    assert checked(queue, view) == []


@given(st.from_regex(r"[a-z][a-z_]{0,20}", fullmatch=True))
def test_fp7_a_name_that_is_like_nothing_is_no_fault(name: str) -> None:
    """Only names that are like an option, or known from elsewhere, are refused."""
    known = {each for kind, _ in KINDS for each in adapters(kind.options_type())}
    if keyword.iskeyword(name) or name in {*FOREIGN, *known, "handle", "options"}:
        return

    for fault in checked(declaring(AMQPConsumer, **{name: 3})):
        assert "did you mean" in fault


@pytest.mark.parametrize(
    ("kind", "attributes", "fault"),
    [
        (AMQPConsumer, {"batch_size": 10}, "'batch_size' has no effect: handle takes no list"),
        (AMQPConsumer, {"batch_interval": 1.0}, "'batch_interval' has no effect: handle takes no"),
        (SSEConsumer, {"batch_size": 10}, "'batch_size' has no effect: handle takes no list"),
        (
            AMQPConsumer,
            {"retry": RetryPolicy((5,)), "on_exception": Action.REJECT},
            "'on_exception' has no effect: retry decides what becomes of failures; keep one",
        ),
        (PeriodicTask, {"timezone": "Europe/Berlin"}, "'timezone' has no effect: only cron has"),
    ],
)
def test_fp14_an_option_that_cannot_matter_is_a_fault(
    kind: Any, attributes: dict[str, Any], fault: str
) -> None:
    """The class states it, and something else that it declares puts it out of force."""
    [found] = checked(declaring(kind, **attributes))

    assert f"Each: option {fault}" in found


@pytest.mark.parametrize(
    "consumer",
    [
        declaring(AMQPConsumer, handle=many, batch_size=10, batch_interval=1.0),
        declaring(AMQPConsumer, retry=None, on_exception=Action.REJECT),
        declaring(AMQPConsumer, retry=RetryPolicy((5,)), on_exception=Action.DEAD_LETTER),
        declaring(SSEConsumer, retry=RetryPolicy((5,)), on_exception=Action.REJECT),
        declaring(AMQPConsumer, queues=[Queue("b", per_process=True)], declare="never"),
        declaring(PeriodicTask, every=None, cron="5 4 * * *", timezone="Europe/Berlin"),
    ],
)
def test_fp14_an_option_that_matters_is_no_fault(consumer: Any) -> None:
    """Each rule has another side."""
    assert checked(consumer) == []


@pytest.mark.parametrize("option", ["BATCH_SIZE", "BATCH_INTERVAL"])
def test_fp14_a_variable_that_cannot_matter_is_a_fault(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named as it is written in the environment."""
    name = f"TESTS_ONLY_CONSUMERS__EACH__{option}"
    monkeypatch.setenv(name, "10")

    [fault] = checked(declaring(AMQPConsumer))

    option = option.lower()
    assert fault == f"{name}: option {option!r} has no effect: handle takes no list"


def test_fp14_a_setting_that_cannot_matter_is_a_fault() -> None:
    """It is named as it is written in the settings."""
    [fault] = checked(declaring(AMQPConsumer), consumers={"each": {"batch_size": 3}})

    assert fault.startswith("settings.consumers['each']['batch_size']: option 'batch_size' has no")


def test_fp14_an_operator_may_put_an_option_of_the_class_out_of_force() -> None:
    """RETRY__DELAYS over a class that has on_exception is no fault of the class; the reverse is."""
    tuned = {"consumers": {"each": {"retry": {"delays": [5]}}}}
    assert checked(declaring(AMQPConsumer, on_exception=Action.REJECT), **tuned) == []

    given = {"consumers": {"each": {"on_exception": "reject"}}}
    [fault] = checked(declaring(AMQPConsumer, retry=RetryPolicy((5,))), **given)
    assert fault.startswith("settings.consumers['each']['on_exception']: option 'on_exception' has")


def test_fp14_what_a_shared_base_states_is_no_fault_of_a_class_that_has_no_use_for_it() -> None:
    """A base sets `batch_size` for those of its classes that take lists."""

    class Base(AMQPConsumer, abstract=True):
        batch_size = 10

    batches = type("A", (Base,), {"queues": ["a"], "handle": many})
    singles = type("B", (Base,), {"queues": ["b"], "handle": one})

    assert checked(batches, singles) == []
