"""Hostile bytes: the broker survives them, and other clients are not affected."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pamqp import body, commands, frame, header, heartbeat

from tests.waiting import eventually
from workerkit.embedded import EmbeddedBroker

_PROTOCOL = b"AMQP\x00\x00\x09\x01"
_TIMEOUT = 5.0


def _session() -> list[bytes]:
    """Return the frames of a client that does a bit of everything, one by one."""
    basic, queue, exchange = commands.Basic, commands.Queue, commands.Exchange
    properties = basic.Properties(
        headers={"a": 1, "CC": ["q"], "t": {"x": [True, None]}}, expiration="50", message_id="m"
    )
    arguments: Any = {"x-max-length": 5, "x-dead-letter-exchange": "e", "x-max-priority": 3}
    methods: list[Any] = [
        (0, commands.Connection.StartOk({"capabilities": {}}, "PLAIN", "\0guest\0guest", "en_US")),
        (0, commands.Connection.TuneOk(2047, 131072, 0)),
        (0, commands.Connection.Open("/")),
        (1, commands.Channel.Open()),
        (1, exchange.Declare(exchange="e", exchange_type="headers")),
        (1, exchange.Declare(exchange="t", exchange_type="topic", auto_delete=True)),
        (1, queue.Declare(queue="q", arguments=arguments)),
        (1, queue.Bind(queue="q", exchange="e", arguments={"x-match": "any", "a": 1})),
        (1, exchange.Bind(destination="e", source="t", routing_key="a.#")),
        (1, basic.Qos(prefetch_count=2)),
        (1, basic.Consume(queue="q", consumer_tag="c")),
        (1, commands.Confirm.Select()),
        (1, basic.Publish(exchange="t", routing_key="a.b", mandatory=True)),
        (1, header.ContentHeader(0, 6, properties)),
        (1, body.ContentBody(b"abc")),
        (1, body.ContentBody(b"def")),
        (1, basic.Ack(delivery_tag=1)),
        (1, basic.Publish(routing_key="q")),
        (1, header.ContentHeader(0, 0, basic.Properties())),
        (1, basic.Nack(delivery_tag=2, multiple=True)),
        (1, basic.Recover(requeue=True)),
        (1, basic.Get(queue="q")),
        (0, heartbeat.Heartbeat()),
        (2, commands.Channel.Open()),
        (2, commands.Tx.Select()),
        (2, commands.Tx.Commit()),
        (2, queue.Delete(queue="q")),
        (2, commands.Channel.Close(200, "", 0, 0)),
        (0, commands.Connection.Close(200, "", 0, 0)),
    ]
    return [_PROTOCOL, *(frame.marshal(method, number) for number, method in methods)]


_SESSION = _session()


@st.composite
def _hostile(draw: st.DrawFn) -> bytes:
    """Return a session with dropped, repeated, swapped, cut or changed frames."""
    # The login stays whole in most of them, or nothing would get behind it.
    kept = draw(st.sampled_from([0, 4, 5, 5, 5]))
    frames = list(_SESSION)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(kept, len(frames) - 1))
        other = draw(st.integers(kept, len(frames) - 1))
        match draw(st.sampled_from(["drop", "double", "swap", "cut", "insert"])):
            case "drop" if len(frames) > kept + 2:
                del frames[place]
            case "double":
                frames.insert(other, frames[place])
            case "swap":
                frames[place], frames[other] = frames[other], frames[place]
            case "cut":
                frames[place] = frames[place][: draw(st.integers(0, len(frames[place])))]
            case _:
                frames.insert(place, draw(st.binary(max_size=30)))
    raw = bytearray(b"".join(frames))
    first = sum(map(len, frames[:kept]))
    for _ in range(draw(st.integers(0, 6))):
        if len(raw) > first:
            raw[draw(st.integers(first, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw)


class _Witness:
    """Another client of the broker, which checks that the broker still works."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), _TIMEOUT)
        self.socket.sendall(b"".join(_SESSION[:5]))
        self._received = b""
        for name in ("Start", "Tune", "OpenOk", "OpenOk"):
            assert self._frame().name.endswith(name)

    def ask(self) -> None:
        """Declare a queue, and wait for the answer."""
        self.socket.sendall(frame.marshal(commands.Queue.Declare(queue="witness"), 1))
        assert self._frame().name == "Queue.DeclareOk"

    def _frame(self) -> Any:
        while (
            len(self._received) < 8
            or (size := frame.frame_parts(self._received)[2] or 0) > len(self._received) - 8
        ):
            part = self.socket.recv(65536)
            assert part, "the witness was cut off"
            self._received += part
        consumed, _, method = frame.unmarshal(self._received[: size + 8])
        self._received = self._received[consumed:]
        return method


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    """A broker that lives through all examples."""
    with EmbeddedBroker.in_thread() as broker:
        yield broker


@pytest.fixture(scope="module")
def witness(broker: EmbeddedBroker) -> Iterator[_Witness]:
    """A client that must not notice anything."""
    witness = _Witness(broker.port)
    yield witness
    witness.socket.close()


def test_the_session_is_valid(broker: EmbeddedBroker) -> None:
    """Without changes, every frame is accepted."""
    assert _send(broker.port, b"".join(_SESSION)).endswith(
        frame.marshal(commands.Connection.CloseOk(), 0)
    )


@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(raw=_hostile(), split=st.integers(1, 5000))
def test_hostile_frames_do_not_affect_others(
    broker: EmbeddedBroker,
    witness: _Witness,
    caplog: pytest.LogCaptureFixture,
    raw: bytes,
    split: int,
) -> None:
    """The broker never fails inside, answers others, and forgets the connection."""
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        _send(broker.port, raw, split)
        witness.ask()
        asyncio.run(eventually(lambda: broker.connections == 1, _TIMEOUT))

    assert [record.getMessage() for record in caplog.records] == []


def _send(port: int, raw: bytes, split: int = 1 << 20) -> bytes:
    """Send bytes in two parts, and read until the broker has nothing more to say."""
    with socket.create_connection(("127.0.0.1", port), _TIMEOUT) as client:
        received = b""
        try:
            client.sendall(raw[:split])
            client.sendall(raw[split:])
            client.shutdown(socket.SHUT_WR)
            while part := client.recv(65536):
                received += part
        except OSError:  # Closed before everything was read: that resets the connection.
            pass
        return received
