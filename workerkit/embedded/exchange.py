"""An exchange: its bindings, and the routing of messages."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Union

from workerkit.embedded import table
from workerkit.embedded.errors import Refusal, label
from workerkit.embedded.queue import Queue
from workerkit.embedded.table import Field, Table

_MODES = ("all", "any", "all-with-x", "any-with-x")


def topic_matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Match the words of a routing key: `*` matches one word, `#` any number, also zero.

    It takes at most `len(pattern) * len(words)` steps for any pattern.
    """
    at, word = 0, 0
    retry: tuple[int, int] | None = None  # The last `#`, and the end of the words that it matches.
    while word < len(words):
        if at < len(pattern) and pattern[at] == "#":
            retry = at, word
            at += 1
        elif at < len(pattern) and pattern[at] in ("*", words[word]):
            at, word = at + 1, word + 1
        elif retry is not None:
            retry = retry[0], retry[1] + 1
            at, word = retry[0] + 1, retry[1]
        else:
            return False
    return all(rest == "#" for rest in pattern[at:])


def headers_match(wanted: Table, headers: Table, *, floats_equal_integers: bool = True) -> bool:
    """Match the headers of a message against the arguments of a binding.

    Arguments that begin with `x-` count only in the modes `...-with-x`. An argument without a value
    (`void`) matches any value of the header.

    Args:
        floats_equal_integers: Whether 5 and 5.0 are the same.
    """
    mode = wanted["x-match"].value if "x-match" in wanted else "all"
    results = (
        name in headers
        and (field.type == "void" or _same(field, headers[name], floats_equal_integers))
        for name, field in wanted.items()
        if name != "x-match" and (mode.endswith("-with-x") or not name.startswith("x-"))
    )
    return all(results) if mode.startswith("all") else any(results)


def _same(wanted: Field, found: Field, floats_equal_integers: bool) -> bool:
    if not floats_equal_integers and wanted.is_integer != found.is_integer:
        return False
    return (wanted.type_class, wanted.value) == (found.type_class, found.value)


def check_headers_binding(wanted: Table) -> None:
    """Raise PRECONDITION_FAILED if `x-match` of a headers binding is not one of the modes."""
    field = wanted.get("x-match")
    if field is None:
        return
    if field.type != "longstr":
        raise Refusal(
            "PRECONDITION_FAILED",
            f"Invalid x-match field type {field.type} (value {field}); expected longstr",
        )
    if field.value not in _MODES:
        raise Refusal(
            "PRECONDITION_FAILED",
            f'Invalid x-match field value <<"{field}">>;'
            " expected all, any, all-with-x, or any-with-x",
        )


TYPES = ("direct", "fanout", "topic", "headers")
_MAX_CACHED = 1000

Destination = Union[Queue, "Exchange"]


class Binding(NamedTuple):
    """A binding of a queue or an exchange to an exchange."""

    destination: Destination
    routing_key: str
    arguments: Table


class Exchange:
    """An exchange of one of `TYPES`.

    Attributes:
        floats_equal_integers: In headers, 5 and 5.0 are the same.
        alternate: Name of the exchange for messages that this one cannot route.
        bound: It has had a binding; an auto-delete exchange without one is not deleted.
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
        self._cache: dict[str, tuple[Destination, ...]] = {}

    @property
    def bindings(self) -> Collection[Binding]:
        """All bindings, in the order of their creation."""
        return self._bindings.values()

    def bind(self, binding: Binding) -> None:
        """Add a binding, unless there is an equal one."""
        if self.type == "headers":
            check_headers_binding(binding.arguments)
        self._bindings[_identity(binding)] = binding
        self._cache.clear()
        self.bound = True

    def unbind(self, binding: Binding) -> bool:
        """Remove a binding; return whether it existed."""
        self._cache.clear()
        return self._bindings.pop(_identity(binding), None) is not None

    def unbind_all(self, destination: Destination) -> bool:
        """Remove every binding to *destination*; return whether there was one."""
        gone = [binding for binding in self.bindings if binding.destination is destination]
        for binding in gone:
            self.unbind(binding)
        return bool(gone)

    def destinations(
        self, routing_key: str, headers: Callable[[], Table]
    ) -> tuple[Destination, ...]:
        """Return the destinations of a message; one may occur twice."""
        if self.type == "headers":
            found = headers()
            return tuple(
                binding.destination
                for binding in self.bindings
                if headers_match(
                    binding.arguments, found, floats_equal_integers=self.floats_equal_integers
                )
            )
        known = self._cache.get(routing_key)
        if known is None:
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            known = self._cache[routing_key] = self._matching(routing_key)
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
    """Return the words of a key; an empty key has none."""
    return key.split(".") if key else []


def _identity(binding: Binding) -> tuple[Destination, str, bytes]:
    return binding.destination, binding.routing_key, table.write(binding.arguments)
