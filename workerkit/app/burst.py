"""A burst: handle what there is, then end."""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Sequence

from workerkit.app.assembly import Assembly
from workerkit.errors import ConfigurationError
from workerkit.transport import Bursts, Declared, Transport

log = logging.getLogger(__name__)

# Seconds. No source reports that it has become empty.
_INTERVAL = 0.1
# What one source had at the first check may have caused deliveries of another one after its check.
_CHECKS = 2


def without_endless(assembly: Assembly) -> Assembly:
    """Leave out the consumers that have no end, with a warning for each.

    Raises:
        ConfigurationError: None is left.
    """
    transports: list[tuple[Transport, list[Declared]]] = []
    left_out: dict[str, str] = {}
    for transport, all_declared in assembly.transports:
        kept = []
        for declared in all_declared:
            if reason := _endless(transport, declared):
                left_out[declared.options.name] = reason
            else:
                kept.append(declared)
        if kept:
            transports.append((transport, kept))
    if not transports:
        names = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ConfigurationError(f"nothing to run in a burst: {names}")
    for name, reason in left_out.items():
        log.warning("left out of the burst", extra={"consumer": name, "reason": reason})
    return dataclasses.replace(assembly, transports=transports)


async def until_handled(transports: Sequence[Bursts], stopping: Callable[[], bool]) -> None:
    """Return once nothing is left to be handled, or the process stops.

    It is not cancelled when the process stops: a request to a broker that is cancelled costs its
    channel, and so the acknowledgements of the messages that are in progress.
    """
    checks = 0
    while checks < _CHECKS and not stopping():
        remaining = [text for each in transports for text in await each.remaining()]
        checks = 0 if remaining else checks + 1
        await asyncio.sleep(_INTERVAL)


def _endless(transport: Transport, declared: Declared) -> str:
    if isinstance(transport, Bursts):
        return transport.endless(declared.options)
    return f"{transport.kind} never runs out of work"
