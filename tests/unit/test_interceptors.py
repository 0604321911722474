"""Interceptors: around every call of `handle`, of all kinds of consumers."""

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Provide
from hypothesis import given
from hypothesis import strategies as st

from tests.application import package_of
from workerkit import (
    Action,
    AMQPConsumer,
    AMQPMessage,
    Call,
    Consumer,
    DeclarationError,
    HandlerTimeout,
    HTTPView,
    PeriodicTask,
    Reject,
    Retry,
    RetryPolicy,
    RunError,
    Runner,
    WorkerContainer,
    WorkerSettings,
)
from workerkit.logs import ContextFilter
from workerkit.testing import running

SEEN: list[str] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> list[str]:
    """Forget what was seen before."""
    SEEN.clear()
    return SEEN


class Sees:
    """An interceptor that notes what it sees."""

    def __init__(self, name: str = "sees") -> None:
        self.name = name

    @asynccontextmanager
    async def __call__(self, call: Call) -> AsyncIterator[None]:
        SEEN.append(f"{self.name} enters {call.name}.{call.method} {call.attempt}")
        try:
            yield
        except Exception as error:
            SEEN.append(f"{self.name} sees {type(error).__name__}")
            raise
        finally:
            outcome = call.outcome
            action = None if outcome is None else outcome.action.value
            SEEN.append(f"{self.name} exits with {action}")


class Container(WorkerContainer):
    """Settings that ignore the environment, and one interceptor."""

    settings = providers.Singleton(WorkerSettings, _env_file=None)
    outer = providers.Singleton(Sees, "outer")
    inner = providers.Singleton(Sees, "inner")
    interceptors = providers.List(outer)


class Quiet(Container):
    """No interceptors."""

    interceptors = providers.List()


async def settled(consumer: type[Consumer], *bodies: object, container: Any = None) -> list[str]:
    """Return the actions of a consumer of the queue `q` for these bodies."""
    async with running(container or Container(), packages=[package_of(consumer)]) as app:
        for body in bodies:
            await app.publish(body, "q")
        await app.idle()
        return [each.action for each in app.settled(consumer.__name__)]


async def test_order_and_outcome() -> None:
    """Those of the container are outside of those of the class, in the declared order."""

    class Each(AMQPConsumer):
        queues = ["q"]
        interceptors = [Provide["inner"], Container.inner, Sees]

        async def handle(self, body: int) -> None:
            SEEN.append("handle")

    assert await settled(Each, 1) == ["ack"]
    assert SEEN == [
        "outer enters Each.handle 1",
        "inner enters Each.handle 1",
        "inner enters Each.handle 1",
        "sees enters Each.handle 1",
        "handle",
        "sees exits with ack",
        "inner exits with ack",
        "inner exits with ack",
        "outer exits with ack",
    ]


async def test_exception_and_outcome() -> None:
    """Each sees the exception, and the outcome that it leads to, also at a later attempt."""

    class Each(AMQPConsumer):
        queues = ["q"]
        retry = RetryPolicy(delays=(1.0,))

        async def handle(self, body: int) -> None:
            raise ValueError("no")

    assert await settled(Each, 1) == ["retry", "dead_letter"]
    assert SEEN == [
        "outer enters Each.handle 1",
        "outer sees ValueError",
        "outer exits with retry",
        "outer enters Each.handle 2",
        "outer sees ValueError",
        "outer exits with dead_letter",
    ]


@pytest.mark.parametrize("before", [True, False], ids=["before handle", "after handle"])
@pytest.mark.parametrize(
    ("error", "action"),
    [(Reject("no"), "dead_letter"), (Retry(after=1.0), "retry"), (KeyError("x"), "reject")],
    ids=["Reject", "Retry", "any other"],
)
async def test_an_interceptor_that_raises(before: bool, error: Exception, action: str) -> None:
    """It decides as `handle` would, and those outside see it."""
    raised = [error]

    @asynccontextmanager
    async def refuse(call: Call) -> AsyncIterator[None]:
        if before and raised:
            raise raised.pop()
        yield
        if raised:
            raise raised.pop()

    class Each(AMQPConsumer):
        queues = ["q"]
        interceptors = [refuse]
        on_exception = Action.REJECT

        async def handle(self, body: int) -> None:
            SEEN.append("handle")

    assert (await settled(Each, 1))[0] == action
    kind = type(error).__name__
    handled = [] if before else ["handle"]
    assert SEEN[1 : 3 + len(handled)] == [
        *handled,
        f"outer sees {kind}",
        f"outer exits with {action}",
    ]


async def test_an_interceptor_that_suppresses() -> None:
    """The call counts as successful; those outside see no exception."""

    @asynccontextmanager
    async def forgive(call: Call) -> AsyncIterator[None]:
        try:
            yield
        except ValueError:
            SEEN.append(f"forgives {call.outcome.action if call.outcome else None}")

    class Each(AMQPConsumer):
        queues = ["q"]
        interceptors = [forgive]

        async def handle(self, body: int) -> None:
            raise ValueError("no")

    assert await settled(Each, 1) == ["ack"]
    assert SEEN[1:] == ["forgives requeue", "outer exits with ack"]


async def test_the_handlers_own_decision() -> None:
    """A message that its handler has rejected has that outcome, whatever it returns."""

    class Each(AMQPConsumer):
        queues = ["q"]

        async def handle(self, message: AMQPMessage[int]) -> None:
            message.reject(requeue=False)

    assert await settled(Each, 1) == ["reject"]
    assert SEEN[-1] == "outer exits with reject"


async def test_batches() -> None:
    """One call has all deliveries, without those whose body is invalid."""
    calls: list[Call] = []

    @asynccontextmanager
    async def note(call: Call) -> AsyncIterator[None]:
        calls.append(call)
        yield

    class Each(AMQPConsumer):
        queues = ["q"]
        interceptors = [note]

        async def handle(self, bodies: list[int]) -> None: ...

    assert sorted(await settled(Each, 1, "no number", 3)) == ["ack", "ack", "dead_letter"]
    (call,) = calls
    assert [each.raw for each in call.deliveries] == [b"1", b"3"]
    assert call.is_batch
    assert call.attempt == 1
    assert call.outcome is not None
    assert call.outcome.action is Action.ACK
    with pytest.raises(TypeError, match=r"Each handles batches: read call\.deliveries"):
        print(call.delivery)
    assert repr(call) == "<call of Each.handle with 2 deliveries>"


async def test_views_and_periodic_tasks() -> None:
    """They have the same seam: a method per verb, a run without a body."""

    class Greeting(HTTPView):
        routes = ["/greeting"]

        async def get(self) -> str:
            return "hello"

        async def post(self) -> str:
            raise Reject("no")

    class Sweep(PeriodicTask):
        every = 3600.0

        async def handle(self) -> None: ...

    async with running(Container(), packages=[package_of(Greeting, Sweep)]) as app:
        await app.http.get("/greeting")
        await app.http.post("/greeting")
        await app.tick("Sweep")

    assert SEEN == [
        "outer enters Greeting.get 1",
        "outer exits with ack",
        "outer enters Greeting.post 1",
        "outer sees Reject",
        "outer exits with dead_letter",
        "outer enters Sweep.handle 1",
        "outer exits with ack",
    ]


async def test_a_timeout() -> None:
    """The deadline includes the interceptors, who see the timeout in the outcome."""
    outcomes: list[Any] = []

    @asynccontextmanager
    async def note(call: Call) -> AsyncIterator[None]:
        try:
            yield
        finally:
            outcomes.append(call.outcome)

    class Each(AMQPConsumer):
        queues = ["q"]
        timeout = 0.05
        on_exception = Action.DEAD_LETTER
        interceptors = [note]

        async def handle(self, body: int) -> None:
            await asyncio.Event().wait()

    assert await settled(Each, 1) == ["dead_letter"]
    assert outcomes[0].action is Action.DEAD_LETTER
    assert isinstance(outcomes[0].error, HandlerTimeout)


@pytest.mark.parametrize("synchronous", [False, True], ids=["async", "in a thread"])
@pytest.mark.parametrize("before", [True, False], ids=["enter", "exit"])
async def test_an_interceptor_that_hangs(before: bool, synchronous: bool) -> None:
    """It ends with the timeout of the class, also where `handle` runs in a thread."""

    @asynccontextmanager
    async def hang(call: Call) -> AsyncIterator[None]:
        if before:
            await asyncio.Event().wait()
        yield
        await asyncio.Event().wait()

    class Each(AMQPConsumer):
        queues = ["q"]
        timeout = 0.05
        on_exception = Action.DEAD_LETTER
        interceptors = [hang]

        async def handle(self, body: int) -> None: ...

    class InThread(Each):
        def handle(self, body: int) -> None: ...  # type: ignore[override]

    assert await settled(InThread if synchronous else Each, 1) == ["dead_letter"]


async def test_each_is_created_once_with_what_the_container_has() -> None:
    """A class and a provider get their arguments; consumers that name the same one share it."""
    created: list[object] = []

    class Audit:
        def __init__(self, settings: WorkerSettings, label: str) -> None:
            created.append(self)
            self.label = label

        @asynccontextmanager
        async def __call__(self, call: Call) -> AsyncIterator[None]:
            SEEN.append(f"{self.label} {call.name}")
            yield

    class Labelled(Container):
        label = providers.Object("audit")
        interceptors = providers.List(Audit)

    class First(AMQPConsumer):
        queues = ["q"]
        interceptors = [Audit]

        async def handle(self, body: int) -> None: ...

    class Second(AMQPConsumer):
        queues = ["q2"]

        async def handle(self, body: int) -> None: ...

    async with running(Labelled(), packages=[package_of(First, Second)]) as app:
        await app.publish(1, "q")
        await app.publish(1, "q2")
        await app.idle()

    assert len(created) == 1
    assert sorted(SEEN) == ["audit First", "audit First", "audit Second"]


async def test_a_context_manager_class() -> None:
    """A class that is a context manager itself is created for each call, with the call."""

    class Around:
        def __init__(self, call: Call) -> None:
            self.call = call

        async def __aenter__(self) -> None:
            SEEN.append(f"around {self.call.delivery.body}")

        async def __aexit__(self, *_: object) -> None: ...

    class Each(AMQPConsumer):
        queues = ["q"]
        interceptors = [Around]

        async def handle(self, body: int) -> None: ...

    assert await settled(Each, 1, 2, container=Quiet()) == ["ack", "ack"]
    assert sorted(SEEN) == ["around 1", "around 2"]


async def plain(call: Call) -> None: ...


async def undecorated(call: Call) -> AsyncIterator[None]:
    yield


@contextmanager
def synchronous(call: Call) -> Iterator[None]:
    yield


class NotCallable: ...


@asynccontextmanager
async def without_call() -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def with_more(call: Call, more: int) -> AsyncIterator[None]:
    yield


class WithMore:
    @asynccontextmanager
    async def __call__(self, call: Call, more: int) -> AsyncIterator[None]:
        yield


@asynccontextmanager
async def entered(call: Call) -> AsyncIterator[None]:
    yield


class NeedsMore:
    def __init__(self, unknown_thing: int) -> None: ...

    def __call__(self, call: Call) -> Any: ...


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (plain, r"plain \(test_interceptors.py:\d+\) returns no context manager: decorate it"),
        (undecorated, r"undecorated .* returns no context manager: decorate it with async"),
        (
            synchronous,
            r"synchronous \(test_interceptors.py:\d+\) is not asynchronous: make it an `as",
        ),
        (without_call, r"without_call .* takes \(\).*: it is called with one argument, the Call"),
        (with_more, r"with_more .* takes \(call: .*more: int\) .*: it is called with one argument"),
        (WithMore, r"WithMore .* takes \(self, call: .*more: int\) .*: it is called with one arg"),
        (
            entered(cast("Call", None)),
            r"entered \(test_interceptors.py:\d+\) was called: write it without calling it",
        ),
        (NotCallable, r"NotCallable .* is no interceptor: write a function that takes a Call"),
        (NotCallable(), r"NotCallable .* is no interceptor"),
        ("audit", r"builtins.str is no interceptor"),
        (Provide["audit"], r"is marked 'audit', which the container does not have: codecs"),
        (NeedsMore, r"parameter 'unknown_thing' has no provider of its name"),
        (providers.Singleton(NotCallable), r"NotCallable .* is no interceptor"),
    ],
    ids=(
        "coroutine generator synchronous none more method entered "
        "class instance text marker constructor provider"
    ).split(),
)
@pytest.mark.parametrize("by", ["class", "container"])
def test_what_is_no_interceptor(found: Any, fault: str, by: str) -> None:
    """It is a fault at the start that names the class, or the container, and what to write."""

    class Each(AMQPConsumer):
        queues = ["q"]
        interceptors = [found] if by == "class" else []

        async def handle(self, body: int) -> None: ...

    container = Quiet()
    if by == "container":
        container.interceptors.override(providers.List(found))
    where = r"Each: interceptor 1: " if by == "class" else "the container: interceptor 1: "
    with pytest.raises(DeclarationError, match=f"{where}.*{fault}"):
        Runner(container, packages=[package_of(Each)]).assemble()


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (providers.Object(3), r"builtins.int is no interceptor"),
        (providers.List(Sees), r"builtins.list is no interceptor"),
        (providers.Callable(lambda: without_call), r"without_call .* takes \(\)"),
        (providers.Object(Sees), r"Sees .* is a class: write it in the list, or a Singleton of it"),
    ],
    ids=["value", "list", "parameters", "class"],
)
async def test_a_provider_that_gives_no_interceptor(entry: Any, fault: str) -> None:
    """It ends the start, and does not fail at each message."""

    class Each(AMQPConsumer):
        queues = ["q"]
        interceptors = [entry]

        async def handle(self, body: int) -> None: ...

    with pytest.raises(RunError, match=f"^interceptor 1 of Each: .*{fault}"):
        async with running(Quiet(), packages=[package_of(Each)]):
            pass


def test_what_is_no_list() -> None:
    """A single interceptor, and another provider than a list, are faults."""

    class Each(AMQPConsumer):
        queues = ["q"]
        interceptors = Sees  # type: ignore[assignment]

        async def handle(self, body: int) -> None: ...

    class Misspelt(AMQPConsumer):
        queues = ["q"]
        interceptor = [Sees]

        async def handle(self, body: int) -> None: ...

    with pytest.raises(
        DeclarationError, match=r"Each: interceptors is Sees: write a list, such as \[Sees\]$"
    ):
        Runner(Quiet(), packages=[package_of(Each)]).assemble()
    with pytest.raises(DeclarationError, match="'interceptor'; did you mean 'interceptors'"):
        Runner(Quiet(), packages=[package_of(Misspelt)]).assemble()
    container = Quiet()
    container.interceptors.override(providers.Singleton(Sees))
    with pytest.raises(
        DeclarationError, match=r"interceptors is a provider of type Singleton: write pr"
    ):
        Runner(container, packages=[package_of(Misspelt)]).assemble()


async def test_overridden_in_a_test() -> None:
    """A test replaces them like any provider."""

    class Each(AMQPConsumer):
        queues = ["q"]

        async def handle(self, body: int) -> None: ...

    container = Container()
    with container.interceptors.override(providers.Object([])):
        assert await settled(Each, 1, container=container) == ["ack"]
    assert SEEN == []


VARIABLES = [contextvars.ContextVar[object](f"variable {each}") for each in range(3)]


class Odd:
    """A value that cannot be compared."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")

    __hash__ = None  # type: ignore[assignment]


@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 2, Odd()]))), max_size=6))
def test_context_variables_of_a_call_are_gone(calls: list[list[tuple[int, Any]]]) -> None:
    """Whatever a handler sets, the next call of the same worker does not see it."""
    seen: list[object] = []

    class Each(AMQPConsumer):
        queues = ["q"]
        concurrency = 1

        async def handle(self, call: int) -> None:
            seen.extend(each.get() for each in VARIABLES if each.get(None) is not None)
            for number, value in calls[call]:
                VARIABLES[number].set(value)

    assert asyncio.run(settled(Each, *range(len(calls)), container=Quiet())) == ["ack"] * len(calls)
    assert seen == []


async def test_a_variable_that_cannot_be_compared() -> None:
    """One that was set before the start, such as an array, and that a handler sets again."""
    array: contextvars.ContextVar[object] = contextvars.ContextVar("array")
    array.set(first := Odd())
    found: list[object] = []

    class Each(AMQPConsumer):
        queues = ["q"]
        concurrency = 1

        async def handle(self, body: int) -> None:
            found.append(array.get())
            array.set(Odd())

    assert await settled(Each, 1, 2, container=Quiet()) == ["ack", "ack"]
    assert [each is first for each in found] == [True, True]


async def test_context_variables_of_interceptors() -> None:
    """What an interceptor sets is there in `handle`, in its tasks and threads, and nowhere else."""
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")
    found: list[str] = []

    @asynccontextmanager
    async def set_tenant(call: Call) -> AsyncIterator[None]:
        tenant.set(call.delivery.headers["tenant"])
        yield

    def read() -> None:
        found.append(tenant.get())

    async def read_later() -> None:
        await asyncio.sleep(0)
        read()

    class Each(AMQPConsumer):
        queues = ["q"]
        interceptors = [set_tenant]

        async def handle(self, body: int) -> None:
            read()
            await asyncio.create_task(read_later())
            await asyncio.to_thread(read)
            asyncio.get_running_loop().call_soon(read)
            await asyncio.sleep(0)

    async with running(Quiet(), packages=[package_of(Each)]) as app:
        for name in ("a", "b"):
            await app.publish(1, "q", headers={"tenant": name})
            await app.idle()
    assert found == ["a"] * 4 + ["b"] * 4


async def test_context_variables_of_a_view() -> None:
    """A view sees what a middleware has set; nothing stays for the next request."""
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    own: contextvars.ContextVar[int] = contextvars.ContextVar("own", default=0)

    async def authenticate(request: Any, handler: Any) -> Any:
        user.set(request.headers["user"])
        return await handler(request)

    authenticate.__middleware_version__ = 1  # type: ignore[attr-defined]

    class Me(HTTPView):
        routes = ["/me"]

        async def get(self) -> str:
            own.set(own.get() + 1)
            return f"{user.get()} {own.get()}"

    container = Quiet()
    container.middlewares.override(providers.List(authenticate))
    async with running(container, packages=[package_of(Me)]) as app:
        for name in ("a", "b"):
            response = await app.http.get("/me", headers={"user": name})
            assert response.text == f'"{name} 1"'


class Fields(logging.Handler):
    """A handler of the user's own, with the filter."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(ContextFilter())
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


log = logging.getLogger("tests.interceptors")


@pytest.fixture
def logged() -> Iterator[Fields]:
    """A handler that has the records of `log`."""
    handler = Fields()
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


async def test_log_records_and_correlation(logged: Fields) -> None:
    """Each record of a call names its message, and what it publishes carries the correlation id."""

    class First(AMQPConsumer):
        queues = ["q"]

        async def handle(self, message: AMQPMessage[int], publisher: Any) -> None:
            log.warning("first")
            await publisher.publish(1, "q2")

    class Second(AMQPConsumer):
        queues = ["q2"]

        def handle(self, message: AMQPMessage[int], publisher: Any) -> None:
            log.warning("second")
            publisher.publish_threadsafe(1, "q3", correlation_id="own")

    class Third(AMQPConsumer):
        queues = ["q3"]

        async def handle(self, messages: list[int]) -> None:
            log.warning("third")

    async with running(Quiet(), packages=[package_of(First, Second, Third)]) as app:
        await app.publish(1, "q", message_id="m1")
        await app.idle()
    first, second, third = (vars(each) for each in logged.records)
    assert (first["consumer"], first["message_id"]) == ("First", "m1")
    assert "correlation_id" not in first
    assert (second["consumer"], second["correlation_id"]) == ("Second", "m1")
    assert (third["consumer"], third["batch"]) == ("Third", 1)
    assert "message_id" not in third


async def test_the_correlation_id_goes_through_a_request(logged: Fields) -> None:
    """A request has an id of its own; its handler logs and hands on that of the conversation."""
    found: list[str | None] = []

    class Asking(AMQPConsumer):
        queues = ["q"]

        async def handle(self, body: int, publisher: Any) -> None:
            await publisher.request(1, "q2", returns=int)

    class Answering(AMQPConsumer):
        queues = ["q2"]

        async def handle(self, message: AMQPMessage[int], publisher: Any) -> int:
            assert message.correlation_id != "order-7"
            log.warning("answering")
            await publisher.publish(1, "q3")
            return 1

    class Last(AMQPConsumer):
        queues = ["q3"]

        async def handle(self, message: AMQPMessage[int]) -> None:
            found.append(message.correlation_id)

    async with running(Quiet(), packages=[package_of(Asking, Answering, Last)]) as app:
        await app.publish(1, "q", correlation_id="order-7")
        await app.idle()
    assert vars(logged.records[0])["correlation_id"] == "order-7"
    assert found == ["order-7"]


@pytest.mark.parametrize("header", [7, "", "x" * 256, b"\xff" * 9, None, ["a"], {"a": 1}], ids=repr)
async def test_a_header_that_is_no_correlation_id(header: Any) -> None:
    """A sender may write anything: then the property counts."""
    found: list[object] = []

    class Each(AMQPConsumer):
        queues = ["q"]

        async def handle(self, message: AMQPMessage[int]) -> None:
            found.extend((message.handed_on_id(), message.log_context()["correlation_id"]))

    async with running(Quiet(), packages=[package_of(Each)]) as app:
        headers = {"x-workerkit-correlation-id": header}
        await app.publish(1, "q", correlation_id="own", headers=headers)
        await app.idle()
    assert found == ["own", "own"]


async def test_a_correlation_id_that_is_no_text() -> None:
    """The longest junk from outside is handed on as it is, and fails no publish."""
    junk = (b"\xff" * 255).decode(errors="surrogateescape")
    found: list[str | None] = []

    class First(AMQPConsumer):
        queues = ["q"]

        async def handle(self, body: int, publisher: Any) -> None:
            await publisher.publish(1, "q2")

    class Second(AMQPConsumer):
        queues = ["q2"]

        async def handle(self, message: AMQPMessage[int]) -> None:
            found.append(message.properties.correlation_id)

    async with running(Quiet(), packages=[package_of(First, Second)]) as app:
        await app.publish(1, "q", correlation_id=junk)
        await app.idle()
    assert found == [junk]


def test_a_container_without_the_provider() -> None:
    """A container that does not inherit from ours needs none."""

    class Each(AMQPConsumer):
        queues = ["q"]

        async def handle(self, body: int) -> None: ...

    class Own(containers.DeclarativeContainer):
        settings = providers.Singleton(WorkerSettings, _env_file=None)
        transports = WorkerContainer.transports

    assembly = Runner(Own(), packages=[package_of(Each)]).assemble()
    assert [each.interceptors for each in assembly.declared] == [()]
