"""The cluster of the other tests: it is a cluster, and leaves nothing open."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import eventually

_OWNER = """
from tests.rabbit_cluster import RabbitCluster

cluster = RabbitCluster()
cluster.start()
homes = [node.eval('list_to_binary(os:getenv("HOME"))') for node in cluster.nodes]
print(*homes, *[pid for node in cluster.nodes for pid in node.pids()], flush=True)
input()
"""


@pytest.mark.timeout(300)
async def test_a_cluster_ends_with_the_process_that_started_it() -> None:
    """Kill -9 of the test run leaves no node and no directory."""
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        words = (await asyncio.to_thread(owner.stdout.readline)).split()
        homes = [Path(word) for word in words if word.startswith("/")]
        pids = [int(word) for word in words if word.isdecimal()]
        assert len(homes) == 3
        assert len(pids) >= 3

        os.kill(owner.pid, signal.SIGKILL)

        await eventually(lambda: not any(map(_alive, pids)))
    await eventually(lambda: not any(home.exists() for home in homes))


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
