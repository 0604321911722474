"""Read log records."""

import logging
from typing import Any

import pytest


def fields(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    """Return the attributes, with those of `extra`, of every record with exactly this message."""
    return [vars(record) for record in caplog.records if record.message == message]


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages at ERROR or above, without those of deliveries that finally failed.

    Left out as well is what a busy machine can cause: if it gives this process no time, its event
    loop stops as if a handler had blocked it.
    """
    found = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    return [
        each
        for each in found
        if each != "not handled" and not each.startswith("the event loop is blocked")
    ]


def everything(caplog: pytest.LogCaptureFixture) -> str:
    """Return all that a handler could write: messages, tracebacks and every field."""
    return caplog.text + "\n".join(repr(vars(record)) for record in caplog.records)
