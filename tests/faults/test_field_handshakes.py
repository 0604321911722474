"""FR6. Any failure during an attempt to connect fails only that attempt."""

import asyncio
import gc
import json
import logging
import signal
import struct
from collections.abc import Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from pamqp.commands import Basic, Channel, Connection
from pamqp.heartbeat import Heartbeat

from tests.application import running
from tests.client import connected
from tests.command import running as command
from tests.command import write_package
from tests.consumers import collector
from tests.host_names import LOOPS, run
from tests.rabbit import PrivateRabbit
from tests.records import fields
from tests.scripted_broker import (
    CAPABILITIES,
    OPEN_OK,
    PROPERTIES,
    Do,
    Script,
    Scripted,
    closing,
    login,
    method,
    nested,
    start,
    tune,
)
from tests.waiting import eventually
from workerkit.amqp.session import connect
from workerkit.config.connections import AMQPSettings
from workerkit.errors import ConnectionLost
from workerkit.tasks import Backoff

pytestmark = pytest.mark.any_broker

loops = pytest.mark.parametrize("loop", sorted(LOOPS))

TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"
HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"

SILENT = "no answer within"

NO_LOGIN: Mapping[str, tuple[Script, str]] = {
    # What comes before the first frame.
    "accepts and closes": ([Do.CLOSE], "closed"),
    "accepts and resets": ([Do.RESET], ""),
    "closes after the header": ([Do.READ, Do.CLOSE], "closed"),
    "resets after the header": ([Do.READ, Do.RESET], ""),
    "never answers": ([Do.HANG], SILENT),
    "an HTTP answer": ([Do.READ, HTTP, Do.CLOSE], "not AMQP 0-9-1"),
    "a TLS alert": ([Do.READ, TLS_ALERT, Do.CLOSE], ""),
    "the header of AMQP 1.0": ([Do.READ, b"AMQP\x03\x01\x00\x00", Do.CLOSE], "AMQP"),
    "the header of AMQP 0-9-1": ([Do.READ, b"AMQP\x00\x00\x09\x01", Do.CLOSE], "AMQP"),
    "a line of text": ([Do.READ, b"-ERR unknown command\r\n", Do.CLOSE], "not AMQP 0-9-1"),
    "zeros": ([Do.READ, bytes(4096), Do.CLOSE], ""),
    "half a frame": ([Do.READ, start()[:20], Do.CLOSE], "closed"),
    "half a head": ([Do.READ, start()[:3], Do.CLOSE], "closed"),
    "half a frame and silence": ([Do.READ, start()[:20], Do.HANG], SILENT),
    "a frame without its end": ([Do.READ, start()[:-1] + b"\x00", Do.HANG], "not AMQP 0-9-1"),
    # connection.start
    "a close in place of start": ([Do.READ, closing(320, "draining"), Do.HANG], "draining"),
    "a heartbeat in place of start": ([Do.READ, Heartbeat().marshal(), Do.HANG], ""),
    "open-ok in place of start": ([Do.READ, OPEN_OK, Do.HANG], "Start"),
    "a delivery in place of start": (
        [Do.READ, method(Basic.Deliver("c", 1, False, "", "q"), 1), Do.HANG],
        "Start",
    ),
    "no mechanism": (login(start(mechanisms="")), "authentication mechanism"),
    "unknown mechanisms": (login(start(mechanisms="KERBEROS X")), "authentication mechanism"),
    "no capabilities": (login(start({"product": "x"})), "publisher_confirms"),
    "no properties": (login(start({})), "publisher_confirms"),
    "capabilities that are a number": (login(start({"capabilities": 7})), "publisher_confirms"),
    "capabilities that are all off": (
        login(start({"capabilities": {"publisher_confirms": False, "basic.nack": False}})),
        "basic.nack",
    ),
    "tables nested 3,000 deep": (login(nested(3000)), "RecursionError"),
    "tables nested 10,000 deep": (login(nested(10_000)), "RecursionError"),
    "an unknown method": ([Do.READ, b"\x01\0\0\0\0\0\x04\0\x0a\x03\xe7\xce", Do.HANG], ""),
    "an empty method": ([Do.READ, b"\x01\0\0\0\0\0\0\xce\0", Do.HANG], ""),
    "an unknown kind of frame": ([Do.READ, b"\x07\0\0\0\0\0\x01a\xce", Do.HANG], ""),
    # connection.tune
    "closes after start-ok": ([*login()[:3], Do.CLOSE], "closed"),
    "a close after start-ok": (login(tuned=closing(403, "no")), "no"),
    "secure in place of tune": (login(tuned=method(Connection.Secure("x"))), "Tune"),
    "start once more": (login(tuned=start()), "Tune"),
    "frames of 1 byte": (login(tuned=tune(frame_max=1)), "frame_max"),
    "frames of 4,095 bytes": (login(tuned=tune(frame_max=4095)), "frame_max"),
    # connection.open-ok
    "closes after open": ([*login()[:-1], Do.CLOSE], "closed"),
    "a close after open": (login(opened=closing(530, "no such vhost")), "no such vhost"),
    "a close with an unknown code": (login(opened=closing(65_535, "odd")), "odd"),
    "no open-ok": ([*login()[:-1], Do.HANG], SILENT),
    "a heartbeat in place of open-ok": (login(opened=Heartbeat().marshal()), ""),
    "close-ok in place of open-ok": (login(opened=method(Connection.CloseOk())), "OpenOk"),
}

UNREAD = "tables nested 3,000 deep"

AFTERWARDS: Mapping[str, Script] = {
    "closes at once": [Do.CLOSE],
    "resets at once": [Do.RESET],
    "garbage": [b"\xff" * 64, Do.HANG],
    "a frame that aiormq cannot read": [b"\x01\0\0\0\0\0\x04\0\x0a\x03\xe7\xce", Do.HANG],
    "tables nested 3,000 deep": [nested(3000), Do.HANG],
    "an answer to nothing": [method(Channel.CloseOk(), 7), method(Connection.CloseOk()), Do.HANG],
    "garbage in place of channel.open-ok": [Do.READ, b"\x01\0\x01\0\0\0\x02ab\xce", Do.HANG],
    "a close": [closing(320, "CONNECTION_FORCED"), Do.HANG],
    "a close in place of channel.open-ok": [Do.READ, closing(504, "CHANNEL_ERROR"), Do.CLOSE],
}


class Surroundings:
    """Errors that the event loop reports, and the tasks that are left at the end."""

    def __init__(self) -> None:
        self.complaints: list[dict[str, Any]] = []
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.expected = asyncio.all_tasks()

    async def calm(self) -> None:
        """Wait until every task has ended that did not exist at the beginning."""
        await eventually(lambda: asyncio.all_tasks() <= self.expected, what="no task left")
        gc.collect()
        await asyncio.sleep(0)
        assert self.complaints == []


def failures(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the failed attempts of the connection to the scripted server."""
    found = fields(caplog, "connection failed")
    return [each for each in found if (each["connection"], each["role"]) == ("odd", "consumers")]


def losses(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return why it was lost. An error right after open-ok may still be a failed attempt."""
    found = fields(caplog, "connection lost")
    lost = [each for each in found if (each["connection"], each["role"]) == ("odd", "consumers")]
    return [each["reason"] for each in lost] + [each["error"] for each in failures(caplog)]


@pytest.fixture(autouse=True)
def _soon_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Short pauses between attempts."""
    caplog.set_level(logging.INFO, "workerkit")
    monkeypatch.setattr("workerkit.amqp.connection.Backoff", partial(Backoff, first=0.02, cap=0.05))
    monkeypatch.setattr("workerkit.amqp.replies.RPC_DEADLINE", 2.0)


async def beside(
    url: str, odd: Scripted, until: Coroutine[Any, Any, Any], timeout: float = 5.0
) -> None:
    """Consume from a good broker and the scripted one until something has happened.

    The good one must not be affected.

    Args:
        timeout: For a connection to the scripted one; short only where nothing is to come.
    """
    around = Surroundings()
    good, bodies = collector("good", name="Good")
    bad, _ = collector("bad", name="Bad", connection="odd")
    amqp = {"odd": {"url": odd.url, "connect_timeout": timeout}}
    async with connected(url) as client:
        around.expected = asyncio.all_tasks()
        async with running(url, good, bad, ready=False, amqp=amqp) as runner:
            states = {each.consumer: each for each in runner.health}
            await until
            await eventually(lambda: states["Good"].state == "ready")
            await client.send("good", b"x")
            await eventually(lambda: bodies == [b"x"])
            assert not runner.crashed
    await eventually(lambda: odd.open == 0, what="every socket closed")
    await around.calm()


@loops
@pytest.mark.parametrize("name", NO_LOGIN)
def test_fr6_a_failed_handshake_fails_one_attempt(
    url: str, caplog: pytest.LogCaptureFixture, capfd: Any, loop: str, name: str
) -> None:
    """One ERROR for each attempt, with a reason; other connections are not affected."""
    script, reason = NO_LOGIN[name]

    async def main() -> None:
        async with Scripted(lambda number: script) as odd:
            until = eventually(lambda: len(failures(caplog)) >= 3, 15.0, what="three attempts")
            await beside(url, odd, until, 0.2 if reason == SILENT else 5.0)
            assert odd.accepted - 1 <= len(failures(caplog)) <= odd.accepted

    run(loop, main, {})

    assert all(reason in each["error"] for each in failures(caplog)), failures(caplog)[0]["error"]
    assert all(each["error"].partition("): ")[2] for each in failures(caplog))
    assert [each["attempt"] for each in failures(caplog)][:3] == [1, 2, 3]
    assert fields(caplog, "connection lost") == []
    assert capfd.readouterr().err == ""


@loops
@pytest.mark.parametrize("name", AFTERWARDS)
def test_fr6_a_later_failure_loses_one_connection(
    url: str, caplog: pytest.LogCaptureFixture, capfd: Any, loop: str, name: str
) -> None:
    """A connection whose server sends invalid bytes is lost, and is opened again."""
    script = [*login(), *AFTERWARDS[name]]

    async def main() -> None:
        async with Scripted(lambda number: script) as odd:
            until = eventually(lambda: len(losses(caplog)) >= 2, what="lost twice")
            await beside(url, odd, until)

    run(loop, main, {})

    assert all(losses(caplog))
    if name == UNREAD:
        # It may come together with open-ok, while the login is not complete.
        assert any("cannot be read: RecursionError" in each for each in losses(caplog))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("uvloop", [True, False], ids=["uvloop", "asyncio"])
async def test_fr6_a_process_survives_every_handshake(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path, uvloop: bool
) -> None:
    """A worker beside a server that uses all scripts continues; its stderr has only records."""
    text = """
        from workerkit import AMQPConsumer

        class Good(AMQPConsumer):
            queues = ["good"]

            async def handle(self, body: str) -> None:
                print("handled", body, flush=True)

        class Bad(AMQPConsumer):
            queues = ["bad"]
            connection = "odd"

            async def handle(self, body: str) -> None: ...
    """
    name = write_package(tmp_path, consumers=text)
    scripts = [
        NO_LOGIN["accepts and closes"][0],
        NO_LOGIN["no capabilities"][0],
        NO_LOGIN["tables nested 3,000 deep"][0],
        [*login(), *AFTERWARDS["tables nested 3,000 deep"]],
        NO_LOGIN["a close after open"][0],
    ]
    async with (
        Scripted(lambda number: scripts[number % len(scripts)]) as odd,
        command(
            name,
            cwd=tmp_path,
            uvloop=uvloop,
            WORKERKIT_LOG__FORMAT="json",
            WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost),
            WORKERKIT_AMQP__ODD__URL=odd.url,
        ) as app,
        connected(rabbit.url(vhost)) as client,
    ):
        await eventually(lambda: odd.accepted >= len(scripts), 60.0)
        await app.says('"consuming"')
        await client.send("good", b"x")
        await app.says("handled x")
        app.send(signal.SIGTERM)
        code = await app.ended()

    assert code == 0, app
    loggers = {json.loads(line)["logger"].partition(".")[0] for line in app.err}
    assert loggers == {"workerkit"}


async def test_fr6_a_session_has_the_negotiated_values(url: str) -> None:
    """The highest channel and the largest frame, where 0 means AMQP's own limit."""

    async def agreed(*tuned: int) -> tuple[int, int]:
        script = [*login(tuned=tune(*tuned)), Do.HANG]
        async with Scripted(lambda number: script) as odd:
            settings = AMQPSettings.model_validate({"url": odd.url})
            session = await connect(settings, None, "test")
            found = session.channel_max, session.frame_max
            session.abort("done with")
            await session.lost
            await session.close()
        return found

    assert await agreed(2047, 131_072) == (2047, 131_072)
    assert await agreed(0, 0) == (65_535, 131_072)
    assert await agreed(1, 4096) == (1, 4096)
    session = await connect(AMQPSettings.model_validate({"url": url}), None, "test")
    of_rabbit = session.channel_max
    await session.close()
    assert of_rabbit == 2047


# Fuzzing: a handshake that is right, and then is not


def _frames() -> st.SearchStrategy[bytes]:
    """Frames that do not belong in a handshake, and bytes that are not frames."""
    number = st.integers(0, 65_535)
    values: st.SearchStrategy[Any] = st.one_of(
        st.booleans(), st.integers(-(2**31), 2**31 - 1), st.text(max_size=8), st.none()
    )
    tables = st.dictionaries(st.sampled_from(["capabilities", "version", "product"]), values)
    capabilities = st.dictionaries(st.sampled_from(list(CAPABILITIES)), values)
    return st.one_of(
        st.binary(max_size=64),
        st.builds(start, tables, st.sampled_from(["", "PLAIN", "EXTERNAL", "PLAIN PLAIN", "\0"])),
        st.builds(start, capabilities.map(lambda found: {**PROPERTIES, "capabilities": found})),
        st.builds(tune, number, st.integers(0, 2**32 - 1), number),
        st.builds(closing, number, st.text(max_size=20)),
        st.builds(nested, st.integers(0, 2000)),
        st.just(OPEN_OK),
        st.just(Heartbeat().marshal()),
        st.just(method(Connection.Blocked("x"))),
        st.just(method(Connection.CloseOk())),
        st.builds(method, st.just(Channel.OpenOk()), number),
        st.builds(_frame, st.integers(0, 255), number, st.binary(max_size=40)),
        st.builds(_frame, st.just(1), st.just(0), st.binary(min_size=4, max_size=40)),
    )


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """The script of a whole login, with a step replaced, added, truncated or changed."""
    script: list[bytes | Do] = login()
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(script) - 1))
        sent = script[at]
        how = draw(st.sampled_from(["replace", "add", "cut", "change", "end"]))
        if how == "replace":
            script[at] = draw(_frames())
        elif how == "add" or not isinstance(sent, bytes) or not sent:
            script.insert(at, draw(_frames()))
        elif how == "cut":
            script[at] = sent[: draw(st.integers(0, len(sent) - 1))]
        elif how == "change":
            position = draw(st.integers(0, len(sent) - 1))
            changed = bytes([sent[position] ^ draw(st.integers(1, 255))])
            script[at] = sent[:position] + changed + sent[position + 1 :]
        else:
            script[at:] = [draw(st.sampled_from([Do.CLOSE, Do.RESET, Do.HANG]))]
    return [*script, draw(st.sampled_from([Do.CLOSE, Do.RESET]))]


@loops
def test_fr6_any_handshake_connects_or_is_one_of_our_errors(capfd: Any, loop: str) -> None:
    """Only `ConnectionLost` is raised, in time, and no task, socket or error is left."""

    async def attempt(script: Script) -> None:
        around = Surroundings()
        async with Scripted(lambda number: script) as odd:
            around.expected = asyncio.all_tasks()
            settings = AMQPSettings.model_validate({"url": odd.url, "connect_timeout": 0.3})
            try:
                async with asyncio.timeout(30.0):
                    session = await connect(settings, None, "test")
                    assert session.version == () or session.version[0] >= 0
                    assert 1 <= session.channel_max <= 65_535
                    assert session.frame_max >= 4096
                    await asyncio.wait([session.lost], timeout=0.05)
                    session.abort("done with")
                    await session.lost
                    reason = session.reason
                    await session.close()
            except ConnectionLost as error:
                reason = str(error).partition("): ")[2]
            await eventually(lambda: odd.open == 0, what="every socket closed")
        assert reason
        await around.calm()

    @given(scripts())
    @settings_of_hypothesis(max_examples=40)
    def fuzz(script: Script) -> None:
        run(loop, partial(attempt, script), {})

    fuzz()

    assert capfd.readouterr().err == ""
