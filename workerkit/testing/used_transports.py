"""The transports of a test, and their unsettled deliveries."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from dependency_injector import containers, providers

from workerkit.amqp.transport import AMQPTransport
from workerkit.consumer import Consumer
from workerkit.container import transports_of
from workerkit.http.transport import HTTPTransport
from workerkit.periodic.transport import PeriodicTransport
from workerkit.sse.transport import SSETransport
from workerkit.testing.http_client import TrackedHTTPTransport
from workerkit.transport import Idles, Transport, running_handlers


class UsedTransports:
    """The transports of a test: periodic tasks run only on request, the others as they are.

    Attributes:
        periodic: Runs periodic tasks.
        http: Serves views; None where the container has no such transport.
    """

    def __init__(self) -> None:
        self.periodic = PeriodicTransport(manual=True)
        self.http: TrackedHTTPTransport | None = None
        self._used: list[Transport] = []

    def pending(self) -> list[str]:
        """Return what is not settled, in words."""
        found: list[str] = []
        for transport in self._used:
            if isinstance(transport, Idles):
                found += transport.pending()
            else:
                found += running_handlers(transport.busy())
        return found

    def skip_waits(self) -> None:
        """Skip the waits of every transport."""
        for transport in self._used:
            if isinstance(transport, Idles):
                transport.skip_waits()

    @contextmanager
    def put_into(self, container: containers.Container) -> Iterator[None]:
        """Replace the transports of a container inside the block."""
        used = self._replaced(transports_of(container))
        self._used = list(used.values())
        with ExitStack() as stack:
            transports = container.providers["transports"]
            stack.enter_context(transports.override(providers.Object(used)))
            if (extra := container.providers.get("extra_transports")) is not None:
                stack.enter_context(extra.override(providers.Object({})))
            yield

    def _replaced(self, transports: Mapping[type[Consumer], Transport]) -> dict[type, Any]:
        fresh: dict[type, Any] = {
            AMQPTransport: AMQPTransport(),
            SSETransport: SSETransport(),
            PeriodicTransport: self.periodic,
        }
        for transport in transports.values():
            if isinstance(transport, HTTPTransport):
                fresh[type(transport)] = self.http = TrackedHTTPTransport(transport)
        return {base: fresh.get(type(each), each) for base, each in transports.items()}
