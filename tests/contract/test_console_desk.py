"""The desk of dead letters on a real RabbitMQ: looking, searching, replaying, deleting."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pytest
from pydantic import BaseModel

from tests.application import container_of, running
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from workerkit import AMQPConsumer
from workerkit.console.dead_letters import deleting
from workerkit.console.dead_letters.desk import Desk
from workerkit.console.dead_letters.model import (
    DeleteRequest,
    Edit,
    Job,
    Letter,
    LetterFilter,
    LetterSelection,
    QueueRef,
    ReplayRequest,
)
from workerkit.console.dead_letters.reading import DeskError
from workerkit.console.model import Operator
from workerkit.console.reports import QueueReport
from workerkit.delivery import Action

ALICE = Operator(user="alice", role="admin", address="192.0.2.1")
REF = QueueRef(queue="orders")
ALL = LetterSelection(everything=True)
LIMIT = {"x-queue-type": "quorum", "x-delivery-limit": 20}


@asynccontextmanager
async def desk(url: str) -> AsyncIterator[Desk]:
    """Open a desk inside the block."""
    opened = Desk(container_of(url).settings(), [], None, lambda *_: None)
    try:
        yield opened
    finally:
        await opened.close()


async def fill(
    url: str, count: int, *, arguments: Mapping[str, Any] | None = None, size: int = 0
) -> None:
    """Put dead letters into `orders.dlq`, as workerkit writes them."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        await channel.declare_queue("orders", durable=True)
        await channel.declare_queue("orders.dlq", durable=True, arguments=dict(arguments or {}))
        for start in range(0, count, 500):
            await asyncio.gather(
                *(
                    channel.default_exchange.publish(letter(number, size), "orders.dlq")
                    for number in range(start, min(start + 500, count))
                )
            )


def letter(number: int, size: int = 0) -> aio_pika.Message:
    """Return one dead letter; each tenth has another error."""
    error = "KeyError" if number % 10 else "ValueError"
    trace = f'Traceback:\n  File "/app/shop/orders.py", line {number % 10 + 1}, in handle\n{error}'
    headers: dict[str, Any] = {
        "tenant": f"t{number % 3}",
        "x-workerkit-queue": "orders",
        "x-workerkit-consumer": "Orders",
        "x-workerkit-error": error,
        "x-workerkit-reason": f"no price for order {number}",
        "x-workerkit-traceback": trace,
        "x-workerkit-failed-at": f"2026-11-30T12:{number % 60:02}:00.000+00:00",
        "x-workerkit-attempt": 1,
    }
    body = json.dumps({"id": number, "note": "x" * size}).encode()
    return aio_pika.Message(
        body, headers=headers, message_id=f"m{number}", content_type="application/json"
    )


async def ended(opened: Desk, job: Job, deadline: float = 60.0) -> Job:
    """Wait until a job has ended, or can be undone."""
    await eventually(lambda: opened.job(job.id).state != "running", deadline)
    return opened.job(job.id)


async def every(opened: Desk, condition: LetterFilter, limit: int = 200) -> list[Letter]:
    """Return all dead letters that match, page by page."""
    found: list[Letter] = []
    position: int | None = 0
    while position is not None:
        page = await opened.page(REF, condition, position, limit)
        found += page.letters
        position = page.next
    return found


def ready(rabbit: PrivateRabbit, vhost: str, queue: str = "orders.dlq") -> int:
    """Return the ready messages, if none is held; else -1."""
    state = rabbit.queues(vhost)[queue]
    return state.ready if state.unacked == 0 else -1


@pytest.mark.parametrize(
    ("arguments", "count"),
    [({}, 10_000), ({"x-queue-type": "quorum"}, 2_000)],
    ids=["classic", "quorum"],
)
async def test_many_dead_letters(
    rabbit: PrivateRabbit, vhost: str, arguments: dict[str, Any], count: int
) -> None:
    """Pages, search and groups find all of them, and leave them where they are."""
    await fill(rabbit.url(vhost), count, arguments=arguments)
    async with desk(rabbit.url(vhost)) as opened:
        page = await opened.page(REF, LetterFilter(), count - 50, 100)
        assert [each.message_id for each in page.letters][::49] == [
            f"m{count - 50}",
            f"m{count - 1}",
        ]
        assert (page.next, page.count) == (None, count)

        groups = await opened.groups(REF, LetterFilter())
        assert (groups.scanned, groups.others, len(groups.groups)) == (count, 0, 10)
        assert sum(each.count for each in groups.groups) == count
        assert {each.place for each in groups.groups} == {f"orders.py:{n}" for n in range(1, 11)}

        one = LetterFilter(message_id="m1777")
        (found,) = await every(opened, one)
        assert (found.reason, found.place) == ("no price for order 1777", "orders.py:8")
        assert len(
            await every(opened, LetterFilter(error="ValueError", header="tenant=t1"))
        ) == sum(number % 10 == 0 and number % 3 == 1 for number in range(count))
        assert len(await every(opened, LetterFilter(text="ORDER 123"))) == 11
        detail = await opened.letter(REF, found.key, found.position)
        assert detail.text is not None
        assert json.loads(detail.text)["id"] == 1777
        assert detail.headers["tenant"] == "t1"
        await eventually(lambda: ready(rabbit, vhost) == count)


async def test_looking_never_destroys(rabbit: PrivateRabbit, vhost: str) -> None:
    """FR4: a quorum queue with a delivery limit keeps all messages, however often one looks."""
    await fill(rabbit.url(vhost), 30, arguments=LIMIT)
    async with desk(rabbit.url(vhost)) as opened:
        for _ in range(30):
            page = await opened.page(REF, LetterFilter(), 0, 10)
            assert page.count == 30
            await opened.groups(REF, LetterFilter())
        await eventually(lambda: ready(rabbit, vhost) == 30)
        found = await every(opened, LetterFilter())
        assert {each.message_id for each in found} == {f"m{number}" for number in range(30)}


async def test_a_refused_deletion_destroys_nothing(rabbit: PrivateRabbit, vhost: str) -> None:
    """Also of messages that the broker would drop, and one that is confirmed can be undone."""
    limited = {"x-queue-type": "quorum", "x-delivery-limit": 2}
    await fill(rabbit.url(vhost), 4, arguments=limited)
    async with desk(rabbit.url(vhost)) as opened:
        for _ in range(2):
            await opened.groups(REF, LetterFilter())
        for _ in range(3):
            request = DeleteRequest(queue=REF, selection=ALL, confirm=1)
            job = await ended(opened, opened.delete(request, ALICE))
            assert (job.state, job.total) == ("failed", 4)
            await eventually(lambda: ready(rabbit, vhost) == 4)
        job = opened.delete(DeleteRequest(queue=REF, selection=ALL, confirm=4), ALICE)
        await eventually(lambda: opened.job(job.id).state == "undoable")
        opened.undo(job.id, ALICE)
        await eventually(lambda: ready(rabbit, vhost) == 4)


async def test_large_bodies_are_not_kept(rabbit: PrivateRabbit, vhost: str) -> None:
    """A page far back passes over a hundred megabytes."""
    await fill(rabbit.url(vhost), 400, size=256 * 1024)
    async with desk(rabbit.url(vhost)) as opened:
        page = await opened.page(REF, LetterFilter(), 390, 50)
        assert len(page.letters) == 10
        await eventually(lambda: ready(rabbit, vhost) == 400)


async def test_replay_stops_when_they_fail_again(rabbit: PrivateRabbit, vhost: str) -> None:
    """And goes on when they do not; each is handled exactly once then."""
    url, handled, broken = rabbit.url(vhost), Counter[int](), [True]

    class Order(BaseModel):
        id: int

    class Orders(AMQPConsumer):
        queues = ["orders"]
        on_exception = Action.DEAD_LETTER

        async def handle(self, order: Order) -> None:
            if broken[0]:
                raise ValueError("still broken")
            handled[order.id] += 1

    await fill(url, 2_000)
    async with running(url, Orders), desk(url) as opened:
        request = ReplayRequest(queue=REF, selection=ALL, wait=5.0)
        job = await ended(opened, opened.replay(request, ALICE))
        assert (job.state, job.done, job.failed_again) == ("stopped", 1, 1)
        await eventually(lambda: ready(rabbit, vhost) == 2_000)

        broken[0] = False
        only = LetterSelection(filter=LetterFilter(error="KeyError"))
        request = ReplayRequest(queue=REF, selection=only, wait=0.2, rate=5_000)
        job = await ended(opened, opened.replay(request, ALICE))
        assert job.state == "done", job
        # The one that failed again has another error now.
        request = ReplayRequest(queue=REF, selection=ALL, wait=0.0)
        last = await ended(opened, opened.replay(request, ALICE))
        assert job.done + last.done == 2_000
        await eventually(lambda: handled.total() == 2_000)
        assert set(handled.values()) == {1}
        await eventually(lambda: ready(rabbit, vhost) == 0)


async def test_edit_before_a_replay(rabbit: PrivateRabbit, vhost: str) -> None:
    """Body, headers and content type change, and the original is kept in headers."""
    await fill(rabbit.url(vhost), 3)
    async with desk(rabbit.url(vhost)) as opened:
        first = (await opened.page(REF, LetterFilter(), 0, 1)).letters[0]
        edit = Edit(body='{"id": 99}', headers={"tenant": "new", "added": 1}, content_type="a/b")
        request = ReplayRequest(
            queue=REF, selection=LetterSelection(keys=[first.key]), wait=0, edit=edit
        )
        job = await ended(opened, opened.replay(request, ALICE))
        assert (job.state, job.done) == ("done", 1)
    connection = await aio_pika.connect(rabbit.url(vhost))
    async with connection:
        channel = await connection.channel()
        message = await (await channel.get_queue("orders")).get()
        await message.ack()
    assert (message.body, message.content_type) == (b'{"id": 99}', "a/b")
    assert (message.headers["tenant"], message.headers["added"]) == ("new", 1)
    kept = {name: value for name, value in message.headers.items() if "original" in name}
    assert b'"id": 0' in bytes(str(kept["x-workerkit-original-body"]), "utf-8")
    assert json.loads(str(kept["x-workerkit-original-headers"])) == {"tenant": "t0", "added": None}


async def test_invalid_edits(rabbit: PrivateRabbit, vhost: str) -> None:
    """Nothing is replayed, and the text says what is wrong."""
    await fill(rabbit.url(vhost), 1, size=100_000)
    async with desk(rabbit.url(vhost)) as opened:
        (first,) = (await opened.page(REF, LetterFilter(), 0, 1)).letters
        keys = LetterSelection(keys=[first.key])
        for edit, selection in (
            (Edit(body="x", base64="eA=="), keys),
            (Edit(base64="?"), keys),
            (Edit(headers={"x-workerkit-queue": "other"}), keys),
            (Edit(body="x"), ALL),
        ):
            with pytest.raises(DeskError):
                opened.replay(ReplayRequest(queue=REF, selection=selection, edit=edit), ALICE)
        request = ReplayRequest(queue=REF, selection=keys, edit=Edit(body="x"))
        job = await ended(opened, opened.replay(request, ALICE))
        assert job.state == "failed"
        assert "at most 49152 can be kept" in job.text
        await eventually(lambda: ready(rabbit, vhost) == 1)


async def test_delete_and_undo(rabbit: PrivateRabbit, vhost: str) -> None:
    """Others stay; undo returns them; one that is not undone is final when the process stops."""
    await fill(rabbit.url(vhost), 100)
    only = LetterSelection(filter=LetterFilter(error="ValueError"))
    async with desk(rabbit.url(vhost)) as opened:
        job = await ended(
            opened, opened.delete(DeleteRequest(queue=REF, selection=only, confirm=9), ALICE)
        )
        assert (job.state, job.total) == ("failed", 10)
        await eventually(lambda: ready(rabbit, vhost) == 100)

        request = DeleteRequest(queue=REF, selection=only, confirm=10)
        job = await ended(opened, opened.delete(request, ALICE))
        assert (job.state, job.done) == ("undoable", 10)
        assert job.undo_until is not None
        assert len(await every(opened, LetterFilter())) == 90
        opened.undo(job.id, ALICE)
        await eventually(lambda: opened.job(job.id).state == "undone")
        await eventually(lambda: ready(rabbit, vhost) == 100)
        with pytest.raises(DeskError, match="cannot be undone"):
            opened.undo(job.id, ALICE)

        job = await ended(opened, opened.delete(request, ALICE))
        assert job.state == "undoable"
    await eventually(lambda: ready(rabbit, vhost) == 90)


async def test_a_deletion_becomes_final(
    rabbit: PrivateRabbit, vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time."""
    await fill(rabbit.url(vhost), 5)
    monkeypatch.setattr(deleting.Deletion.__init__, "__defaults__", (0.2,))
    async with desk(rabbit.url(vhost)) as opened:
        job = opened.delete(DeleteRequest(queue=REF, selection=ALL, confirm=5), ALICE)
        await eventually(lambda: opened.job(job.id).state == "done")
        assert opened.job(job.id).text == "5 deleted"
    await eventually(lambda: ready(rabbit, vhost) == 0)


async def test_a_lost_connection_undoes_a_deletion(rabbit: PrivateRabbit, vhost: str) -> None:
    """Nothing is lost, and the job says so."""
    await fill(rabbit.url(vhost), 5)
    async with desk(rabbit.url(vhost)) as opened:
        job = opened.delete(DeleteRequest(queue=REF, selection=ALL, confirm=5), ALICE)
        await eventually(lambda: opened.job(job.id).state == "undoable")
        rabbit.close_all_connections("maintenance")
        await eventually(lambda: opened.job(job.id).state == "failed")
        assert "in the queue again" in opened.job(job.id).text
        await eventually(lambda: ready(rabbit, vhost) == 5)


async def test_depths_and_queues(rabbit: PrivateRabbit, vhost: str) -> None:
    """Missing queues count 0, and a connection that the settings do not have is left out."""
    await fill(rabbit.url(vhost), 7)
    known = [
        QueueReport(name="orders", connection="default", vhost=vhost, dead_letters="orders.dlq"),
        QueueReport(name="none", connection="default", vhost=vhost, dead_letters="none.dlq"),
        QueueReport(name="far", connection="elsewhere", vhost="/", dead_letters="far.dlq"),
    ]
    async with desk(rabbit.url(vhost)) as opened:
        depths = await opened.depths(known)
        assert depths == {("default", vhost, "orders"): (0, 7), ("default", vhost, "none"): (0, 0)}
        queues = await opened.queues(known, {("default", vhost, "orders"): ["Orders"]})
        assert next((each.queue, each.count, each.consumers) for each in queues) == (
            "orders",
            7,
            ["Orders"],
        )
        assert "no connection 'elsewhere'" in queues[2].problem
        with pytest.raises(DeskError, match="there is no queue"):
            await opened.page(QueueRef(queue="none"), LetterFilter(), 0, 10)
