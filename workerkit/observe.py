"""Tell whoever listens what became of each delivery."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from workerkit.delivery import Action, Delivery, Outcome
from workerkit.errors import InvalidBody, InvalidRequest, Signal

log = logging.getLogger(__name__)


class Settled(NamedTuple):
    """One delivery that its wire has settled.

    Attributes:
        consumer: Name of the consumer.
        source: The queue or route it came from.
        outcome: What was decided, with the exception where there was one.
        action: What the wire did; it differs from the decision where that could not be carried
            out, as when a dead letter could not be moved and went back instead.
        seconds: From the start of handling to the decision.
        lost: The connection was gone, so nothing was settled: the broker delivers it again.
    """

    consumer: str
    source: str
    delivery: Delivery
    outcome: Outcome
    action: Action
    seconds: float
    lost: bool = False


Observer = Callable[[Settled], object]


def notify(observers: Sequence[Observer], record: Settled) -> None:
    """Call every observer; one that raises is logged, and called again the next time."""
    for observer in observers:
        try:
            observer(record)
        except Exception:
            log.exception("observer failed", extra={"observer": repr(observer)})


def log_settled(record: Settled) -> None:
    """Write one line per delivery: at DEBUG when all went well, else with the traceback.

    A request that does not fit its view is nobody's fault here: at INFO.
    """
    error = record.outcome.error
    fine = record.action is Action.ACK and error is None and not record.lost
    if fine and not log.isEnabledFor(logging.DEBUG):
        return
    wrong = logging.INFO if isinstance(error, InvalidRequest) else logging.WARNING
    log.log(
        logging.DEBUG if fine else wrong,
        "handled" if fine else "not handled",
        # Said on purpose, or about the body: there is nothing to trace.
        exc_info=None if isinstance(error, Signal | InvalidBody) else error,
        extra={
            "consumer": record.consumer,
            "source": record.source,
            "delivery": repr(record.delivery),
            "action": "lost" if record.lost else record.action.value,
            "seconds": round(record.seconds, 6),
            **({} if error is None else {"error": f"{type(error).__qualname__}: {error}"}),
        },
    )
