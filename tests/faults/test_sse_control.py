"""Consumers of event streams are paused while they run."""

import asyncio
from typing import Any

import pytest

from tests.streams import collector, consuming
from tests.waiting import eventually
from workerkit import Runner, SSEEvent
from workerkit.control import Control, NotPossible
from workerkit.health import State
from workerkit.testing import sse_server


def control(runner: Runner) -> Control:
    """Return the control of the only consumer."""
    return runner.health[0].control


async def test_pause_closes_the_stream_and_resume_opens_it_after_the_last_event() -> None:
    """Events that were received are handled during the pause, and each of them once."""
    gate = asyncio.Event()

    async def wait(event: SSEEvent[str]) -> None:
        await gate.wait()

    consumer, handled = collector(before=wait)
    async with sse_server() as server, consuming(server, consumer) as runner:
        for number in range(5):
            await server.send(str(number), id=str(number))
        await eventually(lambda: runner.health[0].in_flight() == 1)

        await asyncio.gather(control(runner).pause(), control(runner).pause())
        await eventually(lambda: server.clients == 0)
        assert (runner.health[0].state, runner.ready) == (State.PAUSED, True)
        for number in range(5, 8):
            await server.send(str(number), id=str(number))
        gate.set()
        await eventually(lambda: handled and runner.health[0].in_flight() == 0)
        assert len(server.requests) == 1

        await asyncio.gather(control(runner).resume(), control(runner).resume())
        await eventually(lambda: len(handled) == 8)
        assert handled == [str(number) for number in range(8)]
        assert runner.health[0].state.value == "ready"
        assert len(server.requests) == 2


async def test_paused_at_the_start_and_while_the_server_is_away() -> None:
    """Nothing is requested, and the process is ready, until the consumer is resumed."""
    consumer, handled = collector(paused=True)
    async with sse_server() as server, consuming(server, consumer) as runner:
        assert (control(runner).paused, runner.health[0].state) == (True, State.PAUSED)
        assert server.requests == []
        await server.stop()
        await control(runner).resume()
        await eventually(lambda: "resumed" not in runner.health[0].reason)
        await control(runner).pause()
        assert (str(runner.health[0].state), runner.ready) == ("paused", True)
        await server.start()
        await control(runner).resume()
        await server.client()
        await server.send("a")
        await eventually(lambda: handled == ["a"])


async def test_a_stream_that_cannot_be_opened_again_is_not_paused() -> None:
    """It would end with the pause; one that starts paused is opened once, later."""
    post: dict[str, Any] = {"json": {"prompt": "hello"}}
    consumer, handled = collector(**post)
    async with sse_server() as server, consuming(server, consumer) as runner:
        assert control(runner).abilities == frozenset()
        with pytest.raises(NotPossible, match="opened by POST, and only once: set reopen = True"):
            await control(runner).pause()
        await server.send("a")
        await eventually(lambda: handled == ["a"])

    consumer, _ = collector(paused=True, **post)
    async with sse_server() as server, consuming(server, consumer) as runner:
        await control(runner).resume()
        await eventually(lambda: len(server.requests) == 1)


async def test_concurrency_changes_only_without_an_order() -> None:
    """With one worker events are handled in order, so there are no more workers."""
    gate = asyncio.Event()

    async def wait(event: SSEEvent[str]) -> None:
        await gate.wait()

    consumer, handled = collector(before=wait, concurrency=2)
    async with sse_server() as server, consuming(server, consumer) as runner:
        assert control(runner).abilities == {"pause", "concurrency"}
        for number in range(12):
            await server.send(str(number), id=str(number))
        await eventually(lambda: runner.health[0].in_flight() == 2)
        await control(runner).change_concurrency(5)
        await eventually(lambda: runner.health[0].in_flight() == 5)
        await control(runner).change_concurrency(1)
        assert control(runner).concurrency == 1
        gate.set()
        await eventually(lambda: len(handled) == 12)
        assert set(handled) == {str(number) for number in range(12)}

    consumer, _ = collector()
    async with sse_server() as server, consuming(server, consumer) as runner:
        assert control(runner).abilities == {"pause"}
