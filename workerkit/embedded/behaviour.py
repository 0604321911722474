"""Differences between versions of RabbitMQ: one object for each supported version."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from workerkit.embedded.counting import Counting, Counting40, Counting43, Counting310
from workerkit.embedded.order import Backlog, RequeuedFirst, RequeuedFirstInTurns, RequeuedLast
from workerkit.errors import ConfigurationError

_AMQP_091 = b"AMQP\x00\x00\x09\x01"
_AMQP_10_SASL = b"AMQP\x03\x01\x00\x00"
_MIB = 2**20
_NORMAL_PRIORITY, _HIGHEST_PRIORITY = 4, 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """The properties in which one version of RabbitMQ differs from others.

    Attributes:
        release: The version in the server properties of `connection.start`.
        mechanisms: SASL mechanisms for the login.
        unknown_protocol_reply: The answer to a client that sends another protocol header.
        smallest_frame: The smallest `frame_max` of a client, in bytes.
        max_message: The largest body, in bytes.
        unknown_exchange_type: Reply code for an unknown exchange type.
        floats_equal_integers: In headers exchanges, 5 and 5.0 are the same.
        sorts_headers: Headers arrive sorted by name.
        reports_queue_type: A queue that was declared without a type has `x-queue-type` as well.
        classic_leader_locator: Classic queues may have `x-queue-leader-locator`.
        locators: Its values.
        queue_versions: Values of `x-queue-version`.
        master_locator: `x-queue-master-locator` is permitted.
        checks_consumer_timeout: `x-consumer-timeout` has to be a number, of a quorum queue.
        delivery_limit: The limit of a quorum queue that is declared without one.
        negative_is_unlimited: A delivery limit below zero means none; else the first requeue
            exceeds it.
        counting: How deliveries are counted.
        backlog: The order in a quorum queue that has a delivery limit.
        unlimited_backlog: The order in a quorum queue that has none.
        priority: Maps the priority of a message to that in a quorum queue; 0 is normal.
        global_prefetch: A prefetch count may apply to a whole channel, not to each consumer.
        routes_replies: A publish to `amq.rabbitmq.reply-to.*` always counts as routed.
        discards_client_deaths: Dead letters drop an `x-death` that a client wrote, keep `CC`, and
            have `x-last-death-*` headers.
    """

    release: str
    mechanisms: bytes
    unknown_protocol_reply: bytes
    smallest_frame: int
    max_message: int
    unknown_exchange_type: str
    floats_equal_integers: bool
    sorts_headers: bool
    reports_queue_type: bool
    classic_leader_locator: bool
    locators: frozenset[str]
    queue_versions: tuple[int, ...]
    master_locator: bool
    checks_consumer_timeout: bool
    delivery_limit: int | None
    negative_is_unlimited: bool
    counting: Counting
    backlog: type[Backlog[Any]]
    unlimited_backlog: type[Backlog[Any]]
    priority: Callable[[int], int]
    global_prefetch: bool
    routes_replies: bool
    discards_client_deaths: bool

    def reply_to_protocol(self, protocol: bytes) -> bytes:
        """Return the reply to an unsupported protocol header."""
        # A header of AMQP 0 with a revision from 9 on is always answered with 0-9-1.
        near = protocol.startswith(b"AMQP\x00\x00") and protocol[6] >= _AMQP_091[6]
        return _AMQP_091 if near else self.unknown_protocol_reply


def behaviour_of(version: str) -> Behaviour:
    """Return the behaviour of a version.

    Raises:
        ConfigurationError: The version is not supported.
    """
    behaviour = BEHAVIOURS.get(version)
    if behaviour is None:
        known = ", ".join(f'"{each}"' for each in BEHAVIOURS)
        raise ConfigurationError(
            f"the embedded broker cannot behave as RabbitMQ {version!r}: it supports {known}"
        )
    return behaviour


def _one_priority(priority: int) -> int:
    return 0


def _two_priorities(priority: int) -> int:
    return 1 if priority > _NORMAL_PRIORITY else 0


def _all_priorities(priority: int) -> int:
    return min(priority, _HIGHEST_PRIORITY) - _NORMAL_PRIORITY


_RABBITMQ_310 = Behaviour(
    release="3.10.8",
    mechanisms=b"PLAIN AMQPLAIN",
    unknown_protocol_reply=_AMQP_091,
    smallest_frame=4096,
    max_message=128 * _MIB,
    unknown_exchange_type="COMMAND_INVALID",
    floats_equal_integers=True,
    sorts_headers=False,
    reports_queue_type=False,
    classic_leader_locator=False,
    locators=frozenset(("client-local", "balanced", "random", "least-leaders")),
    queue_versions=(1, 2),
    master_locator=True,
    checks_consumer_timeout=False,
    delivery_limit=None,
    negative_is_unlimited=False,
    counting=Counting310(),
    backlog=RequeuedFirst,
    unlimited_backlog=RequeuedLast,
    priority=_one_priority,
    global_prefetch=True,
    routes_replies=False,
    discards_client_deaths=False,
)
_RABBITMQ_40 = replace(
    _RABBITMQ_310,
    release="4.0.5",
    mechanisms=b"ANONYMOUS PLAIN AMQPLAIN",
    unknown_protocol_reply=_AMQP_10_SASL,
    max_message=16 * _MIB,
    unknown_exchange_type="PRECONDITION_FAILED",
    floats_equal_integers=False,
    sorts_headers=True,
    reports_queue_type=True,
    classic_leader_locator=True,
    locators=_RABBITMQ_310.locators | {"min-masters"},
    delivery_limit=20,
    negative_is_unlimited=True,
    counting=Counting40(),
    backlog=RequeuedFirstInTurns,
    unlimited_backlog=RequeuedFirstInTurns,
    priority=_two_priorities,
    discards_client_deaths=True,
)
_RABBITMQ_43 = replace(
    _RABBITMQ_40,
    release="4.3.6",
    smallest_frame=8192,
    queue_versions=(2,),
    master_locator=False,
    checks_consumer_timeout=True,
    counting=Counting43(),
    backlog=RequeuedFirst,
    unlimited_backlog=RequeuedFirst,
    priority=_all_priorities,
    global_prefetch=False,
    routes_replies=True,
)
BEHAVIOURS = {"3.10": _RABBITMQ_310, "4.0": _RABBITMQ_40, "4.3": _RABBITMQ_43}
LATEST = "4.3"
