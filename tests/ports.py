"""Free loopback ports that stay free until a test listens on them."""

import os
import random
import socket
from pathlib import Path

_given: set[int] = set()
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Return a free port of 127.0.0.1, outside the ephemeral range.

    Port 0 would give an ephemeral port. While such a port is closed, a client that keeps trying to
    connect to it sooner or later gets the same number as its own source port, connects *to itself*
    (a simultaneous open), and the server that wants the port back cannot bind it.

    Nothing reserves the port: the caller must be ready to try another one.
    """
    lowest = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32768
    below = range(10_000, lowest) if lowest > 12_000 else range(61_000, 65_535)
    for port in random.sample(_ours(below), 100):
        with socket.socket() as candidate:
            # As servers do: otherwise an earlier server's connections in TIME_WAIT hold the port.
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.add(port)
            return port
    raise RuntimeError(f"no free port of 127.0.0.1 found between {below.start} and {below.stop}")


def _ours(ports: range) -> list[int]:
    """Return those that neither another process of pytest-xdist gives, nor this one has given."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return [port for port in ports[number::count] if port not in _given]
