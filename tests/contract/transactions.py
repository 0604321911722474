"""Transactions: tx.select, commit, rollback."""

from typing import Any

from pamqp.commands import Basic, Confirm, Tx

from tests.contract.client import Channel, refused
from tests.contract.environment import Environment, Row


async def _selected(env: Environment) -> Channel:
    """A channel in transaction mode, and a queue `q`."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.call(Tx.Select())
    return channel


async def a_commit_publishes(env: Environment) -> object:
    """Nothing is in the queue before the commit; all of it, in order, after."""
    channel = await _selected(env)
    channel.publish("q", b"1", b"2")
    before = (await channel.declare("q")).message_count
    await channel.call(Tx.Commit())
    return before, await channel.drain("q")


async def a_rollback_publishes_nothing(env: Environment) -> object:
    """Publishes since the last commit are discarded, and a new transaction begins."""
    channel = await _selected(env)
    channel.publish("q", b"forgotten")
    await channel.call(Tx.Rollback())
    channel.publish("q", b"kept")
    await channel.call(Tx.Commit())
    return await channel.drain("q")


async def acks_wait_for_the_commit(env: Environment) -> object:
    """An ack counts at the commit; without one, the message is requeued."""
    results = []
    for end, count in ((Tx.Commit, 0), (None, 1)):
        channel, other = await _selected(env), await env.channel()
        other.publish("q", b"x")
        message = await channel.take("q", no_ack=False)
        channel.ack(message.tag)
        if end:
            await channel.call(end())
        await channel.close()
        back = [(await other.take("q")).body for _ in range(count)]
        results.append(back + await other.drain("q"))
    return results


async def a_rolled_back_ack_leaves_the_message_unacknowledged(env: Environment) -> object:
    """After the rollback the message is still held, not requeued, and can be acked again."""
    channel = await _selected(env)
    await channel.call(Tx.Rollback())
    other = await env.channel()
    other.publish("q", b"x")
    message = await channel.take("q", no_ack=False)
    channel.ack(message.tag)
    await channel.call(Tx.Rollback())
    ready = (await channel.declare("q")).message_count
    channel.ack(message.tag)
    await channel.call(Tx.Commit())
    await channel.close()
    return ready, await other.drain("q")


async def a_reject_waits_for_the_commit(env: Environment) -> object:
    """A requeue within a transaction happens at the commit."""
    channel = await _selected(env)
    other = await env.channel()
    other.publish("q", b"x")
    message = await channel.take("q", no_ack=False)
    channel.reject(message.tag, requeue=True)
    before = (await channel.declare("q")).message_count
    await channel.call(Tx.Commit())
    return before, (await channel.take("q")).body


async def returns_come_at_the_commit(env: Environment) -> object:
    """A mandatory message without a queue is returned before commit-ok, not at the publish."""
    channel = await _selected(env)
    channel.publish("nowhere", b"x", mandatory=True)
    await channel.settled("q")
    before = channel.waiting()
    await channel.call(Tx.Commit())
    return before, channel.waiting()


async def an_open_transaction_ends_with_its_channel(env: Environment) -> object:
    """A close is a rollback."""
    channel = await _selected(env)
    channel.publish("q", b"x")
    await channel.close()
    return await (await channel.client.channel()).drain("q")


async def transactions_must_be_selected(env: Environment) -> object:
    """Commit and rollback without a transaction are 406; select twice is fine."""
    client = await env.client()
    channel = await client.channel()
    for _ in range(2):
        await channel.call(Tx.Select())
    calls: tuple[Any, ...] = (Tx.Commit(), Tx.Rollback())
    return [await refused((await client.channel()).call(call)) for call in calls]


async def transactions_and_confirms_exclude_each_other(env: Environment) -> object:
    """A channel has one of the two modes."""
    confirming = await env.channel(confirms=True)
    channel = await _selected(env)
    return [
        await refused(confirming.call(Tx.Select())),
        await refused(channel.call(Confirm.Select())),
    ]


async def a_publish_to_no_exchange_is_refused_immediately(env: Environment) -> object:
    """The exchange is looked at when the message comes, not at the commit."""
    channel = await _selected(env)
    channel.publish("", b"x", exchange="nowhere")
    return await channel.refused()


async def gets_are_not_part_of_a_transaction(env: Environment) -> object:
    """A get without ack removes the message, also if the transaction is rolled back."""
    channel = await _selected(env)
    other = await env.channel()
    other.publish("q", b"x")
    await channel.take("q", no_ack=True)
    await channel.call(Tx.Rollback())
    empty = await channel.call(Basic.Get(0, "q"))
    return empty.name


ROWS = [
    Row(a_commit_publishes, (0, [b"1", b"2"])),
    Row(a_rollback_publishes_nothing, [b"kept"]),
    Row(acks_wait_for_the_commit, [[], [b"x"]]),
    Row(a_rolled_back_ack_leaves_the_message_unacknowledged, (0, [])),
    Row(a_reject_waits_for_the_commit, (0, b"x")),
    Row(returns_come_at_the_commit, ([], [b"x"])),
    Row(an_open_transaction_ends_with_its_channel, []),
    Row(
        transactions_must_be_selected,
        [
            "channel 406: PRECONDITION_FAILED - channel is not transactional",
            "channel 406: PRECONDITION_FAILED - channel is not transactional",
        ],
    ),
    Row(
        transactions_and_confirms_exclude_each_other,
        [
            "channel 406: PRECONDITION_FAILED - cannot switch from confirm to tx mode",
            "channel 406: PRECONDITION_FAILED - cannot switch from tx to confirm mode",
        ],
    ),
    Row(
        a_publish_to_no_exchange_is_refused_immediately,
        "channel 404: NOT_FOUND - no exchange 'nowhere' in vhost 'V'",
    ),
    Row(gets_are_not_part_of_a_transaction, "Basic.GetEmpty"),
]
