"""Run a tool in each of several projects, in forks of one process that has imported a lot.

    python in_projects.py TOOL JOBS DIRECTORY... [-- ARGUMENT...]

TOOL is `pytest`, `mypy` or `demo`; JOBS of them run at a time. The output of each is in TOOL.log
of its directory, and this writes `start DIRECTORY PID` and `end DIRECTORY CODE`. The interpreter is
that of the projects, so this imports nothing of our tests.
"""

import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

# Most of the time of a run is that of these imports, which are the same in each project.
import alembic.command  # noqa: F401
import mypy.main
import pytest
import sqlalchemy.ext.asyncio  # noqa: F401

import workerkit.testing  # noqa: F401


def run_pytest(arguments: Sequence[str]) -> int:
    """Run the tests of the current directory."""
    return pytest.main(["-p", "no:cacheprovider", *arguments])


def run_mypy(arguments: Sequence[str]) -> int:
    """Check the types of the current directory, with a cache that the projects share."""
    mypy.main.main(args=["--cache-dir", "../.mypy_cache", *arguments], clean_exit=True)
    return 0


def run_demo(_: Sequence[str]) -> int:
    """Run the demo of the current directory until a signal ends it."""
    runpy.run_path("demo.py", run_name="__main__")
    return 0


TOOLS = {"pytest": run_pytest, "mypy": run_mypy, "demo": run_demo}


def fork(tool: str, directory: Path, arguments: Sequence[str]) -> int:
    """Run a tool in a fork; return its process."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.chdir(directory)
        log = os.open(f"{tool}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.path[0] = str(
            directory
        )  # As `python demo.py` has it; it was the directory of this file.
        sys.argv = [tool]
        code = TOOLS[tool](arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(tool: str, jobs: int, directories: list[Path], arguments: Sequence[str]) -> None:
    """Run a tool in each directory."""
    running: dict[int, Path] = {}
    waiting = list(reversed(directories))
    while running or waiting:
        while waiting and len(running) < jobs:
            directory = waiting.pop()
            pid = fork(tool, directory, arguments)
            running[pid] = directory
            print("start", directory, pid, flush=True)
        pid, status = os.wait()
        print("end", running.pop(pid), os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    tool, jobs, *rest = sys.argv[1:]
    end = rest.index("--") if "--" in rest else len(rest)
    main(tool, int(jobs), [Path(each) for each in rest[:end]], rest[end + 1 :])
