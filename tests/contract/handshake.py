"""Connections: versions, logins, virtual hosts, tuning, heartbeats, closing, alarms."""

import asyncio
import time
from itertools import pairwise

from pamqp.base import Frame
from pamqp.commands import Channel, Connection
from pamqp.heartbeat import Heartbeat

from tests.contract.client import refused
from tests.contract.environment import Environment, Row
from tests.contract.raw_client import CAPABILITIES, Login, frame


async def the_broker_offers_mechanisms_and_capabilities(env: Environment) -> object:
    """The first frame names version, locale, mechanisms and what the broker can do."""
    start = await (await env.raw_client()).start()
    capabilities = start.server_properties["capabilities"]
    assert isinstance(capabilities, dict)
    mechanisms = sorted(start.mechanisms.split())
    return start.version_major, start.version_minor, start.locales, mechanisms, capabilities


async def the_protocol_header_of_amqp_0_9_is_accepted(env: Environment) -> object:
    """Old clients, such as aioamqp, send it, and get AMQP 0-9-1."""
    raw = await env.raw_client()
    raw.write(b"AMQP\x01\x01\x00\x09")
    start = await raw.expect(Connection.Start)
    return start.version_major, start.version_minor


async def an_unsupported_protocol_header_gets_the_supported_one(env: Environment) -> object:
    """A client of another version gets the supported version, since 4.0 AMQP 1.0, and is closed."""
    answers = []
    for protocol in (b"AMQP\x01\x01\x00\x0a", b"AMQP\x00\x00\x09\x00"):
        raw = await env.raw_client()
        raw.write(protocol)
        await raw.read()
        answers.append((raw.raw, (await raw.end()).scope))
    return answers


async def plain_and_amqplain_are_accepted(env: Environment) -> object:
    """Both mechanisms log in."""
    for mechanism in ("PLAIN", "AMQPLAIN"):
        await env.client(mechanism=mechanism)
    return "welcome"


async def a_login_without_a_name(env: Environment) -> object:
    """Since 4.0, a client may log in anonymously, as the user guest."""
    return await refused(env.client(mechanism="ANONYMOUS", user="x", password="y"))


async def the_smallest_frame(env: Environment) -> object:
    """4096 bytes, as AMQP demands it; 8192 since 4.3."""
    return [await refused(env.client(frame_max=size)) for size in (4096, 8191, 8192)]


async def a_wrong_password_is_403(env: Environment) -> object:
    """A wrong password or user is refused with a close, if the client supports that."""
    return [
        await refused(env.client(password="wrong")),
        await refused(env.client(user="nobody")),
        await refused(env.client(password="wrong", mechanism="AMQPLAIN")),
    ]


async def a_wrong_password_of_an_old_client_closes_the_socket(env: Environment) -> object:
    """Without the capability `authentication_failure_close` there is no close frame."""
    return await refused(env.client(password="wrong", capabilities={}))


async def an_unknown_vhost_is_530(env: Environment) -> object:
    """A virtual host that does not exist cannot be opened."""
    return await refused(env.client(vhost="nowhere"))


async def vhosts_are_isolated(env: Environment) -> object:
    """Queues of one virtual host are unknown in another."""
    here = await env.channel()
    there = await (await env.client(vhost=env.add_vhost())).channel()
    await here.declare("q")
    await there.declare("q")
    here.publish("q", b"here")
    return await here.drain("q"), await there.drain("q")


async def the_broker_proposes_its_limits(env: Environment) -> object:
    """The proposal: channels, frame size in bytes, heartbeat in seconds."""
    tune = await (await env.raw_client()).log_in(env.login)
    return tune.channel_max, tune.frame_max, tune.heartbeat


async def a_bad_handshake_closes_the_socket(env: Environment) -> object:
    """An error before the connection is open closes the socket without connection.close."""
    return await asyncio.gather(
        refused(env.client(mechanism="MAGIC")),
        refused(env.client(channel_max=2048)),  # more than the broker proposed
        refused(env.client(channel_max=0)),  # no limit: more, too
        refused(env.client(frame_max=131073)),
        refused(env.client(frame_max=0)),
        refused(env.client(frame_max=4095)),  # less than any client must accept
        _early_open(env),
    )


async def _early_open(env: Environment) -> str:
    raw = await env.raw_client()
    await raw.start()
    raw.send(0, Connection.Open(env.vhost))
    return (await raw.end()).seen


async def channels_beyond_the_limit_are_refused(env: Environment) -> object:
    """One channel more than was negotiated ends the connection."""
    client = await env.client(channel_max=2)
    await client.channel(1)
    await client.channel(2)
    return await refused(client.channel(3))


async def the_limit_counts_open_channels(env: Environment) -> object:
    """A closed channel makes room for another."""
    client = await env.client(channel_max=2)
    first = await client.channel(1)
    await client.channel(2)
    await first.close()
    return (await (await client.channel(1)).declare("q")).queue


async def a_deleted_vhost_closes_its_connections(env: Environment) -> object:
    """The connections of a deleted virtual host are closed with a reason; others stay."""
    other, stays = env.add_vhost(), await env.channel()
    client = await env.client(vhost=other)
    await (await client.channel()).declare("q")
    env.broker.delete_vhost(other)
    # RabbitMQ says "deleted", or "down" where the connection notices its end first.
    end = str(await client.ended()).replace("is down", "is deleted")
    return end, (await stays.declare("q")).queue, await refused(env.client(vhost=other)) is None


async def the_broker_sends_heartbeats(env: Environment) -> object:
    """With a heartbeat of two seconds, one comes every second."""
    raw = await env.raw_client()
    # Of two seconds, because four of silence end it: this process may stand still for a while.
    await raw.log_in(Login(vhost=env.vhost, heartbeat=2))
    times, frames = [], []
    for _ in range(3):
        frames.append((await raw.read())[1])
        raw.write(frame(8, 0, b""))
        times.append(time.monotonic())
    quick = min(later - earlier for earlier, later in pairwise(times)) < 1.6
    return quick, all(isinstance(frame, Heartbeat) for frame in frames)


async def a_client_without_heartbeats_is_closed(env: Environment) -> object:
    """With a heartbeat of one second, silence ends the connection, without a close frame."""
    for _ in range(5):
        silent, alive = await env.raw_client(), await env.raw_client()
        await alive.log_in(Login(vhost=env.vhost, heartbeat=1))
        began = pulse = time.monotonic()
        await silent.log_in(Login(vhost=env.vhost, heartbeat=1))
        ending = asyncio.create_task(silent.end())
        longest = 0.0
        while not ending.done():
            longest, pulse = max(longest, time.monotonic() - pulse), time.monotonic()
            alive.write(frame(8, 0, b""))
            await asyncio.wait([ending], timeout=0.5)
        ended = time.monotonic()
        if max(longest, ended - pulse) < 1.5:
            break
        # This process was paused, so the interval was too long: repeat.
    alive.send(1, Channel.Open())
    in_time = 1.0 < ended - began < 8.0
    return ending.result().scope, in_time, (await alive.expect(Frame)).name


async def the_client_closes(env: Environment) -> object:
    """connection.close gets close-ok."""
    raw = await env.raw_client()
    await raw.log_in(env.login)
    raw.send(0, Connection.Close(200, "bye", 0, 0))
    return (await raw.expect(Frame)).name


async def messages_before_the_close_are_queued(env: Environment) -> object:
    """Messages that were published before the close are in the queue."""
    channel, other = await env.channel(), await env.channel()
    await channel.declare("q")
    channel.publish("q", *[b"x"] * 100)
    await channel.client.close()
    return len(await other.drain("q"))


async def a_secret_can_be_renewed(env: Environment) -> object:
    """connection.update-secret gets a reply, and the connection stays open."""
    raw = await env.raw_client()
    await raw.log_in(env.login)
    raw.send(0, Connection.UpdateSecret("guest", "it is time"))
    return (await raw.expect(Frame)).name


async def an_alarm_blocks_publishers(env: Environment) -> object:
    """A memory alarm blocks and notifies publishers, and affects no other connection."""
    consumer, publisher = await env.channel(), await env.channel()
    await consumer.declare("q")
    await consumer.consume("q", no_ack=True)
    with env.memory_alarm():
        publisher.publish("q", b"late")
        blocked = await publisher.client.event()
        assert isinstance(blocked, Connection.Blocked)
        waiting = (await consumer.declare("q", passive=True)).message_count
        early = consumer.waiting()
    unblocked = await publisher.client.event()
    late = await consumer.bodies(1)
    notified = not consumer.client.zero.events.empty()
    return blocked.reason, waiting, early, unblocked.name, late, notified


async def an_alarm_does_not_notify_an_old_client(env: Environment) -> object:
    """Without the capability `connection.blocked`, a publisher is blocked without notification."""
    publisher = await (await env.client(capabilities={})).channel()
    await publisher.declare("q")
    with env.memory_alarm():
        publisher.publish("q", b"late")
        other = await env.channel()
        await asyncio.sleep(0.05)  # there is no sign that the broker has read it
        stopped = (await other.declare("q", passive=True)).message_count
    late = (await other.take("q")).body
    return stopped, late, publisher.client.zero.events.empty()


async def a_connection_opened_under_an_alarm_is_blocked_too(env: Environment) -> object:
    """A client that connects during an alarm can declare, and is notified when it publishes."""
    with env.memory_alarm():
        channel = await env.channel()
        await channel.declare("q")
        channel.publish("q", b"late")
        blocked = await channel.client.event()
    unblocked = await channel.client.event()
    return blocked.name, unblocked.name, (await channel.take("q")).body


_ABILITIES = {
    **CAPABILITIES,
    "exchange_exchange_bindings": True,
    "consumer_priorities": True,
    "per_consumer_qos": True,
    "direct_reply_to": True,
}
_LOGIN_REFUSED = (
    "connection 403: ACCESS_REFUSED - Login was refused using authentication mechanism {}."
    " For details see the broker logfile."
)

ROWS = [
    Row(
        the_broker_offers_mechanisms_and_capabilities,
        (0, 9, "en_US", ["AMQPLAIN", "PLAIN"], _ABILITIES),
        {"4.0": (0, 9, "en_US", ["AMQPLAIN", "ANONYMOUS", "PLAIN"], _ABILITIES)},
    ),
    Row(the_protocol_header_of_amqp_0_9_is_accepted, (0, 9)),
    Row(
        an_unsupported_protocol_header_gets_the_supported_one,
        [(b"AMQP\0\0\x09\x01", "socket"), (b"AMQP\0\0\x09\x01", "socket")],
        {"4.0": [(b"AMQP\3\1\0\0", "socket"), (b"AMQP\0\0\x09\x01", "socket")]},
    ),
    Row(plain_and_amqplain_are_accepted, "welcome"),
    Row(a_login_without_a_name, "socket", {"4.0": None}),
    Row(the_smallest_frame, [None, None, None], {"4.3": ["socket", "socket", None]}),
    Row(
        a_wrong_password_is_403,
        [
            _LOGIN_REFUSED.format("PLAIN"),
            _LOGIN_REFUSED.format("PLAIN"),
            _LOGIN_REFUSED.format("AMQPLAIN"),
        ],
    ),
    Row(a_wrong_password_of_an_old_client_closes_the_socket, "socket"),
    Row(
        an_unknown_vhost_is_530,
        "connection 530: NOT_ALLOWED - vhost nowhere not found",
    ),
    Row(vhosts_are_isolated, ([b"here"], [])),
    Row(the_broker_proposes_its_limits, (2047, 131072, 60)),
    Row(a_bad_handshake_closes_the_socket, ["socket"] * 7),
    Row(
        channels_beyond_the_limit_are_refused,
        (
            "connection 530: NOT_ALLOWED - number of channels opened (2) has reached the "
            "negotiated channel_max (2)"
        ),
    ),
    Row(the_limit_counts_open_channels, "q"),
    Row(
        a_deleted_vhost_closes_its_connections,
        ("connection 320: CONNECTION_FORCED - vhost 'V' is deleted", "q", False),
    ),
    Row(the_broker_sends_heartbeats, (True, True)),
    Row(
        a_client_without_heartbeats_is_closed,
        ("socket", True, "Channel.OpenOk"),
    ),
    Row(the_client_closes, "Connection.CloseOk"),
    Row(messages_before_the_close_are_queued, 100),
    Row(a_secret_can_be_renewed, "Connection.UpdateSecretOk"),
    Row(
        an_alarm_blocks_publishers,
        ("low on memory", 0, [], "Connection.Unblocked", [b"late"], False),
    ),
    Row(an_alarm_does_not_notify_an_old_client, (0, b"late", True)),
    Row(
        a_connection_opened_under_an_alarm_is_blocked_too,
        ("Connection.Blocked", "Connection.Unblocked", b"late"),
    ),
]
