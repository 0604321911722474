"""The spine: one delivery in, one outcome out, whatever the handler does."""

import asyncio
import contextvars
import functools
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from tests.records import errors
from tests.waiting import eventually
from workerkit import (
    Action,
    AMQPConsumer,
    AMQPMessage,
    HandlerCancelled,
    HandlerTimeout,
    InvalidBody,
    Reject,
)
from workerkit.amqp.acks import Acks
from workerkit.delivery import Outcome
from workerkit.endpoint import Endpoint
from workerkit.errors import HandlerExit
from workerkit.options import Options
from workerkit.signature import ArgumentSource, Signature
from workerkit.tasks import protect


def message(raw: bytes = b"1") -> AMQPMessage[Any]:
    acks = Acks(1, lambda data: True, lambda flush: None)
    return AMQPMessage(raw, queue="q", tag=1, envelope=b"\0\0\0", properties=b"\0\0", acks=acks)


def endpoint(
    handle: Callable[..., Any],
    timeout: float | None = 5.0,
    provide: Callable[[], Any] | None = None,
    concurrency: int = 2,
) -> Endpoint:
    """An endpoint whose consumer has *handle*."""
    consumer = type("Each", (AMQPConsumer,), {"handle": handle, "queues": ["q"]})
    signature = Signature(
        handle,
        AMQPMessage,
        lambda parameter, type_: ArgumentSource(provide or (lambda: None), per_call=True),
    )
    return Endpoint(
        consumer(),
        Options(name="Each", concurrency=concurrency, timeout=timeout),
        signature,
        on_success=Action.ACK,
        on_exception=Action.REQUEUE,
        on_invalid=Action.DEAD_LETTER,
    )


async def test_success() -> None:
    """A handler that returns leads to on_success."""

    async def handle(self: object, body: int) -> None:
        assert body == 1

    outcome = await endpoint(handle).process(message())

    assert (outcome.action, outcome.error) == (Action.ACK, None)


async def test_failure() -> None:
    """A handler that raises leads to on_exception, with the error."""
    error = KeyError("x")

    async def handle(self: object, body: int) -> None:
        raise error

    outcome = await endpoint(handle).process(message())

    assert (outcome.action, outcome.error) == (Action.REQUEUE, error)


async def test_a_body_that_does_not_fit() -> None:
    """The handler is not called, and on_invalid decides."""

    async def handle(self: object, body: int) -> None:
        pytest.fail("called")

    outcome = await endpoint(handle).process(message(b"x"))

    assert outcome.action is Action.DEAD_LETTER
    assert isinstance(outcome.error, InvalidBody)


async def test_a_reject_keeps_its_reason() -> None:
    """Raising Reject dead-letters, whatever on_exception says."""

    async def handle(self: object, body: int) -> None:
        raise Reject("why")

    outcome = await endpoint(handle).process(message())

    assert (outcome.action, str(outcome.error)) == (Action.DEAD_LETTER, "why")


async def test_the_handler_decides_by_itself() -> None:
    """accept() wins even if the handler then raises; the error is kept for the log."""

    async def handle(self: object, body: AMQPMessage[int]) -> None:
        body.accept()
        raise KeyError

    outcome = await endpoint(handle).process(message())

    assert outcome.action is Action.ACK
    assert isinstance(outcome.error, KeyError)


async def test_a_settlement_after_the_end_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """A message that the handler kept is settled already."""
    kept: list[AMQPMessage[int]] = []

    async def handle(self: object, body: AMQPMessage[int]) -> None:
        kept.append(body)

    await endpoint(handle).process(message())
    with caplog.at_level(logging.WARNING):
        kept[0].reject()

    assert [record.message for record in caplog.records] == ["second settlement ignored"]


async def test_a_late_handler() -> None:
    """It is cancelled at its timeout, which is a failure, and the task goes on."""

    async def handle(self: object, body: int) -> None:
        await asyncio.Event().wait()

    late = endpoint(handle, timeout=0.05)
    outcomes = [await late.process(message()), await late.process(message())]

    assert [type(outcome.error) for outcome in outcomes] == [HandlerTimeout] * 2
    assert [outcome.action for outcome in outcomes] == [Action.REQUEUE] * 2
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_deadlines_of_calls_that_overlap() -> None:
    """Each call has its own deadline; one that ends in time is left alone."""

    async def handle(self: object, body: int) -> None:
        # Those that end in time do so within turns of the loop, which no clock can overtake.
        await (asyncio.sleep(0) if body < 3 else asyncio.Event().wait())

    each = endpoint(handle, timeout=0.2)
    outcomes = await asyncio.gather(
        *(each.process(message(str(size).encode())) for size in (10_000, 1, 20_000, 2))
    )

    assert [outcome.error is None for outcome in outcomes] == [False, True, False, True]


async def test_a_handler_that_swallows_its_timeout() -> None:
    """It was late, and whether it has done its work is not known: a failure; nothing lingers."""

    async def handle(self: object, body: int) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    outcome = await endpoint(handle, timeout=0.05).process(message())
    await asyncio.sleep(0)

    assert outcome.action is Action.REQUEUE
    assert isinstance(outcome.error, HandlerTimeout)


async def test_a_handler_that_takes_its_timeout_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was late all the same, and nobody is told that it goes on."""
    monkeypatch.setattr("workerkit.deadlines._PATIENCE", 0.05)

    async def handle(self: object, body: int) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()

    outcome = await endpoint(handle, timeout=0.05).process(message())
    await asyncio.sleep(0.1)

    assert isinstance(outcome.error, HandlerTimeout)
    assert errors(caplog) == []


async def test_a_handler_that_goes_on_after_its_timeout(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can end it, so somebody has to know."""
    monkeypatch.setattr("workerkit.deadlines._PATIENCE", 0.05)
    go = asyncio.Event()

    async def handle(self: object, body: int) -> None:
        while not go.is_set():
            with suppress(asyncio.CancelledError):
                await go.wait()

    task = asyncio.create_task(endpoint(handle, timeout=0.05).process(message()))
    late = "handler timed out and still runs after cancellation: waiting for it"
    await eventually(lambda: errors(caplog) == [late])
    go.set()
    outcome = await task

    assert isinstance(outcome.error, HandlerTimeout)


async def test_cancellation_passes_through() -> None:
    """Cancelled from outside, there is no outcome: nothing is settled."""

    async def handle(self: object, body: int) -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(endpoint(handle).process(message()))
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_from_inside() -> None:
    """A handler that awaits a task somebody else cancelled has failed; nobody asked it to stop."""

    async def handle(self: object, body: int) -> None:
        other = asyncio.create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        other.cancel()
        await other

    outcome = await endpoint(handle).process(message())

    assert isinstance(outcome.error, HandlerCancelled)
    assert outcome.action is Action.REQUEUE


@pytest.mark.parametrize("error", [None, ValueError("sold out")])
@pytest.mark.parametrize("batch", [False, True])
async def test_a_handler_that_cancels_its_own_task_at_its_end(
    error: Exception | None, batch: bool
) -> None:
    """The cancellation ends with the call: it does not interrupt what its worker does next."""

    async def cancel_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if error is not None:
            raise error

    async def handle(self: object, body: int) -> None:
        await cancel_itself()

    async def handle_batch(self: object, bodies: list[int]) -> None:
        await cancel_itself()

    async def work() -> Outcome:
        task = asyncio.current_task()
        assert task is not None
        protect(task)
        if batch:
            [outcome] = await endpoint(handle_batch).process_batch([message()])
        else:
            outcome = await endpoint(handle).process(message())
        await asyncio.sleep(0)
        assert task.cancelling() == 0
        return outcome

    outcome = await asyncio.create_task(work())

    assert outcome.error is error
    assert outcome.action is (Action.ACK if error is None else Action.REQUEUE)


async def test_a_generator_exit_names_the_consumer() -> None:
    """Raised by a handler, it ends the process like other exceptions that are no `Exception`."""

    async def handle(self: object, body: int) -> None:
        raise GeneratorExit("odd")

    with pytest.raises(HandlerExit, match="Each: handle raised GeneratorExit: odd"):
        await endpoint(handle).process(message())


async def test_a_call_that_is_closed() -> None:
    """A call whose loop ended before it passes the `GeneratorExit` of its coroutine on."""
    seen: list[type[BaseException]] = []

    async def handle(self: object, body: int) -> None:
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            seen.append(type(error))
            raise

    call = endpoint(handle).process(message(), asyncio.create_task(asyncio.sleep(0)))
    call.send(None)
    call.close()

    assert seen == [GeneratorExit]


async def test_parameters_of_the_container() -> None:
    """Each call asks anew and awaits futures; what fails there is a failure of the call."""
    asked: list[int] = []

    async def handle(self: object, body: int, tool: int, message: AMQPMessage[Any]) -> None:
        asked.append(tool)
        assert message.raw == b"1"

    async def later() -> int:
        return len(asked) + 10

    each = endpoint(handle, provide=later)
    await each.process(message())
    await each.process(message())

    def broken() -> None:
        raise OSError("no database")

    outcome = await endpoint(handle, provide=broken).process(message())

    assert asked == [10, 11]
    assert isinstance(outcome.error, OSError)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_context_manager_of_the_container(fails: bool) -> None:
    """A session made for the call is entered before it and left behind it, with its exception."""
    seen: list[object] = []

    @asynccontextmanager
    async def session() -> AsyncIterator[str]:
        try:
            yield "open"
        except KeyError:
            seen.append("rolled back")
            raise
        seen.append("committed")

    async def handle(self: object, body: int, session: str) -> None:
        seen.append(session)
        if fails:
            raise KeyError

    outcome = await endpoint(handle, provide=session).process(message())

    assert seen == ["open", "rolled back" if fails else "committed"]
    assert outcome.action is (Action.REQUEUE if fails else Action.ACK)


async def test_a_batch() -> None:
    """One call for all; a body that does not fit stays out, and each may have a fate of its own."""
    calls: list[list[object]] = []

    async def handle(self: object, messages: list[AMQPMessage[int]]) -> None:
        calls.append([each.body for each in messages])
        messages[1].reject(requeue=False)
        raise KeyError

    messages = [message(raw) for raw in (b"1", b"x", b"2", b"3")]
    outcomes = await endpoint(handle).process_batch(messages)

    assert calls == [[1, 2, 3]]
    assert [each.action for each in outcomes] == ["requeue", "dead_letter", "reject", "requeue"]
    assert [type(each.error) for each in outcomes] == [KeyError, InvalidBody, KeyError, KeyError]


async def test_a_batch_in_which_nothing_fits() -> None:
    """The handler is not called with an empty list."""

    async def handle(self: object, numbers: list[int]) -> None:
        pytest.fail("called")

    outcomes = await endpoint(handle).process_batch([message(b"x")])

    assert [each.action for each in outcomes] == ["dead_letter"]


async def test_a_synchronous_handler_runs_in_a_thread() -> None:
    """It has the caller's context variables, and never more threads than the concurrency."""
    variable = contextvars.ContextVar[str]("variable")
    seen: set[str] = set()
    both = threading.Barrier(2, timeout=5.0)

    def handle(self: object, body: int) -> None:
        seen.add(f"{threading.current_thread().name} {variable.get()}")
        both.wait()

    variable.set("set")
    each = endpoint(handle, concurrency=2)
    outcomes = await asyncio.gather(*(each.process(message()) for _ in range(20)))
    await each.stop()

    assert {outcome.action for outcome in outcomes} == {Action.ACK}
    assert seen == {"workerkit-Each-1 set", "workerkit-Each-2 set"}
    await eventually(lambda: not _threads())


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator from which one cannot see that *function* is asynchronous, but by its wraps."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


async def test_a_decorated_handler_is_awaited() -> None:
    """A handler that is asynchronous behind a plain decorator has run before it is acknowledged."""
    ran: list[int] = []

    async def handle(self: object, body: int) -> None:
        await asyncio.sleep(0.01)
        ran.append(body)

    outcome = await endpoint(decorated(handle)).process(message())

    assert (outcome.action, ran) == (Action.ACK, [1])


async def test_a_handler_that_returns_a_coroutine_is_awaited() -> None:
    """Even where nobody can see it beforehand, nothing is acknowledged that has not run."""
    ran: list[int] = []

    async def later(body: int) -> None:
        ran.append(body)
        raise KeyError

    def handle(self: object, body: int) -> Any:
        return later(body)

    each = endpoint(handle)
    outcome = await each.process(message())
    await each.stop()

    assert ran == [1]
    assert isinstance(outcome.error, KeyError)


async def test_a_late_thread_keeps_its_error(caplog: pytest.LogCaptureFixture) -> None:
    """What a handler raised after its timeout is not lost."""
    begun, go = threading.Event(), threading.Event()

    def handle(self: object, body: int) -> None:
        begun.set()
        go.wait(20)
        raise KeyError("the cause")

    each = endpoint(handle, timeout=0.05)
    task = asyncio.create_task(each.process(message()))
    await asyncio.sleep(0)
    # Blocks the loop: no clock strikes before the thread has the call, however busy the machine.
    assert begun.wait(20)
    await eventually(lambda: caplog.records)
    go.set()
    outcome = await task
    await each.stop()

    assert isinstance(outcome.error, HandlerTimeout)
    assert isinstance(outcome.error.__cause__, KeyError)


async def test_a_late_thread_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """One ERROR, and the delivery is held until the thread returns; then it is a failure."""
    begun, go = threading.Event(), threading.Event()

    def handle(self: object, body: int) -> None:
        begun.set()
        go.wait(20)

    each = endpoint(handle, timeout=0.05)
    task = asyncio.create_task(each.process(message()))
    await asyncio.sleep(0)
    assert begun.wait(20)
    await eventually(lambda: caplog.records)
    held = not task.done()
    go.set()
    outcome = await task
    await each.stop()

    assert held
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert isinstance(outcome.error, HandlerTimeout)


@pytest.mark.parametrize("error", [None, KeyError("x")])
async def test_a_cancelled_thread_is_waited_for(error: Exception | None) -> None:
    """A call that ends well counts although its caller was cancelled; one that fails does not."""
    begun, go = threading.Event(), threading.Event()

    def handle(self: object, body: int) -> None:
        begun.set()
        go.wait(5)
        if error:
            raise error

    each = endpoint(handle)
    task = asyncio.create_task(each.process(message()))
    await eventually(begun.is_set)
    task.cancel()
    await asyncio.sleep(0.01)
    held = not task.done()
    go.set()
    done = await asyncio.gather(task, return_exceptions=True)
    await each.stop()

    assert held
    if error is None:
        assert getattr(done[0], "action", None) is Action.ACK
    else:
        assert isinstance(done[0], asyncio.CancelledError)


@pytest.mark.parametrize("name", ["on_stop", "on_connection_error"])
async def test_a_hook_that_raises_is_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Hooks of the user's never break the loop."""

    async def handle(self: object, body: int) -> None: ...

    async def hook(*_: object) -> None:
        raise KeyError("mine")

    each = endpoint(handle)
    setattr(each.consumer, name, hook)
    if name == "on_stop":
        await each.stop()
    else:
        await each.connection_failed(OSError(), 1)

    assert [record.message for record in caplog.records] == ["hook failed"]


def _threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("workerkit")]
