"""An exchange: bindings, and which of them a message follows."""

from collections.abc import Callable, Collection
from typing import NamedTuple, Union

from workerkit.embedded import table
from workerkit.embedded.matching import check_headers_binding, headers_match, topic_matches
from workerkit.embedded.queue import Queue
from workerkit.embedded.refusals import label
from workerkit.embedded.table import Table

TYPES = ("direct", "fanout", "topic", "headers")
_MOST_REMEMBERED = 1000

Destination = Union[Queue, "Exchange"]


class Binding(NamedTuple):
    """A way from an exchange to a queue or another exchange."""

    destination: Destination
    routing_key: str
    arguments: Table


class Exchange:
    """An exchange of one of `TYPES`.

    Attributes:
        floats_equal_integers: In headers, 5 and 5.0 are the same.
        alternate: Name of the exchange that gets what this one cannot route.
        bound: It had a binding; only then an auto-delete exchange can become unused.
    """

    def __init__(
        self,
        name: str,
        vhost: str,
        type: str,
        arguments: Table,
        *,
        durable: bool = False,
        auto_delete: bool = False,
        internal: bool = False,
        floats_equal_integers: bool = True,
    ) -> None:
        self.name = name
        self.label = label("exchange", name, vhost)
        self.type = type
        self.arguments = arguments
        self.durable = durable
        self.auto_delete = auto_delete
        self.internal = internal
        self.floats_equal_integers = floats_equal_integers
        alternate = arguments.get("alternate-exchange")
        self.alternate: str | None = alternate.value if alternate else None
        self.bound = False
        self._bindings: dict[tuple[Destination, str, bytes], Binding] = {}
        self._remembered: dict[str, tuple[Destination, ...]] = {}

    @property
    def bindings(self) -> Collection[Binding]:
        """All bindings, in the order in which they were made."""
        return self._bindings.values()

    def bind(self, binding: Binding) -> None:
        """Add a binding; the same one again changes nothing."""
        if self.type == "headers":
            check_headers_binding(binding.arguments)
        self._bindings[_identity(binding)] = binding
        self._remembered.clear()
        self.bound = True

    def unbind(self, binding: Binding) -> bool:
        """Remove a binding; whether it was there."""
        self._remembered.clear()
        return self._bindings.pop(_identity(binding), None) is not None

    def unbind_all(self, destination: Destination) -> bool:
        """Remove every binding to something that is gone; whether there was one."""
        gone = [binding for binding in self.bindings if binding.destination is destination]
        for binding in gone:
            self.unbind(binding)
        return bool(gone)

    def destinations(
        self, routing_key: str, headers: Callable[[], Table]
    ) -> tuple[Destination, ...]:
        """Where a message goes; the same destination may come twice."""
        if self.type == "headers":
            found = headers()
            return tuple(
                binding.destination
                for binding in self.bindings
                if headers_match(
                    binding.arguments, found, floats_equal_integers=self.floats_equal_integers
                )
            )
        known = self._remembered.get(routing_key)
        if known is None:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            known = self._remembered[routing_key] = self._matching(routing_key)
        return known

    def _matching(self, routing_key: str) -> tuple[Destination, ...]:
        words = _words(routing_key)
        return tuple(
            binding.destination
            for binding in self.bindings
            if self.type == "fanout"
            or (self.type == "direct" and binding.routing_key == routing_key)
            or (self.type == "topic" and topic_matches(_words(binding.routing_key), words))
        )


def _words(key: str) -> list[str]:
    """The words of a key; an empty key has none."""
    return key.split(".") if key else []


def _identity(binding: Binding) -> tuple[Destination, str, bytes]:
    return binding.destination, binding.routing_key, table.write(binding.arguments)
