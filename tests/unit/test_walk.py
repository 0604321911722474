"""The script that counts the files and functions that a delivery enters."""

import asyncio
import json
import subprocess
import sys
from types import CodeType
from typing import Any

from benchmarks.walk import HANDLERS, PACKAGE, WALKS, Recorder, Walk, measure


async def test_a_dead_letter_enters_more_than_a_success() -> None:
    """Both walks lead to a handler and back, and that of the dead letter is longer."""
    success, failure = await measure("success", runs=2), await measure("dead-letter", runs=2)

    assert success.entered[HANDLERS] == ["Succeeding.handle"]
    assert failure.entered[HANDLERS] == ["Failing.handle"]
    assert 0 < success.files < failure.files
    assert success.files < success.functions < failure.functions
    assert success.files <= success.passages < failure.passages


async def test_all_walks() -> None:
    """Each enters files of the package, and none of what plays the outside world."""
    walks = {name: await measure(name, runs=1) for name in WALKS}

    assert [name for name, walk in walks.items() if not walk.files] == []
    files = {file for walk in walks.values() for file in walk.entered}
    assert [file for file in files if file.startswith(("embedded", "testing", "/"))] == []


def test_the_command() -> None:
    """It prints the figures of a walk, and the functions by file."""
    command = [sys.executable, "-m", "benchmarks.walk", "--list", "success", "--json"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True)

    walk = json.loads(printed.stdout)["success"]
    assert list(walk) == ["files", "functions", "passages", "entered"]
    assert walk["files"] == len(walk["entered"]) - 1
    assert printed.stderr == ""


def test_what_all_records_have_in_common() -> None:
    """A timer that runs in one record does not count, and the smallest number of passages does."""
    read, work, tick = (_function(name) for name in ("read", "work", "tick"))
    walk = Walk.of([[read, work, read, work], [read, tick, work]])

    assert walk == Walk({"read.py": ["read"], "work.py": ["work"]}, 1)
    assert (walk.files, walk.functions) == (2, 2)


async def test_a_coroutine_that_continues_is_not_entered_again() -> None:
    """It counts once per call, or once if it was called before the record began."""
    names: dict[str, Any] = {"sleep": asyncio.sleep}
    source = "async def turn():\n    await sleep(0)\n    await sleep(0)"
    exec(compile(source, str(PACKAGE / "turn.py"), "exec"), names)
    recorder = Recorder()

    with recorder.recording() as calls:
        await names["turn"]()
        await names["turn"]()
    earlier = asyncio.create_task(names["turn"]())
    await asyncio.sleep(0)
    with recorder.recording() as continued:
        await earlier

    assert [code.co_name for code in calls] == ["turn", "turn"]
    assert [code.co_name for code in continued] == ["turn"]


def _function(name: str) -> CodeType:
    """Return a function of a file of the package that has its name."""
    [code, *_] = compile(f"def {name}(): ...", str(PACKAGE / f"{name}.py"), "exec").co_consts
    assert isinstance(code, CodeType)
    return code
