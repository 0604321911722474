"""Call `handle` for a delivery of any transport, and decide its outcome."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import Context, copy_context
from functools import partial
from types import CoroutineType
from typing import Any

from workerkit.consumer import Consumer
from workerkit.current_call import current_call, run_in_context
from workerkit.deadlines import Deadlines
from workerkit.delivery import Action, Delivery, FailedCall, Outcome
from workerkit.errors import HandlerCancelled, HandlerExit, HandlerTimeout, Reject, Retry
from workerkit.interceptor import Call, Intercepted
from workerkit.options import Options
from workerkit.retry import RetryPolicy, next_delay
from workerkit.signature import Arguments
from workerkit.tasks import guard, is_meant_to_end
from workerkit.threads import Threads

log = logging.getLogger(__name__)


class Endpoint:
    """One method of a consumer, ready to be called by its transport.

    All code of the user's class is called from here only. Context variables that a call sets are
    gone when it ends: once a handler has set one, and always with interceptors, each call runs in a
    context of its own.

    Args:
        consumer: The instance whose method is called.
        options: Its resolved options, with the interceptors.
        signature: The plan of the method.
        on_success: The action if `handle` returned.
        on_exception: The action if `handle` raised, timed out, or was cancelled by its own code.
        on_invalid: The action for an invalid body; `handle` is not called.
        retry: If given, decides about failures instead of *on_exception*.
        method: The name of the method, which these texts call `handle`.
        inherits: Each call is made in a task of its own, and sees the context variables of that
            task, such as those that a middleware has set; otherwise those at the creation of the
            endpoint.
    """

    def __init__(
        self,
        consumer: Consumer,
        options: Options,
        signature: Arguments,
        *,
        on_success: Action,
        on_exception: Action,
        on_invalid: Action,
        retry: RetryPolicy | None = None,
        method: str = "handle",
        inherits: bool = False,
    ) -> None:
        self.consumer = consumer
        self.options = options
        self.name = options.name
        self._bind = signature.bind
        self._read = signature.read
        self._values_are_ignored = not signature.answers
        self._handled = Outcome(on_success)
        self._on_exception = on_exception
        self._on_invalid = on_invalid
        self._retry = retry
        self._loop = asyncio.get_running_loop()
        self._threads: Threads | None = None
        self._handle = handle = getattr(consumer, method)
        timeout = options.timeout
        # A decorator may hide that the function it wraps is asynchronous.
        if not inspect.iscoroutinefunction(inspect.unwrap(handle)):
            self._threads = Threads(options.name, options.concurrency, timeout)
            self._handle = partial(self._threads.call, handle)
            timeout = None
        if signature.provides:
            self._handle = partial(_injected, self._handle, signature.provided)
        self._deadlines = Deadlines(options.name, timeout)
        self._method = method
        self._intercepted: Intercepted | None = None
        if options.interceptors:
            # Deadlines do not apply to threads.
            limit = options.timeout if timeout is None else None
            self._intercepted = Intercepted(
                self._handle, options.interceptors, self._preview, limit
            )
        self._carry: Callable[[Context], None] | None = None
        self._context = None if inherits else copy_context()
        self._isolates = self._intercepted is not None

    def resize(self, concurrency: int) -> None:
        """Change the number of calls at the same time of a method that is not asynchronous."""
        if self._threads is not None:
            self._threads.resize(concurrency)

    async def process(self, delivery: Delivery, task: "asyncio.Task[Any] | None" = None) -> Outcome:
        """Call `handle` and decide what becomes of *delivery*; settle nothing.

        Cancellation passes through, and then there is no outcome: the source redelivers.

        Args:
            task: The current one, where the caller knows it.

        Raises:
            HandlerExit: The process has to end; there is no outcome either. Nothing else.
        """
        try:
            args, kwargs = self._bind(delivery)
        except Exception as error:
            return self._decided(delivery, Outcome(self._on_invalid, error))
        # As _attempt, inlined: each coroutine in between costs time for every delivery.
        task = self._deadlines.begin(task)
        try:
            if self._isolates:
                value = await self._isolated(delivery, args, kwargs)
            elif self._context is None:
                current_call.set((self.name, delivery))
                value = await self._handle(*args, **kwargs)
            else:
                token, context = current_call.set((self.name, delivery)), copy_context()
                try:
                    value = await self._handle(*args, **kwargs)
                finally:
                    try:
                        if copy_context() != context:
                            self._isolates = True
                    except Exception:
                        # A value that cannot be compared, such as an array: it is another one.
                        self._isolates = True
                    current_call.reset(token)
            outcome = self._returned(task, value)
        except BaseException as error:
            outcome = self._failed(task, error)
        if self._deadlines.has_discarded:
            await self._deadlines.receive_discarded(task)
        return self._decided(delivery, outcome)

    async def process_batch(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        """As `process`, for one call of `handle` with many deliveries; an outcome for each.

        Those whose body does not fit are left out of the call. `handle` may decide for each one
        by itself; the others follow what it does.
        """
        outcomes: list[Outcome | None] = []
        items, handled = [], []
        for delivery in deliveries:
            try:
                items.append(self._read(delivery))
                handled.append(delivery)
                outcomes.append(None)
            except Exception as error:
                outcomes.append(Outcome(self._on_invalid, error))
        common = await self._attempt(handled, items) if items else self._handled
        if common.error is not None:
            common = common._replace(call=FailedCall(len(items)))
        return [
            self._decided(delivery, outcome or common)
            for delivery, outcome in zip(deliveries, outcomes, strict=True)
        ]

    def wrap(
        self,
        process: Callable[..., Awaitable[Outcome]],
        process_batch: Callable[[Sequence[Delivery]], Awaitable[list[Outcome]]] | None = None,
        carry: Callable[[Context], None] | None = None,
    ) -> None:
        """Make transports call other functions instead of `process` and `process_batch`.

        An endpoint that is not wrapped pays nothing, not even for a check.

        Args:
            carry: Called with the context of each call that runs in one of its own.
        """
        vars(self).update(process=process, process_batch=process_batch or self.process_batch)
        self._carry = carry or self._carry

    async def start(self) -> None:
        """Call the consumer's `on_start`; what it raises fails the start."""
        await self.consumer.on_start()

    async def stop(self) -> None:
        """Call the consumer's `on_stop`; what it raises is logged."""
        self.close()
        await self._hook("on_stop", self.consumer.on_stop())

    def close(self) -> None:
        """Stop timer and threads, after the last call."""
        self._deadlines.close()
        if self._threads is not None:
            self._threads.close()

    def seconds_in_call(self, task: "asyncio.Task[Any]") -> float | None:
        """Return how long a task has been in its call of `handle`; None if that is not known."""
        return self._deadlines.seconds_in_call(task)

    async def connection_failed(self, error: Exception, attempt: int) -> None:
        """Call the consumer's `on_connection_error`; what it raises is logged."""
        await self._hook("on_connection_error", self.consumer.on_connection_error(error, attempt))

    async def _attempt(self, deliveries: Sequence[Delivery], items: list[Any]) -> Outcome:
        """Call the method with a batch."""
        task = self._deadlines.begin()
        try:
            outcome = self._returned(task, await self._isolated(deliveries, (items,), {}))
        except BaseException as error:
            outcome = self._failed(task, error)
        if self._deadlines.has_discarded:
            await self._deadlines.receive_discarded(task)
        return outcome

    def _isolated(
        self,
        handled: Delivery | Sequence[Delivery],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Awaitable[Any]:
        """Call the method in a context of its own."""
        context = copy_context() if self._context is None else self._context.copy()
        if self._carry is not None:
            self._carry(context)
        return run_in_context(context, self._called(handled, args, kwargs))

    async def _called(
        self,
        handled: Delivery | Sequence[Delivery],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call the method, with its interceptors."""
        current_call.set((self.name, handled))
        if self._intercepted is None:
            return await self._handle(*args, **kwargs)
        call = Call(self.consumer, self.name, self._method, handled)
        return await self._intercepted(call, args, kwargs)

    def _preview(self, call: Call, error: BaseException | None, value: object) -> Outcome | None:
        """Return the outcome that a call has at this point; None if there will be none."""
        task = asyncio.current_task()
        assert task is not None
        late = self._deadlines.is_late(task)
        if error is None and not late:
            outcome = self._handled if value is None else Outcome(self._handled.action, None, value)
        elif late or isinstance(error, asyncio.CancelledError):
            if not late and is_meant_to_end(task, error):
                return None
            failure = self._interrupted(late)
            outcome = Outcome(self._action_for(failure), failure)
        elif isinstance(error, Exception) and not isinstance(error, MemoryError):
            outcome = Outcome(self._action_for(error), error)
        else:
            return None
        return outcome if call.is_batch else self._with_choice(call.delivery, outcome)

    def _returned(self, task: "asyncio.Task[Any]", value: object) -> Outcome:
        """Return the outcome of a call that returned *value*; a late one is a failure."""
        if self._deadlines.end(task):
            failure = self._interrupted(late=True)
            return Outcome(self._action_for(failure), failure)
        if value is None:
            return self._handled
        if self._values_are_ignored or type(value) is CoroutineType:
            return self._unwanted(value)
        return Outcome(self._handled.action, None, value)

    def _unwanted(self, value: object) -> Outcome:
        """Return the outcome of a call whose value nothing reads; report that once."""
        if isinstance(value, CoroutineType):
            # Its work has not been done.
            value.close()
            failure = TypeError(f"{self.name}: handle returned a coroutine without awaiting it")
            return Outcome(self._action_for(failure), failure)
        self._values_are_ignored = False
        log.warning(
            "value returned by handle is ignored",
            extra={"consumer": self.name, "type": type(value).__qualname__},
        )
        return Outcome(self._handled.action, None, value)

    def _failed(self, task: "asyncio.Task[Any]", error: BaseException) -> Outcome:
        """Return the outcome of a call that raised *error*.

        Raises:
            asyncio.CancelledError: The task was cancelled: there is no outcome.
            HandlerExit: The process has to end.
        """
        late = self._deadlines.end(task)
        if is_meant_to_end(task, error) and isinstance(error, Exception | asyncio.CancelledError):
            # When cancelled, drivers may raise errors of their own: that is no failure either.
            raise asyncio.CancelledError from error
        if isinstance(error, asyncio.CancelledError):
            failure = self._interrupted(late)
            failure.__cause__ = error
            return Outcome(self._action_for(failure), failure)
        if isinstance(error, GeneratorExit) and asyncio.current_task(self._loop) is not task:
            raise error  # The coroutine of a task that never ended is closed.
        if isinstance(error, MemoryError) or not isinstance(error, Exception):
            text = f"{self.name}: handle raised {type(error).__name__}: {error}"
            raise HandlerExit(text) from error
        return Outcome(self._action_for(error), error)

    def _interrupted(self, late: bool) -> Exception:
        if late:
            return HandlerTimeout(
                f"{self.name}: handle took longer than its {self.options.timeout:g} s"
            )
        return HandlerCancelled(f"{self.name}: handle was cancelled from inside")

    def _action_for(self, error: Exception) -> Action:
        if isinstance(error, Reject):
            return Action.DEAD_LETTER
        if isinstance(error, Retry):
            return Action.RETRY
        if self._retry is None:
            return self._on_exception
        return Action.RETRY if self._retry.covers(error) else Action.DEAD_LETTER

    def _decided(self, delivery: Delivery, outcome: Outcome) -> Outcome:
        """Return the final outcome for *delivery*, which notes its action."""
        if delivery.fate is not None or outcome.error is not None:
            outcome = self._with_choice(delivery, outcome)
        delivery.fate = outcome.action
        return outcome

    def _with_choice(self, delivery: Delivery, outcome: Outcome) -> Outcome:
        """Return the outcome with the handler's own choice for *delivery*, if it made one."""
        if delivery.fate is not None:
            outcome = Outcome(delivery.fate, outcome.error, outcome.value, call=outcome.call)
        return self._retried(delivery, outcome) if outcome.action is Action.RETRY else outcome

    def _retried(self, delivery: Delivery, outcome: Outcome) -> Outcome:
        """Return the outcome with the delay of the next attempt; dead-letter after the last one."""
        error, asked = outcome.error, delivery.after
        if delivery.fate is None and isinstance(error, Retry):
            asked = error.after
        delay = next_delay(self._retry, delivery.attempt, asked)
        if delay is None:
            return Outcome(Action.DEAD_LETTER, error or Retry(), outcome.value, call=outcome.call)
        return outcome._replace(delay=delay, exact=asked is not None)

    async def _hook(self, name: str, call: Any) -> None:
        try:
            await guard(call)
        except Exception:
            log.exception("hook failed", extra={"consumer": self.name, "hook": name})


async def _injected(
    handle: Callable[..., Awaitable[Any]],
    provided: Callable[[], AbstractAsyncContextManager[dict[str, Any]]],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call *handle* with its further arguments from the container."""
    async with provided() as more:
        return await handle(*args, **kwargs, **more)
