"""Ask a worker how it is, for the exec probes of Kubernetes, Docker and others.

A probe runs every few seconds beside the worker that it asks. So this imports next to nothing:
neither the application nor its settings, and not typer, which alone takes twice as long as all of
this.
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
    """Ask what the command line says; the exit code.

    Raises:
        SystemExit: The command line is wrong, or asks for help.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    host = given.host or _variable(f"{given.prefix}OPS__HOST") or "127.0.0.1"
    port = given.port or _variable(f"{given.prefix}OPS__PORT") or "8081"
    if not port.isdecimal() or not 1 <= int(port) <= 65_535:
        parser.error(f"the port is {port!r}: say which one it is with --port")
    why_not = _asked(_ANY_ADDRESS.get(host, host), int(port), given.page, given.timeout)
    if why_not:
        print(escape(f"{given.page}: {why_not}"), file=sys.stderr)
        return FAILED
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="workerkit probe",
        description="Ask a running worker how it is: exit 0, or 69 and a line that says why not.",
    )
    parser.add_argument(
        "page",
        nargs="?",
        choices=["live", "ready", "startup"],
        default="ready",
        help="what to ask (default: ready)",
    )
    parser.add_argument("--host", help="of the ops server (default: PREFIX + OPS__HOST)")
    parser.add_argument("--port", help="of the ops server (default: PREFIX + OPS__PORT, or 8081)")
    parser.add_argument(
        "--timeout", type=_seconds, default=1.0, help="seconds for an answer (default: 1)"
    )
    parser.add_argument(
        "--prefix",
        default="WORKERKIT_",
        help="of the environment variables (default: WORKERKIT_)",
    )
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < inf:
        raise ValueError
    return seconds


def _asked(host: str, port: int, page: str, timeout: float) -> str:
    """Why the worker is not well; empty where it is."""
    connection = HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", f"/health/{page}")
        response = connection.getresponse()
        body = response.read()
    except (OSError, HTTPException, ValueError) as error:
        return f"no answer of {host}:{port}: {str(error) or type(error).__name__}"
    finally:
        connection.close()
    return "" if response.status == 200 else _reasons(body) or f"answer {response.status}"


def _reasons(body: bytes) -> str:
    """What the worker says; empty where another server has answered."""
    try:
        return " ".join("; ".join(json.loads(body)["reasons"]).split())
    except (ValueError, TypeError, KeyError):
        return ""


def _variable(name: str) -> str:
    """An environment variable, in whatever case it is written."""
    return next((text for key, text in os.environ.items() if key.upper() == name.upper()), "")
