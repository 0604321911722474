"""The number of processes for `--processes auto`."""

import os
from pathlib import Path

import pytest

from workerkit.processes.cpus import available_cpus


@pytest.mark.parametrize(
    ("limit", "count"),
    [
        ("max 100000", 8),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("6400000 100000", 8),
        ("", 8),
        (None, 8),
    ],
)
def test_a_container_has_as_many_as_its_limit_allows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str | None, count: int
) -> None:
    """It sees all CPUs of the machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    file = tmp_path / "cpu.max"
    if limit is not None:
        file.write_text(limit)

    assert available_cpus(file) == count
