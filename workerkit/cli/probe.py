"""Check the health of a worker, for exec probes of Kubernetes, Docker and others.

A probe runs every few seconds on the worker's machine, so this module imports little: neither the
application nor its settings, and not typer, whose import alone takes twice as long as a probe.
"""

import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from math import inf

from workerkit.safe_text import escape

FAILED = 69
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def probe(arguments: Sequence[str]) -> int:
    """Check the page that the command line names, and return the exit code.

    Raises:
        SystemExit: The command line is wrong, or requests help.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    host = given.host or _variable(f"{given.prefix}OPS__HOST") or "127.0.0.1"
    port = given.port or _variable(f"{given.prefix}OPS__PORT") or "8081"
    if not port.isdecimal() or not 1 <= int(port) <= 65_535:
        parser.error(f"the port is {port!r}: set it to a number from 1 to 65535 with --port")
    reason = _failure(_ANY_ADDRESS.get(host, host), int(port), given.page, given.timeout)
    if reason:
        print(escape(f"{given.page}: {reason}"), file=sys.stderr)
        return FAILED
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="workerkit probe",
        description="Check a running worker: exit code 0, or 69 and the reason on one line.",
    )
    parser.add_argument(
        "page",
        nargs="?",
        choices=["live", "ready", "startup"],
        default="ready",
        help="what to check (default: ready)",
    )
    parser.add_argument("--host", help="host of the ops server (default: PREFIX + OPS__HOST)")
    parser.add_argument(
        "--port", help="port of the ops server (default: PREFIX + OPS__PORT, or 8081)"
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=1.0,
        help="seconds to wait (default: 1)",
    )
    parser.add_argument(
        "--prefix",
        default="WORKERKIT_",
        help="prefix of the environment variables (default: WORKERKIT_)",
    )
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < inf:
        raise ValueError
    return seconds


def _failure(host: str, port: int, page: str, timeout: float) -> str:
    """Return why a check failed; empty if it passed."""
    connection = HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", f"/health/{page}")
        response = connection.getresponse()
        body = response.read()
    except (OSError, HTTPException, ValueError) as error:
        return f"no response from {host}:{port}: {str(error) or type(error).__name__}"
    finally:
        connection.close()
    return "" if response.status == 200 else _reasons(body) or f"status {response.status}"


def _reasons(body: bytes) -> str:
    """Return the reasons that the worker gives; empty if another server responded."""
    try:
        return " ".join("; ".join(json.loads(body)["reasons"]).split())
    except (ValueError, TypeError, KeyError):
        return ""


def _variable(name: str) -> str:
    """Return an environment variable; case does not matter."""
    return next((text for key, text in os.environ.items() if key.upper() == name.upper()), "")
