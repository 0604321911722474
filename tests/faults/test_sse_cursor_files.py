"""Cursor files that are corrupt, cannot be read, or cannot be written."""

import asyncio
import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.records import errors, fields
from tests.streams import collector, consuming
from tests.waiting import eventually
from workerkit.sse.cursor import FileCursors, MemoryCursors
from workerkit.sse.parser import MAX_ID_LENGTH
from workerkit.testing import sse_server

SET_ASIDE = "cursor file is corrupt: it was renamed, and the stream begins without a cursor"


def cursor(value: object) -> bytes:
    """Return a file with this cursor."""
    return json.dumps({"consumer": "Collector", "route": "/events", "cursor": value}).encode()


CORRUPT = {
    "empty": b"",
    "half": cursor("12345")[:20],
    "no JSON": b"12345\n",
    "binary": bytes(range(256)),
    "zeros": b"\0" * 4096,
    "a list": b"[1, 2]",
    "no cursor": b'{"consumer": "A"}',
    "a number": cursor(1),
    "nested": b"[" * 60_000,
    "line break": cursor("1\n2"),
    "carriage return": cursor("1\r\nX-Injected: 1"),
    "NUL": cursor("1\0"),
    "escape": cursor("\x1b[2J"),
    "surrogate": b'{"cursor": "\\ud800"}',
    "too long": cursor("x" * (MAX_ID_LENGTH + 1)),
    "large": cursor("x" * 1_000_000),
}


@pytest.mark.parametrize("name", CORRUPT)
async def test_fe6_a_corrupt_file_is_renamed(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The stream begins without a cursor; one ERROR has the name of the file and its new name."""
    path = FileCursors(tmp_path).path("Collector", "/events")
    path.write_bytes(CORRUPT[name])
    consumer, handled = collector()

    async with sse_server() as server:
        await server.send("a")
        async with consuming(server, consumer, directory=tmp_path):
            await eventually(lambda: handled == ["a"])

    (error,) = fields(caplog, SET_ASIDE)
    assert (error["levelname"], error["file"]) == ("ERROR", str(path))
    assert error["error"].startswith(f"{path} ")
    kept = Path(error["set_aside"])
    assert kept.name.startswith(f"{path.name}.corrupt-")
    assert kept.read_bytes() == CORRUPT[name]
    assert json.loads(path.read_text())["cursor"] == "1"
    assert server.opened[0].last_event_id is None
    assert errors(caplog) == [SET_ASIDE]


@pytest.mark.parametrize("kind", ["directory", "pipe"])
async def test_fe6_a_directory_or_pipe_is_renamed(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A pipe would block its reader."""
    path = FileCursors(tmp_path).path("Collector", "/events")
    if kind == "directory":
        (path / "below").mkdir(parents=True)
    else:
        os.mkfifo(path)
    consumer, handled = collector()

    async with sse_server() as server:
        await server.send("a")
        async with consuming(server, consumer, directory=tmp_path):
            await eventually(lambda: handled == ["a"])

    (error,) = fields(caplog, SET_ASIDE)
    assert error["error"] == f"{path} is not a regular file"
    assert path.is_file()


async def test_fe6_the_policy_may_be_to_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Then the stream waits, the ERROR names the file, and it continues once that is corrected."""
    path = FileCursors(tmp_path).path("Collector", "/events")
    path.write_bytes(b"junk")
    consumer, handled = collector()

    async with sse_server() as server:
        await server.send("a")
        await server.send("b")
        async with consuming(
            server, consumer, directory=tmp_path, corrupt="wait", ready=False
        ) as runner:
            await eventually(
                lambda: fields(caplog, "cursor not loaded: the stream is waiting for it")
            )
            assert (server.requests, path.read_bytes()) == ([], b"junk")
            path.write_bytes(cursor("1"))
            await eventually(lambda: handled == ["b"])
            assert runner.ready

    (failed, *_) = fields(caplog, "cursor not loaded: the stream is waiting for it")
    assert failed["error"] == f"ValueError: {path} does not contain JSON; correct or delete it"


async def test_fe6_a_file_that_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not corrupt, so it is not renamed; the ERROR has its path."""
    path = FileCursors(tmp_path).path("Collector", "/events")
    path.symlink_to(path)  # Not even root can read this.
    consumer, handled = collector()

    async with sse_server() as server:
        await server.send("a")
        async with consuming(server, consumer, directory=tmp_path, ready=False):
            await eventually(
                lambda: fields(caplog, "cursor not loaded: the stream is waiting for it")
            )
            path.unlink()
            await eventually(lambda: handled == ["a"])

    (failed, *_) = fields(caplog, "cursor not loaded: the stream is waiting for it")
    assert str(path) in failed["error"]
    assert fields(caplog, SET_ASIDE) == []


async def test_fe6_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The stream continues, the ERROR has the path, and the cursor is saved once there is space."""
    caplog.set_level(logging.INFO)
    path = FileCursors(tmp_path).path("Collector", "/events")
    fresh = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    fresh.symlink_to("/dev/full")
    consumer, handled = collector()

    async with sse_server() as server, consuming(server, consumer, directory=tmp_path):
        await server.send("a")
        await eventually(lambda: handled == ["a"])
        await eventually(lambda: fields(caplog, "cursor store is available again"))

    (failed, *_) = fields(caplog, "cursor not saved: trying again")
    assert "No space left on device" in failed["error"]
    assert str(path) in failed["error"]
    assert json.loads(path.read_text())["cursor"] == "1"
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize("value", ["1\r\nX: 1", "\0", "x" * (MAX_ID_LENGTH + 1), "\ud800"])
async def test_fe6_a_stored_cursor_that_a_header_cannot_contain(
    value: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is an ERROR, and the stream begins without it."""
    store = MemoryCursors()
    await store.save("Collector", "/events", value)
    consumer, handled = collector()

    async with sse_server() as server:
        await server.send("a")
        async with consuming(server, consumer, cursors=store):
            await eventually(lambda: handled == ["a"])

    assert server.opened[0].last_event_id is None
    assert errors(caplog) == ["stored cursor is invalid: the stream begins without it"]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.sampled_from(sorted(CORRUPT.values())) | st.text().map(cursor))
def test_fe6_any_content_of_a_file(tmp_path_factory: Any, raw: bytes) -> None:
    """Loading returns a valid cursor or None; a second time it returns the same."""
    store = FileCursors(tmp_path_factory.mktemp("cursors"), fsync=False)
    path = store.path("A", "/x")
    path.write_bytes(raw)

    async def twice() -> tuple[str | None, str | None]:
        return await store.load("A", "/x"), await store.load("A", "/x")

    first, second = asyncio.run(twice())

    assert first == second
    if first is None:
        assert [each.read_bytes() for each in path.parent.iterdir()] == [raw]
    else:
        assert json.loads(raw)["cursor"] == first
        assert path.read_bytes() == raw
