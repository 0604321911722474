"""Compare what consumers need with what the broker has, and create what is missing."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from yarl import URL

from workerkit.amqp.binding import bind
from workerkit.amqp.comparison import (
    ALTERNATE,
    TYPE,
    Difference,
    Vanished,
    exchange_differences,
    queue_differences,
)
from workerkit.amqp.declare import (
    Created,
    Unreachable,
    check_exchange,
    ensure_exchange,
    ensure_queue,
    queue_exists,
)
from workerkit.amqp.frames import NO_PERMISSION, NOT_FOUND
from workerkit.amqp.needs import ConsumerQueue, Needs
from workerkit.amqp.queue import Binding, Exchange, Queue
from workerkit.amqp.session import Session, connect
from workerkit.cli.terminal import progress
from workerkit.cli.topology.management import (
    Management,
    NoManagement,
    management,
    management_urls,
)
from workerkit.cli.topology.plan import Item, ItemState, Plan
from workerkit.config.connections import AMQPSettings
from workerkit.errors import BrokerRefused, ConnectionLost, QueueInUse, RunError

_NOT_SEEN = "the management API is needed to see bindings"
_NOT_PERMITTED = "not compared: that needs the permission configure, or the management API"


@asynccontextmanager
async def opened(
    needs: Needs, settings: AMQPSettings, url: str | None
) -> AsyncIterator["BrokerTopology"]:
    """Connect to the broker of *needs*, and to its management API if that is reachable.

    Raises:
        ConfigurationError: The URL is wrong.
        RunError: The broker cannot be reached, or the connection was lost.
    """
    urls = management_urls(settings, url)
    with ExitStack() as stack:
        try:
            async with progress(lambda: f"connection {needs.connection}: connecting"):
                session = await connect(settings, needs.vhost, "topology")
            try:
                async with progress(lambda: f"connection {needs.connection}: connecting"):
                    api, without = await _management(stack, session, needs.vhost, settings, urls)
                broker = BrokerTopology(session, needs, settings.display(needs.vhost), api, without)
                async with progress(broker.progress):
                    yield broker
            finally:
                await session.close()
        except ConnectionLost as error:
            raise RunError(f"connection {needs.connection!r}: {error}") from error


async def _management(
    stack: ExitStack, session: Session, vhost: str, settings: AMQPSettings, urls: Sequence[URL]
) -> tuple[Management | None, str]:
    """Return the management API, or why it cannot be used."""
    opening = management(settings, vhost, urls, session.cluster)
    try:
        return await asyncio.to_thread(stack.enter_context, opening), ""
    except NoManagement as error:
        return None, str(error)


class BrokerTopology:
    """One virtual host of a broker, with what is needed there."""

    def __init__(
        self, session: Session, needs: Needs, address: str, api: Management | None, without: str
    ) -> None:
        self._session = session
        self._needs = needs
        self._api = api
        self._plan = Plan(needs, address, session.version, api.address if api else "", without)
        self._api_in_use = asyncio.Lock()
        self._bound: dict[str, list[dict[str, Any]]] = {}
        self._done, self._doing = 0, "compared"

    def progress(self) -> str:
        """Return how much is done."""
        needs = self._needs
        total = len(needs.exchanges) + len(needs.queues) + len(needs.bindings)
        return f"connection {needs.connection}: {self._done} of {total} {self._doing}"

    async def compare(self) -> Plan:
        """Compare everything, and change nothing.

        Raises:
            ConnectionLost: The session was lost.
        """
        exchanges = await _each(self._turn(self._exchange, self._needs.exchanges.values()))
        queues = await _each(self._turn(self._queue, self._needs.queues))
        missing: set[tuple[str, str]] = {
            (each.kind, each.name)
            for each in (*exchanges, *queues)
            if each.state in (ItemState.MISSING, ItemState.AT_RUN_TIME)
        }
        bindings = []
        for queue, binding in self._needs.bindings:
            bindings.append(await self._binding(queue, binding, missing))
            self._done += 1
        return dataclasses.replace(self._plan, items=[*exchanges, *queues, *bindings])

    async def apply(self, plan: Plan) -> Plan:
        """Create what *plan* shows as missing, as a worker does at its start.

        Bindings that are unknown are created as well: that changes nothing if they exist.

        Raises:
            ConnectionLost: The session was lost.
            RunError: The broker refused something; what was created before stays.
        """
        uses = {each.queue.name: each for each in self._needs.queues}
        bindings = iter(self._needs.bindings)
        self._done, self._doing = 0, "applied"
        done: list[Item] = []
        async with self._session.scratch.turn():
            for item in plan.items:
                pair = next(bindings) if item.kind == "binding" else None
                if item.state is ItemState.MISSING or (pair and item.state is ItemState.UNKNOWN):
                    try:
                        await self._create(item, uses.get(item.name), pair)
                    except BrokerRefused as error:
                        raise RunError(_not_created(item, error, done)) from error
                    item = dataclasses.replace(item, state=ItemState.CREATED)
                done.append(item)
                self._done += 1
        return dataclasses.replace(plan, items=done)

    async def _create(
        self, item: Item, use: ConsumerQueue | None, pair: tuple[Queue, Binding] | None
    ) -> None:
        created = Created()
        if pair is not None:
            for _, error in await bind(self._session, pair[0].name, [pair[1]], created):
                raise error
        elif item.kind == "exchange":
            await ensure_exchange(self._session, self._needs.exchanges[item.name])
        elif use is not None:
            existing = use.needed.existing
            await ensure_queue(self._session, use.queue, "missing", created, existing)

    async def _exchange(self, exchange: Exchange | str) -> Item:
        declared = {}
        if isinstance(exchange, Exchange):
            declared = {
                "type": str(exchange.type),
                "durable": exchange.durable,
                "auto_delete": exchange.auto_delete,
                "internal": exchange.internal,
                "arguments": exchange.declared_arguments,
            }
        item = Item("exchange", str(exchange), declared)
        try:
            await check_exchange(self._session, str(exchange))
        except BrokerRefused as error:
            if error.code == NOT_FOUND and isinstance(exchange, Exchange):
                return dataclasses.replace(item, state=ItemState.MISSING)
            if error.code == NOT_FOUND:
                reason = "does not exist, and no class declares it: write an Exchange"
                return dataclasses.replace(item, state=ItemState.DIFFERS, reason=reason)
            return _refused(item, error)
        if isinstance(exchange, str):
            return item
        item = await _compared(item, exchange_differences(self._session, exchange))
        if self._api is None or item.reason != _NOT_PERMITTED:
            return item
        found = await self._ask(self._api.exchange, exchange.name)
        return _with_reported(item, found) if found else item

    async def _queue(self, use: ConsumerQueue) -> Item:
        queue, existing = use.queue, use.needed.existing
        item = Item(
            "queue",
            queue.name,
            _declared(queue, self._session.version),
            f"{use.needed.purpose} of {use.consumer}",
            is_for_copies=bool(use.needed.instead),
        )
        if use.at_run_time:
            return dataclasses.replace(item, state=ItemState.AT_RUN_TIME, reason=_run_time(queue))
        try:
            if not await queue_exists(self._session, queue):
                return dataclasses.replace(item, state=ItemState.MISSING)
        except (BrokerRefused, QueueInUse) as error:
            return _refused(item, error)
        if not existing.is_plain:
            item = await _compared(item, self._differences(queue, existing))
        if self._api is None:
            return item
        found = await self._ask(self._api.queue, queue.name)
        if found and item.reason == _NOT_PERMITTED:
            item = _with_reported(item, found, any_type=TYPE not in existing.declared_arguments)
        return dataclasses.replace(item, notes=tuple(_policies(found)))

    async def _differences(self, queue: Queue, existing: Queue) -> list[Difference] | None:
        """Compare as `ensure_queue` does: a type that the class does not have may differ."""
        found = await queue_differences(self._session, queue)
        if found and existing != queue and any(each.name == TYPE for each in found):
            return await queue_differences(self._session, existing)
        return found

    async def _binding(self, queue: Queue, binding: Binding, missing: set[tuple[str, str]]) -> Item:
        exchange, arguments = str(binding.exchange), dict(binding.arguments)
        declared = {
            "exchange": exchange,
            "routing_key": binding.routing_key,
            "arguments": arguments,
        }
        item = Item("binding", queue.name, declared)
        if not queue.is_permanent:
            return dataclasses.replace(item, state=ItemState.AT_RUN_TIME, reason=_run_time(queue))
        if ("queue", queue.name) in missing or ("exchange", exchange) in missing:
            return dataclasses.replace(item, state=ItemState.MISSING)
        if self._api is None:
            return dataclasses.replace(item, state=ItemState.UNKNOWN, reason=_NOT_SEEN)
        if queue.name not in self._bound:
            self._bound[queue.name] = await self._ask(self._api.bindings, queue.name)
        there = any(
            (each.get("source"), each.get("routing_key")) == (exchange, binding.routing_key)
            and each.get("arguments", {}) == arguments
            for each in self._bound[queue.name]
        )
        return item if there else dataclasses.replace(item, state=ItemState.MISSING)

    async def _ask(self, question: Callable[[str], Any], name: str) -> Any:
        async with self._api_in_use:
            try:
                return await asyncio.to_thread(question, name)
            except NoManagement as error:
                raise RunError(f"the management API does not answer any more: {error}") from error

    def _turn(
        self, check: Callable[[Any], Awaitable[Item]], every: Iterable[Any]
    ) -> list[Awaitable[Item]]:
        async def turn(each: Any) -> Item:
            async with self._session.scratch.turn():
                item = await check(each)
            self._done += 1
            return item

        return [turn(each) for each in every]


async def _each(checks: Iterable[Awaitable[Item]]) -> list[Item]:
    return list(await asyncio.gather(*checks))


async def _compared(item: Item, comparing: Awaitable[list[Difference] | None]) -> Item:
    try:
        found = await comparing
    except Vanished:
        return dataclasses.replace(item, state=ItemState.MISSING)
    except BrokerRefused as error:
        return _refused(item, error)
    if found is None:
        return dataclasses.replace(item, state=ItemState.UNKNOWN, reason=_NOT_PERMITTED)
    if not found:
        return item
    return dataclasses.replace(item, state=ItemState.DIFFERS, differences=tuple(found))


def _refused(item: Item, error: Exception) -> Item:
    """Return an item that the broker did not show: without permission, or not available."""
    unknown = isinstance(error, Unreachable) or getattr(error, "code", 0) == NO_PERMISSION
    state = ItemState.UNKNOWN if unknown else ItemState.DIFFERS
    return dataclasses.replace(item, state=state, reason=str(error))


def _not_created(item: Item, error: BrokerRefused, done: Iterable[Item]) -> str:
    created = [f"{each.kind} {each.name!r}" for each in done if each.state is ItemState.CREATED]
    before = f"; created before: {', '.join(created)}" if created else ""
    return f"{item.kind} {item.name!r} was not created: {error}{before}"


def _declared(queue: Queue, version: tuple[int, ...]) -> dict[str, Any]:
    return {
        "durable": queue.durable,
        "exclusive": queue.exclusive,
        "auto_delete": queue.auto_delete,
        "arguments": queue.arguments_for(version),
    }


def _run_time(queue: Queue) -> str:
    if queue.per_process:
        return "each process declares its own"
    return "the broker deletes it, so a worker declares it"


def _with_reported(item: Item, found: dict[str, Any], *, any_type: bool = False) -> Item:
    """Return an item, compared with the description that the management API has of it.

    Args:
        any_type: Whether a queue may have any type.
    """
    wanted, have = dict(item.declared), dict(found)
    wanted |= wanted.pop("arguments")
    have |= have.pop("arguments", None) or {}
    if item.kind == "queue":
        have[TYPE] = found.get("type")
        if any_type:
            wanted[TYPE] = have[TYPE]
    names = {*wanted, *(name for name in have if name.startswith("x-") or name == ALTERNATE)}
    differences = tuple(
        Difference(name, have.get(name), wanted.get(name))
        for name in sorted(names)
        if have.get(name) != wanted.get(name)
    )
    state = ItemState.DIFFERS if differences else ItemState.PRESENT
    return dataclasses.replace(item, state=state, reason="", differences=differences)


def _policies(found: dict[str, Any]) -> Iterable[str]:
    effective = found.get("effective_policy_definition")
    names = [
        f"{kind} {found[key]!r}"
        for kind, key in (("policy", "policy"), ("operator policy", "operator_policy"))
        if found.get(key)
    ]
    if names and isinstance(effective, dict):
        values = ", ".join(f"{name} = {value}" for name, value in sorted(effective.items()))
        yield f"{' and '.join(names)}: {values}"
