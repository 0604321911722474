"""Format plans as text, as tables and as JSON."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from workerkit.amqp.comparison import TYPE
from workerkit.cli.terminal import Cell, Column, Lines, print_line, print_table
from workerkit.cli.topology.plan import Item, ItemState, Plan
from workerkit.safe_text import one_line

_MARKS = {
    ItemState.MISSING: "+",
    ItemState.CREATED: "+",
    ItemState.PRESENT: "=",
    ItemState.DIFFERS: "!",
    ItemState.UNKNOWN: "?",
    ItemState.AT_RUN_TIME: "~",
}
_WORDS = {
    ItemState.CREATED: "created",
    ItemState.MISSING: "to create",
    ItemState.DIFFERS: "different",
    ItemState.UNKNOWN: "unknown",
    ItemState.AT_RUN_TIME: "at run time",
    ItemState.PRESENT: "present",
}
_STYLES = {
    ItemState.MISSING: "green",
    ItemState.CREATED: "green",
    ItemState.PRESENT: "dim",
    ItemState.DIFFERS: "bold red",
    ItemState.UNKNOWN: "yellow",
    ItemState.AT_RUN_TIME: "dim",
}
_COLUMNS = (Column(), Column(width=len("exchange"), whole=True), Column(), Column())
_WIDEST_NAME = 48


def lines(plans: Iterable[Plan], *, all_items: bool = True) -> Iterator[str]:
    """Yield the lines that a pipe gets for plans.

    Args:
        all_items: Include what is present, and what exists only at run time.
    """
    for plan, items in _shown(plans, all_items):
        yield from map(one_line, _head(plan))
        width = min(max((len(_name(item)) for item in items), default=0), _WIDEST_NAME)
        for item in items:
            mark = _MARKS[item.state]
            text = f"  {mark} {item.kind:<8}  {_name(item):<{width}}  {_detail(item)}"
            yield one_line(text).rstrip()
            yield from (one_line(f"      {each}") for each in _more(item))


def print_tables(plans: Iterable[Plan], *, all_items: bool = True) -> None:
    """Print a table for each plan, for people.

    Args:
        all_items: As for `lines`.
    """
    for plan, items in _shown(plans, all_items):
        title, *reasons = _head(plan)
        print_line(Cell(title, "bold"))
        for reason in reasons:
            print_line(Cell(reason, "dim"))
        print_table(_COLUMNS, map(_cells, items), indent=2)


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


def _shown(plans: Iterable[Plan], all_items: bool) -> Iterator[tuple[Plan, list[Item]]]:
    """Yield the plans with the items to show; one without any only if all are wanted."""
    for plan in plans:
        items = [
            item
            for item in plan.items
            if all_items or item.state not in (ItemState.PRESENT, ItemState.AT_RUN_TIME)
        ]
        if items or all_items:
            yield plan, items


def _cells(item: Item) -> Sequence[Cell | Lines]:
    style = _STYLES[item.state]
    detail, more = Cell(_detail(item), style), [Cell(each) for each in _more(item)]
    start = (Cell(_MARKS[item.state], style), Cell(item.kind, style), Cell(_name(item), style))
    return *start, [each for each in (detail, *more) if each.text] if more else detail


def _more(item: Item) -> list[str]:
    return [*map(str, item.differences), *item.notes]


def _head(plan: Plan) -> list[str]:
    version = ".".join(map(str, plan.version))
    shown = f" (RabbitMQ {version})" if version else ""
    head = [f"connection {plan.needs.connection}: {plan.address}{shown}"]
    return [*head, f"  without the management API: {plan.without}"] if plan.without else head


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
