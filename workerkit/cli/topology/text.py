"""Plans and permissions as text for people, for programs, and for a shell."""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from workerkit.amqp.comparison import TYPE
from workerkit.cli.topology.plan import Item, Plan, State
from workerkit.safe_text import one_line

_MARKS = {
    State.MISSING: "+",
    State.CREATED: "+",
    State.PRESENT: "=",
    State.DIFFERS: "!",
    State.UNKNOWN: "?",
    State.AT_RUN_TIME: "~",
}
_WORDS = {
    State.CREATED: "created",
    State.MISSING: "to create",
    State.DIFFERS: "different",
    State.UNKNOWN: "unknown",
    State.AT_RUN_TIME: "at run time",
    State.PRESENT: "present",
}
_COLOURS = {"+": "32", "!": "31", "?": "33", "~": "2", "=": "2"}
_WIDEST_NAME = 48


def lines(plans: Iterable[Plan], *, all_items: bool = True) -> Iterator[str]:
    """Yield the lines of plans, each safe for a terminal.

    Args:
        all_items: Include what is present, and what exists only at run time.
    """
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    coloured = coloured and os.environ.get("TERM") != "dumb"
    for plan in plans:
        shown = [
            item
            for item in plan.items
            if all_items or item.state not in (State.PRESENT, State.AT_RUN_TIME)
        ]
        if not shown and not all_items:
            continue
        yield one_line(_head(plan))
        if plan.without:
            yield one_line(f"  without the management API: {plan.without}")
        width = min(max((len(_name(item)) for item in shown), default=0), _WIDEST_NAME)
        for item in shown:
            mark = _MARKS[item.state]
            text = one_line(f"  {mark} {item.kind:<8}  {_name(item):<{width}}  {_detail(item)}")
            yield f"\x1b[{_COLOURS[mark]}m{text.rstrip()}\x1b[0m" if coloured else text.rstrip()
            yield from (one_line(f"      {each}") for each in item.differences)
            yield from (one_line(f"      {each}") for each in item.notes)


def summary(plans: Iterable[Plan]) -> str:
    """Return the numbers of all states on one line."""
    counted = Counter(item.state for plan in plans for item in plan.items)
    numbers = [f"{counted[state]} {word}" for state, word in _WORDS.items() if counted[state]]
    return ", ".join(numbers) or "nothing is needed"


def as_json(plan: Plan) -> dict[str, Any]:
    """Return a plan for JSON."""
    return {
        "connection": plan.needs.connection,
        "vhost": plan.needs.vhost,
        "broker": plan.address,
        "version": ".".join(map(str, plan.version)),
        "management": plan.management or None,
        "without_management": plan.without or None,
        "items": [_item_as_json(item) for item in plan.items],
    }


def _item_as_json(item: Item) -> dict[str, Any]:
    return {
        "kind": item.kind,
        "name": item.name,
        "state": item.state.value,
        "declared": item.declared,
        "purpose": item.purpose or None,
        "reason": item.reason or None,
        "differences": [each._asdict() for each in item.differences],
        "policies": list(item.notes),
    }


def _head(plan: Plan) -> str:
    version = ".".join(map(str, plan.version))
    shown = f" (RabbitMQ {version})" if version else ""
    return f"connection {plan.needs.connection}: {plan.address}{shown}"


def _name(item: Item) -> str:
    return f"{item.declared['exchange']} to {item.name}" if item.kind == "binding" else item.name


def _detail(item: Item) -> str:
    if item.reason:
        return item.reason
    arguments = item.declared.get("arguments", {})
    if item.kind == "binding":
        key = item.declared["routing_key"]
        parts = [f"routing key {key!r}"] if key or not arguments else []
        return ", ".join([*parts, *_pairs(arguments)])
    kind = item.declared.get("type") or arguments.get(TYPE)
    # No class writes the arguments of queues for copies.
    written = {} if item.is_for_copies else arguments
    others = {name: value for name, value in written.items() if name != TYPE}
    return ", ".join(each for each in (kind, item.purpose, *_pairs(others)) if each)


def _pairs(arguments: dict[str, Any]) -> list[str]:
    return [f"{name} = {value!r}" for name, value in arguments.items()]


def quoted(word: str) -> str:
    """Quote a word for a POSIX shell, on one line.

    A word with characters that are not printable has the form `$'...'` of POSIX.1-2024, which bash,
    zsh and ksh know.
    """
    if word.isprintable():
        return shlex.quote(word)
    return f"$'{''.join(map(_escaped, word))}'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    encoded = character.encode(errors="surrogateescape")
    return "".join(f"\\{byte:03o}" for byte in encoded)
