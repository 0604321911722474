"""Connecting: versions, logins, virtual hosts, tuning, heartbeats, goodbyes, alarms."""

import asyncio
import time
from itertools import pairwise

from pamqp.base import Frame
from pamqp.commands import Channel, Connection
from pamqp.heartbeat import Heartbeat

from tests.contract.line import CAPABILITIES, Login, frame
from tests.contract.peer import refused
from tests.contract.site import Row, Site


async def the_broker_offers_its_mechanisms_and_abilities(site: Site) -> object:
    """The first frame names version, locale, mechanisms and what the broker can do."""
    start = await (await site.line()).start()
    capabilities = start.server_properties["capabilities"]
    assert isinstance(capabilities, dict)
    mechanisms = sorted(start.mechanisms.split())
    return start.version_major, start.version_minor, start.locales, mechanisms, capabilities


async def a_foreign_protocol_header_is_answered_with_the_right_one(site: Site) -> object:
    """A client of another version is told the version, since 4.0 AMQP 1.0, and the socket ends."""
    answers = []
    for protocol in (b"AMQP\x01\x01\x00\x0a", b"AMQP\x00\x00\x09\x00"):
        line = await site.line()
        line.write(protocol)
        await line.read()
        answers.append((line.raw, (await line.end()).scope))
    return answers


async def plain_and_amqplain_are_accepted(site: Site) -> object:
    """Both mechanisms log in."""
    for mechanism in ("PLAIN", "AMQPLAIN"):
        await site.peer(mechanism=mechanism)
    return "welcome"


async def a_login_without_a_name(site: Site) -> object:
    """Since 4.0 a client may log in as nobody, and is the guest."""
    return await refused(site.peer(mechanism="ANONYMOUS", user="x", password="y"))


async def the_smallest_frame(site: Site) -> object:
    """4096 bytes, as AMQP demands it; 8192 since 4.3."""
    return [await refused(site.peer(frame_max=size)) for size in (4096, 8191, 8192)]


async def a_wrong_password_is_403(site: Site) -> object:
    """A wrong password or user is refused with a close, to clients who know about it."""
    return [
        await refused(site.peer(password="wrong")),
        await refused(site.peer(user="nobody")),
        await refused(site.peer(password="wrong", mechanism="AMQPLAIN")),
    ]


async def a_wrong_password_of_an_old_client_closes_the_socket(site: Site) -> object:
    """Without the capability `authentication_failure_close` there is no close frame."""
    return await refused(site.peer(password="wrong", capabilities={}))


async def an_unknown_vhost_is_530(site: Site) -> object:
    """A virtual host that does not exist cannot be opened."""
    return await refused(site.peer(vhost="nowhere"))


async def vhosts_are_isolated(site: Site) -> object:
    """Queues of one virtual host are unknown in another."""
    here = await site.channel()
    there = await (await site.peer(vhost=site.add_vhost())).channel()
    await here.declare("q")
    await there.declare("q")
    here.publish("q", b"here")
    return await here.drain("q"), await there.drain("q")


async def the_broker_proposes_its_limits(site: Site) -> object:
    """The proposal: channels, frame size in bytes, heartbeat in seconds."""
    tune = await (await site.line()).log_in(site.login)
    return tune.channel_max, tune.frame_max, tune.heartbeat


async def a_bad_handshake_closes_the_socket(site: Site) -> object:
    """Whoever breaks the rules before the connection is open is not told why, as nobody is yet."""
    return await asyncio.gather(
        refused(site.peer(mechanism="MAGIC")),
        refused(site.peer(channel_max=2048)),  # more than the broker proposed
        refused(site.peer(channel_max=0)),  # no limit: more, too
        refused(site.peer(frame_max=131073)),
        refused(site.peer(frame_max=0)),
        refused(site.peer(frame_max=4095)),  # less than any peer must accept
        _early_open(site),
    )


async def _early_open(site: Site) -> str:
    line = await site.line()
    await line.start()
    line.send(0, Connection.Open(site.vhost))
    return (await line.end()).seen


async def channels_beyond_the_limit_are_refused(site: Site) -> object:
    """One channel more than was negotiated ends the connection."""
    peer = await site.peer(channel_max=2)
    await peer.channel(1)
    await peer.channel(2)
    return await refused(peer.channel(3))


async def the_limit_counts_open_channels(site: Site) -> object:
    """A closed channel makes room for another."""
    peer = await site.peer(channel_max=2)
    first = await peer.channel(1)
    await peer.channel(2)
    await first.close()
    return (await (await peer.channel(1)).declare("q")).queue


async def a_deleted_vhost_closes_its_connections(site: Site) -> object:
    """Who is connected to a virtual host when it is deleted is told so; others stay."""
    other, stays = site.add_vhost(), await site.channel()
    peer = await site.peer(vhost=other)
    await (await peer.channel()).declare("q")
    site.broker.delete_vhost(other)
    # RabbitMQ says "deleted", or "down" where the connection notices its end first.
    end = str(await peer.ended()).replace("is down", "is deleted")
    return end, (await stays.declare("q")).queue, await refused(site.peer(vhost=other)) is None


async def the_broker_sends_heartbeats(site: Site) -> object:
    """With a heartbeat of two seconds, one comes every second."""
    line = await site.line()
    # Of two seconds, because four of silence end it: this process may stand still for a while.
    await line.log_in(Login(vhost=site.vhost, heartbeat=2))
    times, frames = [], []
    for _ in range(3):
        frames.append((await line.read())[1])
        line.write(frame(8, 0, b""))
        times.append(time.monotonic())
    quick = min(later - earlier for earlier, later in pairwise(times)) < 1.6
    return quick, all(isinstance(frame, Heartbeat) for frame in frames)


async def a_silent_client_is_dropped_and_one_with_a_pulse_stays(site: Site) -> object:
    """With a heartbeat of one second, silence ends the connection, without a close frame."""
    for _ in range(5):
        silent, alive = await site.line(), await site.line()
        await alive.log_in(Login(vhost=site.vhost, heartbeat=1))
        began = pulse = time.monotonic()
        await silent.log_in(Login(vhost=site.vhost, heartbeat=1))
        ending = asyncio.create_task(silent.end())
        longest = 0.0
        while not ending.done():
            longest, pulse = max(longest, time.monotonic() - pulse), time.monotonic()
            alive.write(frame(8, 0, b""))
            await asyncio.wait([ending], timeout=0.5)
        ended = time.monotonic()
        if max(longest, ended - pulse) < 1.5:
            break
        # This process stood still, so the pulse was not what it should be: once more.
    alive.send(1, Channel.Open())
    in_time = 1.0 < ended - began < 8.0
    return ending.result().scope, in_time, (await alive.expect(Frame)).name


async def the_client_closes(site: Site) -> object:
    """A goodbye is answered."""
    line = await site.line()
    await line.log_in(site.login)
    line.send(0, Connection.Close(200, "bye", 0, 0))
    return (await line.expect(Frame)).name


async def what_was_sent_before_the_goodbye_is_there(site: Site) -> object:
    """A close comes after all that was published before it."""
    channel, other = await site.channel(), await site.channel()
    await channel.declare("q")
    channel.publish("q", *[b"x"] * 100)
    await channel.peer.close()
    return len(await other.drain("q"))


async def a_secret_can_be_renewed(site: Site) -> object:
    """connection.update-secret is answered, and the connection goes on."""
    line = await site.line()
    await line.log_in(site.login)
    line.send(0, Connection.UpdateSecret("guest", "it is time"))
    return (await line.expect(Frame)).name


async def an_alarm_blocks_who_publishes(site: Site) -> object:
    """Under a memory alarm a publisher is told and stopped; the rest goes on as before."""
    consumer, publisher = await site.channel(), await site.channel()
    await consumer.declare("q")
    await consumer.consume("q", no_ack=True)
    with site.memory_alarm():
        publisher.publish("q", b"late")
        blocked = await publisher.peer.event()
        assert isinstance(blocked, Connection.Blocked)
        waiting = (await consumer.declare("q", passive=True)).message_count
        early = consumer.waiting()
    unblocked = await publisher.peer.event()
    late = await consumer.bodies(1)
    told = not consumer.peer.zero.events.empty()
    return blocked.reason, waiting, early, unblocked.name, late, told


async def an_alarm_is_not_told_to_an_old_client(site: Site) -> object:
    """Without the capability `connection.blocked` a publisher is stopped without a word."""
    publisher = await (await site.peer(capabilities={})).channel()
    await publisher.declare("q")
    with site.memory_alarm():
        publisher.publish("q", b"late")
        other = await site.channel()
        await asyncio.sleep(0.05)  # nothing tells that the broker has read it
        stopped = (await other.declare("q", passive=True)).message_count
    late = (await other.take("q")).body
    return stopped, late, publisher.peer.zero.events.empty()


async def a_connection_opened_under_an_alarm_is_blocked_too(site: Site) -> object:
    """Who connects during an alarm can declare, and is told as soon as it publishes."""
    with site.memory_alarm():
        channel = await site.channel()
        await channel.declare("q")
        channel.publish("q", b"late")
        blocked = await channel.peer.event()
    unblocked = await channel.peer.event()
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
        the_broker_offers_its_mechanisms_and_abilities,
        (0, 9, "en_US", ["AMQPLAIN", "PLAIN"], _ABILITIES),
        {"4.0": (0, 9, "en_US", ["AMQPLAIN", "ANONYMOUS", "PLAIN"], _ABILITIES)},
    ),
    Row(
        a_foreign_protocol_header_is_answered_with_the_right_one,
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
        a_silent_client_is_dropped_and_one_with_a_pulse_stays,
        ("socket", True, "Channel.OpenOk"),
    ),
    Row(the_client_closes, "Connection.CloseOk"),
    Row(what_was_sent_before_the_goodbye_is_there, 100),
    Row(a_secret_can_be_renewed, "Connection.UpdateSecretOk"),
    Row(
        an_alarm_blocks_who_publishes,
        ("low on memory", 0, [], "Connection.Unblocked", [b"late"], False),
    ),
    Row(an_alarm_is_not_told_to_an_old_client, (0, b"late", True)),
    Row(
        a_connection_opened_under_an_alarm_is_blocked_too,
        ("Connection.Blocked", "Connection.Unblocked", b"late"),
    ),
]
