"""The number of CPUs that a process may use."""

import math
import os
from contextlib import suppress
from pathlib import Path

_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def available_cpus(limit: Path = _LIMIT) -> int:
    """Return the number of CPUs, at least 1.

    A container usually sees all CPUs of its machine, and may use fewer.

    Args:
        limit: The file of the control group, with microseconds of CPU time and of the period, or
            `max` for no limit; it need not exist.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = limit.read_text().split()
        count = min(count, math.ceil(int(quota) / int(period)))
    return max(count, 1)
