"""The proxy of the fault tests."""

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest

from tests.proxy import CONSUME_OK, QOS_OK, Proxy
from tests.waiting import eventually


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy in front of an echo server."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    async with server, Proxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


async def test_bytes_go_through_both_ways(proxy: Proxy) -> None:
    """A megabyte is echoed completely, and a half close ends the connection cleanly."""
    payload = bytes(range(256)) * 4096
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)

    async def send() -> None:
        writer.write(payload)
        await writer.drain()
        writer.write_eof()

    sending = asyncio.create_task(send())
    assert await reader.read(-1) == payload
    await sending
    writer.close()
    await eventually(lambda: proxy.connections == 0)
    assert proxy.accepted == 1


async def test_drop_resets_connections(proxy: Proxy) -> None:
    """A dropped client sees a reset and not an end of file; a new one is served."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"

    proxy.drop()

    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"again")
    assert await reader.readexactly(5) == b"again"
    writer.close()


async def test_freeze_holds_bytes_back_and_thaw_delivers_them(proxy: Proxy) -> None:
    """Nothing is forwarded while frozen, also on new connections, and nothing is lost."""
    old = await asyncio.open_connection("127.0.0.1", proxy.port)
    proxy.freeze()
    new = await asyncio.open_connection("127.0.0.1", proxy.port)
    for _, writer in (old, new):
        writer.write(b"hello")
    for reader, _ in (old, new):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.05)

    proxy.thaw()

    for reader, writer in (old, new):
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello"
        writer.close()


async def test_refuse_keeps_open_connections_and_the_port(proxy: Proxy) -> None:
    """New clients are refused until `accept`; connected ones are not affected."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"still")
    assert await reader.readexactly(5) == b"still"
    writer.close()

    await proxy.accept()

    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"here")
    assert await reader.readexactly(4) == b"here"
    writer.close()


async def test_a_client_is_reset_when_the_server_is_down() -> None:
    """If no server listens, the proxy accepts a connection and resets it."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with Proxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


def _frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce"


async def test_one_frame_is_swallowed_however_the_bytes_are_cut() -> None:
    """The second `qos-ok` is left out; other methods, headers, bodies and heartbeats pass."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    qos, consume = _frame(1, struct.pack(">HH", *QOS_OK)), struct.pack(">HH", *CONSUME_OK)
    body = _frame(3, struct.pack(">HH", *QOS_OK) * 3)
    sent = [qos, _frame(1, consume + b"tag"), body, qos, _frame(8, b""), qos, _frame(2, b"x" * 14)]
    left = b"".join([*sent[:3], *sent[4:]])
    async with server, Proxy("127.0.0.1", port, amqp=True) as proxy:
        proxy.swallow(QOS_OK, 2)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        for byte in b"".join(sent):
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        received = await asyncio.wait_for(reader.readexactly(len(left)), 5)
        writer.close()

    assert received == left
    assert proxy.swallowed == [QOS_OK]
