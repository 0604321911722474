"""The call of `handle` that runs in this context, for log records, publishes and traces."""

import types
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextvars import Context, ContextVar
from typing import Any, TypeVar

from workerkit.delivery import Delivery

T = TypeVar("T")

# A tuple, because there is one for each delivery: the name of the consumer, and what it handles, a
# sequence if it is a batch.
current_call: ContextVar[tuple[str, Delivery | Sequence[Delivery]] | None] = ContextVar(
    "current_call", default=None
)
"""The consumer and the delivery, or the batch, of the call that this code belongs to."""

trace_fields: Callable[[], Mapping[str, str]] | None = None
"""Returns `trace_id` and `span_id` of the current span; None while tracing is off."""


def call_fields() -> dict[str, object]:
    """Return the fields of every log record of this call: its consumer, delivery and trace."""
    fields: dict[str, object] = {}
    call = current_call.get()
    if call is not None:
        fields["consumer"], delivery = call
        if isinstance(delivery, Delivery):
            fields |= delivery.log_context()
        else:
            fields["batch"] = len(delivery)
    if trace_fields is not None:
        fields |= trace_fields()
    return fields


def current_correlation_id() -> str | None:
    """Return the correlation id for what this call publishes; None outside of a call.

    A batch has none, because its deliveries have different ones.
    """
    call = current_call.get()
    if call is None or not isinstance(call[1], Delivery):
        return None
    return call[1].handed_on_id()


@types.coroutine
def run_in_context(context: Context, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Await a coroutine in a context of its own, without the cost of a task.

    Tasks and callbacks that it creates copy this context. It still belongs to the current task,
    whose cancellation it gets.
    """
    step: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        try:
            waits_for = context.run(step, value)
        except StopIteration as stop:
            result: T = stop.value
            return result
        try:
            value = yield waits_for
            step = coroutine.send
        except GeneratorExit:
            context.run(coroutine.close)
            raise
        except BaseException as error:
            step, value = coroutine.throw, error
