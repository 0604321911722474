"""Audit records: who did what, from where, and what came of it."""

import logging
from collections import deque
from datetime import UTC, datetime

from workerkit.console.model import AuditRecord, Operator

log = logging.getLogger("workerkit.audit")
if log.level == logging.NOTSET:
    # An operator who changes the log level must not disable these records.
    log.setLevel(logging.INFO)

_MOST = 200


class Audit:
    """Writes each record to the log, and keeps the last ones for the page."""

    def __init__(self) -> None:
        self._records: deque[AuditRecord] = deque(maxlen=_MOST)

    def __call__(self, operator: Operator, action: str, target: str, result: str) -> None:
        """Record what an operator did; see `write`."""
        record = AuditRecord(
            time=datetime.now(UTC),
            user=operator.user,
            role=operator.role,
            address=operator.address,
            action=action,
            target=target,
            result=result,
        )
        self._records.appendleft(record)
        write(operator, action, target, result)

    def records(self) -> list[AuditRecord]:
        """Return the last records, the newest first."""
        return list(self._records)


def write(operator: Operator, action: str, target: str, result: str) -> None:
    """Write a record to the log only.

    Args:
        action: Such as pause, or replay.
        target: The consumer, process or queue.
        result: What came of it.
    """
    fields = {**operator.model_dump(), "target": target, "result": result}
    log.info("console: %s", action, extra=fields)
