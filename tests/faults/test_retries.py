"""D2, D3, D5, D8, D9. Retries: how often, when, in which order, and what a copy keeps."""

import asyncio
import gc
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from pamqp.commands import Basic

from tests.application import Recorder, running
from tests.client import Client
from tests.rabbit import PrivateRabbit, QueueState
from tests.records import fields
from tests.waiting import eventually
from workerkit import (
    Action,
    AMQPConsumer,
    AMQPMessage,
    Publisher,
    Queue,
    Reject,
    Retry,
    RetryPolicy,
)

Handle = Callable[[AMQPMessage[bytes]], Any]


def consumer(handle: Handle, *queues: str | Queue, **options: Any) -> type[AMQPConsumer]:
    """Return a consumer whose `handle` is *handle*."""

    async def call(self: AMQPConsumer, message: AMQPMessage[bytes]) -> None:
        handle(message)

    attributes = {"queues": list(queues or ["orders"]), "handle": call, **options}
    return type("Orders", (AMQPConsumer,), attributes)


def failing(seen: list[tuple[bytes, int, float]], *bodies: bytes) -> Handle:
    """Return a handler that records its calls, and raises for *bodies*, or for all bodies."""

    def handle(message: AMQPMessage[bytes]) -> None:
        now = asyncio.get_running_loop().time()
        seen.append((message.body, message.attempt, now))
        if not bodies or message.body in bodies:
            raise KeyError("no")

    return handle


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_d2_a_message_that_always_fails_gets_its_attempts_and_is_dead_lettered(
    url: str, client: Client, kind: Any
) -> None:
    """Exactly the attempts and the delays of the policy; other messages are not delayed."""
    seen: list[tuple[bytes, int, float]] = []
    policy = RetryPolicy(delays=(0, 1.0, 2.0), jitter=0)
    orders = consumer(failing(seen, b"bad"), Queue("orders", kind), retry=policy, concurrency=1)
    recorder = Recorder()
    await client.declare("orders", x_queue_type=kind)
    await client.send("orders", b"bad", b"good", b"fine")
    async with running(url, orders, recorder=recorder):
        letter = await client.take("orders.dlq")

    calls = [(attempt, at) for body, attempt, at in seen if body == b"bad"]
    pauses = [later[1] - earlier[1] for earlier, later in pairwise(calls)]
    assert [attempt for attempt, _ in calls] == [1, 2, 3, 4]
    assert [each.outcome.delay for each in recorder.settled if each.action is Action.RETRY] == [
        *(0, 1.0, 2.0)
    ]
    assert pauses[1] >= 0.99
    assert pauses[2] >= 1.99
    assert max(pauses) < 10.0
    assert [body for body, *_ in seen[:4]] == [b"bad", b"bad", b"good", b"fine"]
    assert recorder.actions == ["retry", "retry", "ack", "ack", "retry", "dead_letter"]
    assert letter.body == b"bad"
    assert letter.evidence["attempt"] == 4
    assert letter.evidence["error"] == "KeyError"
    assert letter.evidence["first-failed-at"] < letter.evidence["failed-at"]


def arguments(rabbit: PrivateRabbit, vhost: str, queue: str) -> str:
    """Return the arguments of a queue, as the broker reports them."""
    name = f'rabbit_misc:r(<<"{vhost}">>, queue, <<"{queue}">>)'
    return rabbit.eval(
        f"{{ok, Q}} = rabbit_amqqueue:lookup({name}),"
        ' iolist_to_binary(lists:join(" ", lists:sort([io_lib:format("~ts=~p", [K, V])'
        " || {K, _, V} <- amqqueue:get_arguments(Q)])))"
    )


async def test_d2_the_attempts_of_a_sync_handler(url: str, client: Client) -> None:
    """A handler that runs in a thread has as many attempts as any other."""
    attempts: list[int] = []

    class Orders(AMQPConsumer):
        queues = ["orders"]
        retry = RetryPolicy(delays=(0, 0.2))

        def handle(self, message: AMQPMessage[bytes]) -> None:
            attempts.append(message.attempt)
            raise KeyError("no")

    async with running(url, Orders):
        await client.send("orders", b"a")
        letter = await client.take("orders.dlq")

    assert attempts == [1, 2, 3]
    assert letter.evidence["attempt"] == 3


@pytest.mark.parametrize(
    ("policy", "tries"),
    [
        (RetryPolicy((0, 0.2)), 3),
        (RetryPolicy((0, 0.2), only=(TimeoutError,)), 3),
        (RetryPolicy((0, 0.2), only=(ConnectionError,)), 1),
    ],
)
async def test_d2_a_timeout_is_a_failure(
    url: str, client: Client, policy: RetryPolicy, tries: int
) -> None:
    """A call that takes too long is repeated, unless the policy excludes it."""
    attempts: list[int] = []

    class Orders(AMQPConsumer):
        queues = ["orders"]
        timeout = 0.1
        retry = policy

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            attempts.append(message.attempt)
            await asyncio.sleep(60.0)

    async with running(url, Orders):
        await client.send("orders", b"a")
        letter = await client.take("orders.dlq")

    assert attempts == [1, 2, 3][:tries]
    assert letter.evidence["error"] == "HandlerTimeout"


@pytest.mark.parametrize(
    ("policy", "error", "tries"),
    [
        (RetryPolicy((0, 0), fatal=(LookupError,)), KeyError("k"), 1),
        (RetryPolicy((0, 0), fatal=(LookupError,)), ValueError("v"), 3),
        (RetryPolicy((0, 0), only=(OSError,)), KeyError("k"), 1),
        (RetryPolicy((0, 0), only=(OSError,)), TimeoutError("t"), 3),
        (RetryPolicy((0, 0), only=(OSError,), fatal=(TimeoutError,)), TimeoutError("t"), 1),
        (RetryPolicy(()), KeyError("k"), 1),
        (RetryPolicy((0, 0)), Reject("never"), 1),
    ],
)
async def test_d2_permanent_failures_are_not_retried(
    url: str, client: Client, policy: RetryPolicy, error: Exception, tries: int
) -> None:
    """Fatal exceptions, exceptions that are not among `only`, and `Reject`."""
    attempts: list[int] = []

    def handle(message: AMQPMessage[bytes]) -> None:
        attempts.append(message.attempt)
        raise error

    async with running(url, consumer(handle, retry=policy)):
        await client.send("orders", b"a")
        letter = await client.take("orders.dlq")

    assert attempts == list(range(1, tries + 1))
    assert letter.evidence["attempt"] == tries


async def test_d2_an_invalid_body_is_never_retried(url: str, client: Client) -> None:
    """It is dead-lettered at once, with any policy."""
    recorder = Recorder()

    class Orders(AMQPConsumer):
        queues = ["orders"]
        retry = RetryPolicy(delays=(0, 0.2))

        async def handle(self, body: dict[str, int]) -> None:
            raise AssertionError("never called")

    async with running(url, Orders, recorder=recorder):
        await client.send("orders", b"{")
        letter = await client.take("orders.dlq")

    assert recorder.actions == ["dead_letter"]
    assert letter.evidence["error"] == "InvalidBody"
    assert letter.evidence["attempt"] == 1


@pytest.mark.parametrize(
    ("policy", "after", "queue"),
    [
        (RetryPolicy((0.2, 0.4)), None, "orders.retry.200ms"),
        (RetryPolicy((0.2, 0.4)), 0.1, "orders.retry.200ms"),
        (RetryPolicy((0.2, 0.4)), 0.3, "orders.retry.400ms"),
        (RetryPolicy((0.2, 0.4)), 7, "orders.retry.15s"),
        (None, None, "orders.retry.1s"),
        (None, 61, "orders.retry.300s"),
        (None, 3601, "orders.retry.7200s"),
    ],
)
@pytest.mark.parametrize("how", ["raises", "asks", "asks, then raises"])
async def test_d2_the_handler_sets_the_delay(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    policy: RetryPolicy | None,
    after: float | None,
    queue: str,
    how: str,
) -> None:
    """`Retry` and `message.retry` round up to a delay of the policy, else to a default one."""
    if policy is not None:
        policy = RetryPolicy(policy.delays, fatal=(KeyError,), jitter=0)

    def handle(message: AMQPMessage[bytes]) -> None:
        if message.attempt > 1:
            return
        if how == "raises":
            raise Retry(after=after)
        message.retry(after=after)
        if how == "asks, then raises":
            raise KeyError("no")

    recorder = Recorder()
    async with running(url, consumer(handle, retry=policy), recorder=recorder):
        await client.send("orders", b"a")
        await eventually(lambda: recorder.settled)
        used = arguments(rabbit, vhost, queue)
        delay = recorder.settled[0].outcome.delay

    assert recorder.actions[0] == "retry"
    assert f"x-message-ttl={round(delay * 1000)}" in used.split()


async def test_d2_without_a_policy_retries_are_not_limited(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """After a thousand attempts `retry` still works; an exception is not retried."""
    recorder = Recorder()
    async with running(url, consumer(lambda message: message.retry(1)), recorder=recorder):
        sent = Basic.Properties(headers={"x-workerkit-attempt": 1000})
        await client.send("orders", b"a", properties=sent)
        await eventually(lambda: len(recorder.settled) == 2)
        dead = rabbit.queues(vhost)["orders.dlq"]

    assert recorder.actions[:2] == ["retry", "retry"]
    assert dead.ready == 0


async def test_d2_a_handler_may_change_the_headers(url: str, client: Client) -> None:
    """A handler that removes headers before it forwards a message does not change the message."""
    attempts: list[int] = []

    def handle(message: AMQPMessage[bytes]) -> None:
        attempts.append(message.attempt)
        message.headers.clear()
        message.headers["x-workerkit-attempt"] = 7
        raise KeyError("no")

    async with running(url, consumer(handle, retry=RetryPolicy((0, 0.1), jitter=0))):
        await client.send("orders", b"a")
        letter = await client.take("orders.dlq")

    assert attempts == [1, 2, 3]
    assert letter.evidence["attempt"] == 3


async def test_d3_the_delivery_limit_counts_even_if_a_handler_changes_the_headers(
    url: str, client: Client
) -> None:
    """The message is dead-lettered, with the exception, before the broker would drop it."""

    def handle(message: AMQPMessage[bytes]) -> None:
        message.headers.clear()
        raise KeyError("no")

    async with running(url, consumer(handle, Queue("orders", "quorum", delivery_limit=1))):
        await client.send("orders", b"a")
        letter = await client.take("orders.dlq")

    assert letter.evidence["error"] == "KeyError"


async def test_d2_attempts_are_those_of_one_queue(url: str, client: Client) -> None:
    """A message that is forwarded with all headers, or read from a `.dlq`, is at attempt 1."""
    seen: list[tuple[str, int, str]] = []
    policy = RetryPolicy(delays=(0.1,), jitter=0)

    class Orders(AMQPConsumer):
        queues = ["orders"]
        retry = policy

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            seen.append((message.queue, message.attempt, message.routing_key))
            if message.attempt == 2:
                await self.publisher.publish(message.raw, "others", headers=message.headers)
            raise KeyError("no")

    def note(message: AMQPMessage[bytes]) -> None:
        seen.append((message.queue, message.attempt, message.routing_key))
        raise KeyError("no")

    others = type("Others", (consumer(note, "others", "orders.dlq", retry=policy),), {})
    async with running(url, Orders, others):
        await client.send("orders", b"a")
        letters = [await client.take(f"{name}.dlq") for name in ("others", "orders.dlq")]

    assert sorted(seen) == [
        *(("orders", attempt, "orders") for attempt in (1, 2)),
        *(("orders.dlq", attempt, "orders") for attempt in (1, 2)),
        *(("others", attempt, "others") for attempt in (1, 2)),
    ]
    assert [each.evidence["attempt"] for each in letters] == [2, 2]


# The column is text, which `traceback` adds to a number.
WRONG_PLACE: Any = ("t.html", 1, "3", "{{ x")


class Unspeakable(Exception):
    """An exception that raises when its cause is read."""

    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise RuntimeError("no cause")


@pytest.mark.parametrize("error", [SyntaxError("bad", WRONG_PLACE), Unspeakable("bad")], ids=type)
async def test_d2_an_exception_that_cannot_be_formatted(
    url: str, client: Client, error: Exception
) -> None:
    """It has as many attempts as others; the dead letter has the evidence that can be read."""
    calls: list[int] = []

    def handle(message: AMQPMessage[bytes]) -> None:
        calls.append(message.attempt)
        raise error

    async with running(url, consumer(handle, retry=RetryPolicy((0,)))):
        await client.send("orders", b"a")
        letter = await client.take("orders.dlq")

    assert calls == [1, 2]
    assert letter.evidence["error"] == type(error).__qualname__
    assert "in handle" in letter.evidence["traceback"]


async def test_d2_the_last_attempt_cannot_request_another(url: str, client: Client) -> None:
    """With a policy, `Retry` counts like any failure."""
    attempts: list[int] = []

    def handle(message: AMQPMessage[bytes]) -> None:
        attempts.append(message.attempt)
        raise Retry("not yet", after=0.1)

    async with running(url, consumer(handle, retry=RetryPolicy((0.2, 0.2)))):
        await client.send("orders", b"a")
        letter = await client.take("orders.dlq")

    assert attempts == [1, 2, 3]
    assert letter.evidence["reason"] == "not yet"
    assert letter.evidence["error"] == "Retry"
    assert "traceback" not in letter.evidence


@pytest.mark.parametrize("signal", [Reject, Retry])
async def test_d2_the_cause_of_reject_and_retry_is_kept(
    url: str, client: Client, signal: type[Reject | Retry]
) -> None:
    """The dead letter has class and traceback of the cause, and the reason of the signal."""

    def handle(message: AMQPMessage[bytes]) -> None:
        try:
            raise OSError("refused")
        except OSError as error:
            raise signal("the carrier is closed") from error

    async with running(url, consumer(handle, retry=RetryPolicy((0,)))):
        await client.send("orders", b"a")
        letter = await client.take("orders.dlq")

    assert letter.evidence["error"] == "OSError"
    assert letter.evidence["reason"] == "the carrier is closed"
    assert 'raise OSError("refused")' in letter.evidence["traceback"]


async def test_d2_a_batch_of_messages_with_different_attempts(url: str, client: Client) -> None:
    """Each has its own attempt and result; only those that need one get an immediate retry."""
    recorder = Recorder()
    batches: list[list[tuple[bytes, int]]] = []

    class Orders(AMQPConsumer):
        queues = ["orders"]
        batch_size = 4
        batch_interval = 60.0
        retry = RetryPolicy(delays=(0, 60, 60))

        async def handle(self, messages: list[AMQPMessage[int]]) -> None:
            batches.append([(each.raw, each.attempt) for each in messages])
            for message in messages:
                if message.body == 1:
                    message.accept()
            raise KeyError("no")

    def tried(attempt: int) -> Basic.Properties:
        return Basic.Properties(headers={"x-workerkit-attempt": attempt})

    async with running(url, Orders, recorder=recorder):
        await client.send("orders", b"1", b"invalid", b"2")
        await client.send("orders", b"3", properties=tried(4))
        await eventually(lambda: len(recorder.settled) == 5)
        letters = [await client.take("orders.dlq") for _ in range(2)]

    actions = [(each.delivery.raw, each.action) for each in recorder.settled]
    assert batches == [[(b"1", 1), (b"2", 1), (b"3", 4)], [(b"2", 2)]]
    assert actions[0] == (b"1", Action.ACK)
    assert sorted(actions[1:]) == [
        (b"2", Action.RETRY),
        (b"2", Action.RETRY),
        (b"3", Action.DEAD_LETTER),
        (b"invalid", Action.DEAD_LETTER),
    ]
    assert {each.body: each.evidence["attempt"] for each in letters} == {b"3": 4, b"invalid": 1}


async def test_d2_immediate_retries_of_a_batch_delay_no_other_message(
    url: str, client: Client
) -> None:
    """A message is settled before others of its batch are tried again."""
    again = asyncio.Event()
    gate = asyncio.Event()

    class Orders(AMQPConsumer):
        queues = ["orders"]
        batch_size = 2
        batch_interval = 60.0
        retry = RetryPolicy(delays=(0,))

        async def handle(self, messages: list[AMQPMessage[bytes]]) -> None:
            if messages[0].attempt == 2:
                again.set()
                await gate.wait()
                return
            raise KeyError("no")

    async with running(url, Orders):
        sent = Basic.Properties(headers={"x-workerkit-attempt": 2})
        await client.send("orders", b"first")
        await client.send("orders", b"last", properties=sent)
        try:
            await again.wait()
            letter = await client.take("orders.dlq")
        finally:
            gate.set()

    assert letter.body == b"last"


async def test_f3_a_batch_that_is_cancelled_between_two_attempts(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """At a stop, settled messages stay settled; those with immediate retries are requeued."""
    again = asyncio.Event()

    class Orders(AMQPConsumer):
        queues = ["orders"]
        batch_size = 2
        batch_interval = 60.0
        retry = RetryPolicy(delays=(0, 60))

        async def handle(self, messages: list[AMQPMessage[bytes]]) -> None:
            if len(messages) == 1:
                again.set()
                await asyncio.sleep(60.0)
            raise KeyError("no")

    gc.collect()  # warnings of other tests
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        async with running(url, Orders, shutdown_grace=0.5):
            sent = Basic.Properties(headers={"x-workerkit-attempt": 2})
            await client.send("orders", b"first")
            await client.send("orders", b"later", properties=sent)
            await again.wait()
            await eventually(lambda: rabbit.queues(vhost)["orders.retry.60s"].ready == 1)
        gc.collect()

    assert [str(each.message) for each in warned] == []
    await eventually(lambda: rabbit.queues(vhost)["orders"].ready == 1)
    assert rabbit.queues(vhost)["orders.retry.60s"].ready == 1
    assert (await client.take("orders")).body == b"first"


async def test_d2_pauses_in_place_of_a_batch_do_not_add_up(url: str, client: Client) -> None:
    """The messages of a stream are retried after one pause, also if many fail together."""
    loop = asyncio.get_running_loop()
    calls: list[float] = []

    class Orders(AMQPConsumer):
        queues = [Queue("orders", "stream", stream_offset="first")]
        batch_size = 10
        retry = RetryPolicy(delays=(0.4,), jitter=0)

        async def handle(self, messages: list[AMQPMessage[bytes]]) -> None:
            calls.append(loop.time())
            if len(calls) == 1:
                raise KeyError("no")

    async with running(url, Orders):
        await client.send("orders", *[b"x"] * 10)
        await eventually(lambda: len(calls) == 2)

    assert 0.3 <= calls[1] - calls[0] < 3.5


async def test_d2_a_retry_returns_to_its_own_queue(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """A consumer of several queues has retries and dead letters for each of them."""
    seen: list[tuple[str, bytes, int]] = []

    def handle(message: AMQPMessage[bytes]) -> None:
        seen.append((message.queue, message.body, message.attempt))
        raise KeyError("no")

    both = consumer(handle, "a", Queue("b", "quorum"), retry=RetryPolicy((0.2,)))
    async with running(url, both):
        await client.send("a", b"of a")
        await client.send("b", b"of b")
        letters = [await client.take("a.dlq"), await client.take("b.dlq")]
        await eventually(lambda: not any(each.ready for each in rabbit.queues(vhost).values()))

    assert sorted(seen) == [
        *(("a", b"of a", attempt) for attempt in (1, 2)),
        *(("b", b"of b", attempt) for attempt in (1, 2)),
    ]
    assert [each.body for each in letters] == [b"of a", b"of b"]


async def test_d2_names_and_arguments_of_the_queues(
    rabbit: PrivateRabbit, vhost: str, url: str
) -> None:
    """One queue for each delay, which keeps a message until its own queue has accepted it."""
    policy = RetryPolicy(delays=(0, 0.3, 1.5, 5, 60, 5))
    queues = (Queue("plain", retry_type="classic"), "safe")
    async with running(url, consumer(lambda message: None, *queues, retry=policy)):
        names = sorted(rabbit.queues(vhost))
        plain = arguments(rabbit, vhost, "plain.retry.300ms")
        safe = arguments(rabbit, vhost, "safe.retry.5s")

    suffixes = ["", ".dlq", ".retry.1500ms", ".retry.300ms", ".retry.5s", ".retry.60s"]
    assert names == [name + suffix for name in ("plain", "safe") for suffix in suffixes]
    assert plain.split() == [
        "x-dead-letter-exchange=<<>>",
        'x-dead-letter-routing-key=<<"plain">>',
        "x-message-ttl=300",
        'x-queue-type=<<"classic">>',
    ]
    assert safe.split() == [
        "x-dead-letter-exchange=<<>>",
        'x-dead-letter-routing-key=<<"safe">>',
        'x-dead-letter-strategy=<<"at-least-once">>',
        "x-message-ttl=5000",
        'x-overflow=<<"reject-publish">>',
        'x-queue-type=<<"quorum">>',
    ]


# D9


async def test_d9_a_short_delay_does_not_wait_behind_a_long_one(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """A delay of 300 ms is kept while other messages wait for a minute."""
    loop = asyncio.get_running_loop()
    calls: list[tuple[bytes, float]] = []

    def handle(message: AMQPMessage[bytes]) -> None:
        calls.append((message.body, loop.time()))
        if message.attempt == 1:
            raise Retry(after=60 if message.body == b"long" else 0.3)

    policy = RetryPolicy(delays=(0.3, 60), jitter=0)
    async with running(url, consumer(handle, retry=policy)):
        await client.send("orders", *[b"long"] * 5, b"short")
        await eventually(lambda: len(calls) == 7)
        await eventually(lambda: rabbit.queues(vhost)["orders.retry.60s"].ready == 5)

    first, second = [at for body, at in calls if body == b"short"]
    assert 0.25 <= second - first < 10.0


async def test_d9_a_delay_that_a_handler_requests_is_not_shortened(
    url: str, client: Client
) -> None:
    """Jitter applies to the delays of the policy only: `retry(after=1)` waits for at least 1 s."""
    loop = asyncio.get_running_loop()
    calls: list[float] = []

    def handle(message: AMQPMessage[bytes]) -> None:
        calls.append(loop.time())
        if message.attempt == 1:
            raise Retry(after=1)

    policy = RetryPolicy(delays=(1,), jitter=0.95)
    async with running(url, consumer(handle, retry=policy)):
        await client.send("orders", b"a")
        await eventually(lambda: len(calls) == 2)

    assert calls[1] - calls[0] >= 0.99


async def test_d9_jitter_keeps_within_its_bounds(url: str, client: Client) -> None:
    """No message is retried too early, and none later than without jitter."""
    loop = asyncio.get_running_loop()
    calls: dict[bytes, list[float]] = {}

    def handle(message: AMQPMessage[bytes]) -> None:
        calls.setdefault(message.body, []).append(loop.time())
        if message.attempt == 1:
            raise KeyError("not yet")

    policy = RetryPolicy(delays=(3.0,), jitter=0.8)
    async with running(url, consumer(handle, retry=policy)):
        await client.send("orders", *(b"%d" % number for number in range(30)))
        await eventually(lambda: sum(map(len, calls.values())) == 60)

    pauses = sorted(second - first for first, second in calls.values())
    assert pauses[0] >= 0.6
    assert pauses[-1] < 8.0


# C4


@pytest.mark.parametrize(
    ("delays", "tries"),
    [((0, 0, 5), None), ((0, 0, 0, 5), 4), ((5, 0, 0, 0), 4), ((5, 5, 5), None)],
)
async def test_c4_immediate_retries_add_up(
    url: str, caplog: pytest.LogCaptureFixture, delays: tuple[float, ...], tries: int | None
) -> None:
    """There is a WARNING at the start if they may take longer than the broker waits."""
    slow = consumer(lambda message: None, timeout=10.0, retry=RetryPolicy(delays))
    async with running(url, slow, consumer_timeout=35.0):
        warnings = fields(caplog, "timeout is longer than the broker waits for an acknowledgement")

    assert [(each["timeout"], each["tries_in_place"]) for each in warnings] == (
        [(10.0, tries)] if tries else []
    )


# F5


async def test_f5_a_stop_does_not_wait_for_retries(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """Retries keep waiting in the broker, and a pause of the process ends."""
    loop = asyncio.get_running_loop()
    recorder = Recorder()

    def handle(message: AMQPMessage[bytes]) -> None:
        raise KeyError("no")

    policy = RetryPolicy(delays=(60,))
    streamed = Queue("events", "stream", stream_offset="first")
    async with running(url, consumer(handle, "orders", streamed, retry=policy), recorder=recorder):
        await client.send("orders", b"a")
        await client.send("events", b"b")
        await eventually(lambda: len(recorder.settled) == 2)
        began = loop.time()
    seconds = loop.time() - began

    assert seconds < 4.5
    await eventually(lambda: rabbit.queues(vhost)["orders.retry.60s"] == QueueState(1, 0, 0))
    assert rabbit.queues(vhost)["orders.dlq"].ready == 0
