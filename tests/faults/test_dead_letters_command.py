"""`workerkit dead-letters` on a real broker: it loses no message (D5 to D8)."""

import asyncio
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pamqp.commands import Basic

from tests.application import Recorder, running
from tests.client import Client, Letter, RawProperties, connected
from tests.command import Application, environment, started, workerkit, write_package
from tests.consumers import collector
from tests.ports import free_port
from tests.proxy import Proxy
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from tests.wire_format import CORRELATION_ID, HEADERS, MESSAGE_ID, array, properties, short, table
from workerkit import AMQPConsumer, AMQPMessage, Reject
from workerkit.testing import embedded_broker

PASSWORD = "hunter22"
PROGRESS = re.compile(r"read \d+ of \d+|\d+ (replayed|purged), \d+ of \d+ read")


def evidence(**more: Any) -> dict[str, Any]:
    """Headers of a dead letter; underscores in the names of *more* become hyphens."""
    values = {
        "queue": "orders",
        "consumer": "OrderPlaced",
        "error": "KeyError",
        "reason": "no such order",
        "attempt": 3,
        "failed_at": "2026-01-31T12:00:00.123+00:00",
        **more,
    }
    return {f"x-workerkit-{name.replace('_', '-')}": value for name, value in values.items()}


async def fill(
    client: Client, *bodies: bytes, headers: dict[str, Any] | None = None, **more: Any
) -> None:
    """Put dead letters into `orders.dlq`, in this order, each with its body as message id."""
    await client.declare("orders", "orders.dlq")
    headers = evidence() if headers is None else headers
    calls = []
    for body in bodies:
        sent = Basic.Properties(
            message_id=body.decode(), delivery_mode=2, headers=dict(headers), **more
        )
        calls.append(client.send("orders.dlq", body, properties=sent))
    await asyncio.gather(*calls)


def dead_letters(command: str, url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `workerkit dead-letters COMMAND URL orders`, and remove reports of progress."""
    done = workerkit("dead-letters", command, url, "orders", *arguments, cwd=Path("/"))
    done.stderr = without_progress(done.stderr)
    return done


def without_progress(text: str) -> str:
    """Return *text* without reports of progress, which depend on the machine."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not PROGRESS.fullmatch(line.rstrip()))


def at(terminal: int, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """Run `workerkit dead-letters ...` with a terminal for its question."""
    return subprocess.run(
        [sys.executable, "-m", "workerkit", "dead-letters", *arguments],
        stdin=terminal,
        capture_output=True,
        env=environment({}),
        timeout=30.0,
        check=False,
    )


def replaying(url: str, *arguments: str) -> AbstractAsyncContextManager[Application]:
    """Run a replay inside the block."""
    return started("dead-letters", "replay", url, "orders", "--yes", *arguments, cwd=Path("/"))


async def emptied(client: Client, rabbit: PrivateRabbit, vhost: str, queue: str) -> list[Letter]:
    """Take and return all messages of a queue."""
    return [await client.take(queue) for _ in range(rabbit.queues(vhost)[queue].ready)]


async def test_a_list(url: str, client: Client) -> None:
    """One line each, oldest first; nothing is removed, and the rest is counted."""
    await fill(client, b"m-1", b"m-2", b"m-3")

    done = dead_letters("list", url, "--limit", "2")
    again = dead_letters("list", url)

    head, first, second, rest = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert head.split()[-1] == "REASON"
    assert first.split() == [
        "2026-01-31", "12:00:00", "OrderPlaced", "KeyError", "3", "0", "m-1", "3",
        "no", "such", "order",
    ]  # fmt: skip
    assert "m-2" in second
    assert rest == "1 more; increase --limit to see all"
    assert [line.split()[6] for line in again.stdout.splitlines()[1:]] == ["m-1", "m-2", "m-3"]


async def test_a_list_as_json_with_filters(url: str, client: Client) -> None:
    """Messages that pass every filter, with evidence, properties and headers."""
    await fill(client, b"old", headers=evidence(failed_at="2025-01-01T00:00:00+00:00"))
    await fill(client, b"other", headers=evidence(error="ValueError"))
    await fill(client, b"m-1", b"m-2", headers=evidence() | {"trace": "t-1"}, priority=3)
    errors = ("--error", "KeyError", "--error", "LookupError")
    filters = (*errors, "--consumer", "order_placed", "--since", "2026-01-01")

    done = dead_letters("list", url, "--json", "--limit", "1", *filters)

    [letter] = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "1 more; increase --limit to see all\n")
    assert letter["message_id"] == "m-1"
    assert letter["evidence"]["reason"] == "no such order"
    assert letter["properties"]["priority"] == 3
    assert letter["headers"] == {"trace": "t-1"}


async def test_show(url: str, client: Client) -> None:
    """The first message, or the one with an id, with traceback and body."""
    await fill(client, b"1", b"2", headers=evidence(traceback="Traceback\n  line"))

    for_people = dead_letters("show", url)
    as_json = dead_letters("show", url, "--id", "2", "--json")
    none = dead_letters("show", url, "--id", "3")

    told = json.loads(as_json.stdout)
    assert "message_id: 1" in for_people.stdout
    assert "\ntraceback:\n  Traceback\n    line\n" in for_people.stdout
    assert for_people.stdout.endswith("\nbody (1 bytes, JSON):\n1\n")
    assert (told["message_id"], told["body"], told["body_encoding"]) == ("2", "2", "utf-8")
    assert (none.returncode, none.stdout) == (1, "")
    assert none.stderr == "no dead letters of 'orders' match (id 3)\n"


async def test_d8_a_replay_keeps_everything_but_the_evidence(
    url: str, client: Client, rabbit: PrivateRabbit, vhost: str
) -> None:
    """A replay keeps the sender's body, headers and properties, and counts replays."""
    headers = {"trace": "t-1", "list": [1, "two"], "float": 1.5}
    await fill(
        client, b"m-1", headers=evidence() | headers, priority=3, correlation_id="c-1", app_id="a",
        content_type="text/plain", message_type="placed", reply_to="back",
    )  # fmt: skip

    done = dead_letters("replay", url, "--yes")
    letter = await client.take("orders")

    kept = letter.properties
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 of 1 dead letters of 'orders' replayed\n"
    assert letter.body == b"m-1"
    assert letter.headers == headers | {"x-workerkit-replays": 1}
    assert (kept.message_id, kept.priority, kept.correlation_id) == ("m-1", 3, "c-1")
    assert (kept.content_type, kept.message_type, kept.reply_to) == ("text/plain", "placed", "back")
    assert (kept.app_id, kept.delivery_mode) == ("a", 2)
    assert rabbit.queues(vhost)["orders.dlq"].ready == 0


async def test_d8_replays_are_counted_from_one_dead_letter_to_the_next(
    url: str, client: Client, rabbit: PrivateRabbit, vhost: str
) -> None:
    """A message that fails after every replay starts at attempt 1, with the number of replays."""
    attempts: list[tuple[int, str]] = []

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            attempts.append((message.attempt, message.routing_key))
            raise Reject("again")

    async with running(url, Orders):
        await client.declare_exchange("shop")
        await client.bind("orders", "shop", "placed")
        await client.send("orders", b"direct")
        await eventually(lambda: len(attempts) == 1)
        for replays in (1, 2):
            await eventually(lambda: rabbit.queues(vhost)["orders.dlq"].ready == 1)
            done = await asyncio.to_thread(dead_letters, "replay", url, "--yes")
            assert done.stdout == "1 of 1 dead letters of 'orders' replayed\n"
            await eventually(partial(_has, attempts, replays + 1))
        letter = await client.take("orders.dlq")

    assert attempts == [(1, "orders")] * 3
    assert letter.evidence["replays"] == 2
    assert letter.evidence["attempt"] == 1


def _has(things: list[Any], count: int) -> bool:
    return len(things) == count


async def test_a_message_that_the_broker_dead_lettered_goes_to_the_queue_that_is_named(
    url: str, client: Client, rabbit: PrivateRabbit, vhost: str
) -> None:
    """A message without workerkit's evidence is replayed too, without the broker's headers."""
    await client.declare("orders.dlq")
    to = {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": "orders.dlq"}
    await client.declare("orders", x_max_length=1, **to)
    await client.send("orders", b"first", b"second")
    await eventually(lambda: rabbit.queues(vhost)["orders.dlq"].ready == 1)

    listed = await asyncio.to_thread(dead_letters, "list", url)
    done = await asyncio.to_thread(dead_letters, "replay", url, "--yes", "--limit", "1")

    assert "dead-lettered by the broker: maxlen in 'orders'" in listed.stdout
    assert done.returncode == 0
    assert (await client.take("orders")).body == b"first"


async def test_where_a_replay_goes(url: str, client: Client) -> None:
    """A replay publishes to the queue in the evidence, from any dead-letter queue."""
    await client.declare("others")
    await fill(client, b"m-1", headers=evidence(queue="others"))

    done = workerkit("dead-letters", "replay", url, "orders.dlq", "--yes", cwd=Path("/"))

    assert done.returncode == 0
    assert (await client.take("others")).body == b"m-1"


async def test_d5_a_dead_letter_that_cannot_be_sent_stays(
    url: str, client: Client, rabbit: PrivateRabbit, vhost: str
) -> None:
    """Exit code 1, and one line with the reason and the number of replayed messages."""
    await fill(client, b"m-1")
    await fill(client, b"m-2", headers=evidence(queue="gone"))

    done = dead_letters("replay", url, "--yes", "--rate", "20")

    [line] = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert line.startswith("stopped: 1 replayed, 2 of 2 read: message 'm-2' to")
    assert "NO_ROUTE" in line
    assert (await client.take("orders.dlq")).body == b"m-2"


async def test_d5_a_queue_that_is_full_takes_what_it_can(
    url: str, client: Client, rabbit: PrivateRabbit, vhost: str
) -> None:
    """The command stops, and every message is in one of the two queues."""
    await client.declare("orders", x_max_length=30, x_overflow="reject-publish")
    await client.declare("orders.dlq")
    bodies = [b"%d" % number for number in range(200)]
    for body in bodies:
        sent = Basic.Properties(headers=evidence(), message_id=body.decode())
        await client.send("orders.dlq", body, properties=sent)

    done = await asyncio.to_thread(dead_letters, "replay", url, "--yes")
    replayed = await emptied(client, rabbit, vhost, "orders")
    stayed = await emptied(client, rabbit, vhost, "orders.dlq")

    [line] = done.stderr.splitlines()
    assert done.returncode == 1
    assert f"stopped: {len(replayed)} replayed" in line
    assert 0 < len(replayed) < 200
    assert sorted(each.body for each in [*replayed, *stayed]) == sorted(bodies)


async def test_a_dry_run(url: str, client: Client, rabbit: PrivateRabbit, vhost: str) -> None:
    """It reports what would be done, changes nothing, and needs no terminal."""
    await fill(client, b"m-1", b"m-2")
    await fill(client, b"m-3", headers=evidence(error="ValueError"))

    done = dead_letters("purge", url, "--dry-run", "--error", "KeyError")
    told = dead_letters("replay", url, "--dry-run", "--json", "--limit", "1")

    assert done.stdout == "2 of 3 dead letters of 'orders' (error KeyError) would be purged\n"
    assert json.loads(told.stdout) == {
        "queue": "orders", "count": 3, "replayed": 1,
        "later": 0, "interrupted": False, "dry_run": True,
    }  # fmt: skip
    assert (done.returncode, told.returncode) == (0, 0)
    assert rabbit.queues(vhost)["orders.dlq"].ready == 3
    assert rabbit.queues(vhost)["orders"].ready == 0


async def test_a_purge(url: str, client: Client, rabbit: PrivateRabbit, vhost: str) -> None:
    """Matching messages up to the limit are deleted; all others stay in place."""
    await fill(client, b"m-1", b"m-2", b"m-3")
    await fill(client, b"m-4", headers=evidence(error="ValueError"))

    done = dead_letters("purge", url, "--yes", "--json", "--error", "KeyError", "--limit", "2")
    left = await emptied(client, rabbit, vhost, "orders.dlq")

    assert done.returncode == 0
    assert json.loads(done.stdout)["purged"] == 2
    assert [each.body for each in left] == [b"m-3", b"m-4"]
    assert rabbit.queues(vhost)["orders"].ready == 0


@pytest.mark.parametrize("command", ["replay", "purge"])
def test_no_terminal_for_the_question(command: str) -> None:
    """Without a terminal and --yes, it is a usage error before any connection."""
    done = dead_letters(command, f"amqp://127.0.0.1:{free_port()}/")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "there is no terminal to ask for confirmation: "
        "add --yes, or --dry-run to see what would be done\n"
    )


@pytest.mark.parametrize(("answer", "code", "left"), [(b"n\n", 1, 3), (b"y\n", 0, 1)])
async def test_the_question(
    url: str, client: Client, rabbit: PrivateRabbit, vhost: str,
    answer: bytes, code: int, left: int,
) -> None:  # fmt: skip
    """It names count and filters; without a yes, nothing is done."""
    await fill(client, b"m-1", b"m-2")
    await fill(client, b"m-3", headers=evidence(error="ValueError"))
    keyboard, terminal = pty.openpty()

    os.write(keyboard, answer)
    done = await asyncio.to_thread(at, terminal, "purge", url, "orders", "--error", "KeyError")
    os.close(keyboard)
    os.close(terminal)

    question = "Delete 2 of 3 dead letters of 'orders' (error KeyError) permanently? [y/N]"
    assert question.encode() in done.stderr
    assert done.returncode == code
    assert rabbit.queues(vhost)["orders.dlq"].ready == left


async def test_no_question_without_messages(url: str, client: Client) -> None:
    """There is no question if no message matches."""
    await fill(client, b"m-1")
    keyboard, terminal = pty.openpty()

    done = await asyncio.to_thread(at, terminal, "purge", url, "orders", "--id", "m-2")
    os.close(keyboard)
    os.close(terminal)

    assert (done.returncode, without_progress(done.stderr.decode())) == (0, "")
    assert done.stdout == b"0 of 1 dead letters of 'orders' (id m-2) purged\n"


async def test_a_rate(url: str, client: Client) -> None:
    """A rate limits messages per second; a long command reports its progress."""
    await fill(client, *(b"%d" % number for number in range(10)))
    began = time.monotonic()

    arguments = ("replay", url, "orders", "--yes", "--rate", "4")
    done = workerkit("dead-letters", *arguments, cwd=Path("/"))

    assert done.stdout == "10 of 10 dead letters of 'orders' replayed\n"
    assert time.monotonic() - began >= 2.25
    assert re.fullmatch(r"\d+ replayed, \d+ of 10 read", done.stderr.splitlines()[0])


async def test_a_signal_stops_between_two_messages(
    url: str, client: Client, rabbit: PrivateRabbit, vhost: str
) -> None:
    """The summary has the number of replayed messages; every message is in one queue."""
    await fill(client, *(b"%d" % each for each in range(20)))
    async with replaying(url, "--rate", "5") as replay:
        await eventually(lambda: rabbit.queues(vhost)["orders"].ready >= 2)
        replay.send(signal.SIGINT)
        code = await replay.ended()
    replayed = rabbit.queues(vhost)["orders"].ready

    assert code == 0
    assert replay.out == [f"interrupted: {replayed} of 20 dead letters of 'orders' replayed"]
    assert 2 <= replayed < 20
    assert rabbit.queues(vhost)["orders.dlq"].ready == 20 - replayed


@pytest.mark.parametrize("arguments", [["list"], ["show"], ["replay", "--yes"]], ids=" ".join)
async def test_a_missing_queue(url: str, arguments: list[str]) -> None:
    """If nothing was dead-lettered, the output names the queue; it is not an error."""
    command, *yes = arguments

    done = dead_letters(command, url, *yes)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("no dead letters: queue 'orders.dlq' on amqp://guest@")
    assert done.stdout.endswith(" does not exist\n")


async def test_an_unavailable_broker(rabbit: PrivateRabbit, vhost: str, client: Client) -> None:
    """Exit code 1 and one line, without the password."""
    rabbit.add_user(f"reader-{vhost}", PASSWORD, vhost, read="nothing")
    await fill(client, b"m-1")

    nowhere = dead_letters("list", f"amqp://u:{PASSWORD}@127.0.0.1:{free_port()}/")
    wrong = dead_letters("list", rabbit.url(vhost, "guest", PASSWORD))
    refused = dead_letters("replay", rabbit.url(vhost, f"reader-{vhost}", PASSWORD), "--yes")

    for done in (nowhere, wrong, refused):
        [line] = done.stderr.splitlines()
        assert (done.returncode, done.stdout) == (1, "")
        assert PASSWORD not in line
    assert "ACCESS_REFUSED" in wrong.stderr
    assert "grant read on 'orders.dlq'" in refused.stderr


@pytest.mark.parametrize("command", ["list", "show", "replay", "purge"])
async def test_a_url_as_an_option(url: str, client: Client, command: str) -> None:
    """Every command accepts it instead of a package; both together are a usage error."""
    await fill(client, b"m-1")
    yes = ["--yes"] if command in ("replay", "purge") else []

    both = workerkit("dead-letters", command, "shop", "orders", "--url", url, *yes, cwd=Path("/"))
    done = workerkit("dead-letters", command, "--url", url, "orders", *yes, cwd=Path("/"))

    assert (both.returncode, both.stdout) == (2, "")
    assert both.stderr == (
        "expected PACKAGE QUEUE, or --url URL QUEUE; found --url and 'shop' and 'orders'\n"
    )
    assert (done.returncode, without_progress(done.stderr)) == (0, "")
    assert "m-1" in done.stdout or "1 of 1 dead letters" in done.stdout


SHOP = """
    from workerkit import AMQPConsumer

    class OrderPlaced(AMQPConsumer):
        queues = ["orders"]
        connection = "other"

        async def handle(self, body: bytes) -> None: ...
"""


async def test_the_connection_of_the_consumer(url: str, client: Client, tmp_path: Path) -> None:
    """Connection and virtual host are those of the consumer of the queue."""
    await fill(client, b"m-1")
    write_package(tmp_path, "shop", consumers=SHOP)
    host, vhost = url.rsplit("/", 1)

    done = workerkit(
        "dead-letters", "list", "shop", "orders",
        cwd=tmp_path,
        WORKERKIT_AMQP__DEFAULT__URL=f"amqp://127.0.0.1:{free_port()}/",
        WORKERKIT_AMQP__OTHER__URL=f"{host}/missing",
        WORKERKIT_CONSUMERS__ORDER_PLACED__VHOST=vhost,
    )  # fmt: skip

    assert (done.returncode, without_progress(done.stderr)) == (0, "")
    assert "m-1" in done.stdout


async def test_the_letters_of_a_consumer_that_was_renamed(
    url: str, client: Client, tmp_path: Path
) -> None:
    """They are found by the old name; if there are none, a similar name is suggested."""
    await fill(client, b"m-1", headers=evidence(consumer="OrderMade"))
    write_package(tmp_path, "shop", consumers=SHOP)

    def listed(name: str) -> "subprocess.CompletedProcess[str]":
        return workerkit(
            "dead-letters", "list", "shop", "orders", "--consumer", name,
            cwd=tmp_path, WORKERKIT_AMQP__OTHER__URL=url,
        )  # fmt: skip

    assert "m-1" in listed("OrderMade").stdout
    assert listed("OrderPlacd").stdout == (
        "no dead letters of 'orders' match (consumer OrderPlacd); "
        "shop has no consumer OrderPlacd; did you mean 'OrderPlaced'?\n"
    )


def _nested(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = array(value)
    return value


HOSTILE = {
    "correlation id": properties(CORRELATION_ID, short(b"\xff" * 255)),
    "message id": properties(MESSAGE_ID, short(b"\xff\xfe" * 100)),
    "name": properties(HEADERS, table((b"\xff" * 128, b"V"))),
    "timestamp": properties(HEADERS, table((b"h", b"T" + b"\xff" * 8))),
    "twice": properties(HEADERS, table((b"h", b"V"), (b"h", b"t\x01"))),
    "replays": properties(HEADERS, table((b"x-workerkit-replays", b"b\xff"))),
    "failed at": properties(HEADERS, table((b"x-workerkit-failed-at", array(b"V")))),
    "deaths": properties(HEADERS, table((b"x-workerkit-error", b"t\x01"))),
    "depth": properties(HEADERS, table((b"h", _nested(40)))),
}


async def test_d1_hostile_headers(url: str, client: Client) -> None:
    """Messages that other clients cannot decode are listed, shown and replayed."""
    await client.declare("orders", "orders.dlq")
    for name, raw in HOSTILE.items():
        await client.send("orders.dlq", name.encode(), properties=RawProperties(raw))
    recorder = Recorder()
    orders, bodies = collector("orders")

    listed = await asyncio.to_thread(dead_letters, "list", url, "--json")
    table_ = await asyncio.to_thread(dead_letters, "list", url)
    done = await asyncio.to_thread(dead_letters, "replay", url, "--yes")
    async with running(url, orders, recorder=recorder):
        await eventually(lambda: len(recorder.settled) == len(HOSTILE))

    assert [len(json.loads(listed.stdout)), len(table_.stdout.splitlines()) - 1] == [
        len(HOSTILE)
    ] * 2
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(bodies) == sorted(name.encode() for name in HOSTILE)
    for record in recorder.settled:
        assert isinstance(record.delivery, AMQPMessage)
        counted = record.delivery.headers.get("x-workerkit-replays")
        assert counted == (None if record.delivery.raw == b"depth" else 1)


async def test_two_thousand_messages(
    url: str, client: Client, rabbit: PrivateRabbit, vhost: str
) -> None:
    """They are listed and replayed within seconds, in order."""
    bodies = [b"%d" % number for number in range(2_000)]
    await fill(client, *bodies)
    began = time.monotonic()

    listed = await asyncio.to_thread(dead_letters, "list", url, "--error", "Other")
    done = await asyncio.to_thread(dead_letters, "replay", url, "--yes")
    seconds = time.monotonic() - began

    assert listed.stdout == "no dead letters of 'orders' match (error Other)\n"
    assert done.stdout == "2000 of 2000 dead letters of 'orders' replayed\n"
    assert rabbit.queues(vhost)["orders"].ready == 2_000
    assert [(await client.take("orders")).body for _ in range(100)] == bodies[:100]
    assert seconds < 60.0


async def test_d6_killed_again_and_again_a_replay_loses_nothing(
    url: str, client: Client, rabbit: PrivateRabbit, vhost: str
) -> None:
    """Killed at any point, a replay may leave a message twice, but loses none."""
    bodies = [b"%d" % number for number in range(1_000)]
    await fill(client, *bodies)
    killed = 0
    while rabbit.queues(vhost)["orders.dlq"].ready:
        enough = rabbit.queues(vhost)["orders"].ready + random.randrange(150)
        async with replaying(url, "--rate", "500") as replay:

            def far_enough(enough: int = enough) -> bool:
                return rabbit.queues(vhost)["orders"].ready > enough or not replay.running

            await eventually(far_enough)
            killed += replay.running
        await eventually(lambda: rabbit.queues(vhost)["orders.dlq"].unacked == 0)
    found = Counter(each.body for each in await emptied(client, rabbit, vhost, "orders"))

    print(f"killed {killed} times, {found.total() - len(found)} duplicates")
    assert set(found) == set(bodies)
    assert killed > 0
    assert found.total() - len(found) <= killed * 50


async def test_d6_a_replay_whose_connections_are_lost_loses_nothing(
    url: str, client: Client, rabbit: PrivateRabbit, vhost: str
) -> None:
    """Exit code 1 with the reason; every message is in at least one of the two queues."""
    bodies = [b"%d" % number for number in range(1_000)]
    await fill(client, *bodies)
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        replaying(proxy.url(url), "--rate", "200") as replay,
    ):
        await eventually(lambda: rabbit.queues(vhost)["orders"].ready > 100)
        proxy.drop()
        code = await replay.ended()
    await eventually(lambda: rabbit.queues(vhost)["orders.dlq"].unacked == 0)
    queues = ("orders", "orders.dlq")
    found = [each.body for name in queues for each in await emptied(client, rabbit, vhost, name)]

    [line] = [each for each in replay.err if not PROGRESS.fullmatch(each)]
    assert code == 1
    assert line.startswith("stopped: "), replay
    assert set(found) == set(bodies)
    assert len(found) <= len(bodies) + 50


async def test_a_replay_does_not_repeat_messages_that_fail_again(url: str, client: Client) -> None:
    """A replay ends, even if a worker dead-letters the messages again immediately."""
    await fill(client, *(b"%d" % number for number in range(50)))
    recorder = Recorder()

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            raise Reject("again")

    async with running(url, Orders, recorder=recorder):
        done = await asyncio.to_thread(dead_letters, "replay", url, "--yes", "--rate", "100")
        await eventually(lambda: len(recorder.settled) == 50)

    assert done.returncode == 0
    assert done.stdout == "50 of 50 dead letters of 'orders' replayed\n"


async def test_messages_that_fail_after_the_start_stay(
    url: str, client: Client, rabbit: PrivateRabbit, vhost: str
) -> None:
    """Messages that fail after the start are not touched; the summary counts them."""
    await fill(client, b"later", headers=evidence(failed_at="2999-01-01T00:00:00+00:00"))
    await fill(client, b"m-1")

    done = dead_letters("purge", url, "--yes")

    assert done.stdout == (
        "1 of 2 dead letters of 'orders' purged; left 1 that failed after the command started\n"
    )
    assert (await client.take("orders.dlq")).body == b"later"


async def test_a_quorum_queue_that_counts_every_read(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """Messages near the limit are replaced with copies, which is reported; none is lost."""
    await client.declare("orders.dlq", x_queue_type="quorum", x_delivery_limit=3)
    for name in ("a", "b"):
        sent = Basic.Properties(message_id=name, headers=evidence())
        await client.send("orders.dlq", name.encode(), properties=sent)
    looks = [await asyncio.to_thread(dead_letters, "list", url) for _ in range(5)]

    for look in looks:
        assert [line.split()[6] for line in look.stdout.splitlines()[1:]] == ["a", "b"]
    said = [number for number, look in enumerate(looks) if "moved 2 messages" in look.stderr]
    assert said == ([3] if rabbit.version < (4, 3) else [])


async def test_on_the_embedded_broker() -> None:
    """The commands work with the in-process broker."""
    async with embedded_broker() as broker, connected(broker.url) as client:
        await fill(client, b"m-1", b"m-2")

        listed = await asyncio.to_thread(dead_letters, "list", broker.url)
        done = await asyncio.to_thread(dead_letters, "replay", broker.url, "--yes", "--limit", "1")
        letter = await client.take("orders")

    assert [line.split()[6] for line in listed.stdout.splitlines()[1:]] == ["m-1", "m-2"]
    assert done.stdout == "1 of 2 dead letters of 'orders' replayed\n"
    assert letter.headers == {"x-workerkit-replays": 1}
