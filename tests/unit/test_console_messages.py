"""Messages of other processes, and of whoever may publish to the exchange."""

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerkit.console import fleet as module
from workerkit.console.fleet import Limit
from workerkit.console.messages import LARGEST_REQUEST, Message, decoded, encoded
from workerkit.console.model import Command, Operator
from workerkit.console.reports import ConsumerReport, ProcessReport

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
FIELDS = st.fixed_dictionaries(
    {"kind": st.sampled_from(["ask", "report", "command", "result", "hello", "bye"])},
    optional=dict.fromkeys(("process", "request", "report", "command", "operator", "result"), JSON),
)
REPORT = ProcessReport(
    id="1",
    app="shop",
    host="h",
    pid=1,
    started=datetime(2026, 12, 1, tzinfo=UTC),
    consumers=[ConsumerReport(name="Orders", kind="amqp", bounds=[0.1], counts=[1, 2])],
)


def test_messages_are_read_as_they_were_written() -> None:
    """Also those with times and numbers."""
    report = Message(kind="report", process="1", request="2", report=REPORT)
    command = Message(
        kind="command",
        command=Command(action="prefetch", consumer="Orders", value=7, processes=["1"]),
        operator=Operator(user="alice", role="operate"),
    )

    assert encoded(decoded(encoded(report))) == encoded(report)
    assert decoded(encoded(command)) == command


@given(st.binary() | JSON.map(lambda each: json.dumps(each).encode()))
def test_other_bytes_are_refused(body: bytes) -> None:
    """They raise nothing but `ValueError`."""
    with pytest.raises(ValueError, match=r"^(no JSON|no object|\d+ errors).* \d+ bytes$"):
        decoded(body)


@given(FIELDS)
def test_messages_with_any_values(fields: dict[str, Any]) -> None:
    """They are messages, or raise `ValueError`."""
    with suppress(ValueError):
        assert decoded(json.dumps(fields).encode()).kind == fields["kind"]


@pytest.mark.parametrize(
    "path", [["failures"], ["consumers"], ["consumers", "counts"], ["reasons"]]
)
@pytest.mark.parametrize("item", [0, {}, []])
def test_only_the_first_invalid_item_is_a_fault(path: Sequence[str], item: Any) -> None:
    """A million invalid items do not block the process, nor fill its memory."""
    value: Any = [item] * 100_000
    for name in reversed(path):
        value = [{name: value}] if name != path[0] else {name: value}
    body = json.dumps({"kind": "report", "report": value}).encode()
    assert len(body) > LARGEST_REQUEST

    with pytest.raises(ValueError, match=r"^\d{1,2} errors in \d+ bytes$"):
        decoded(body)


def test_only_a_report_may_be_large() -> None:
    """Others are read as if they had no content."""
    command = {"action": "run", "consumer": "A", **{f"{n}": n for n in range(20_000)}}

    assert decoded(json.dumps({"kind": "command", "command": command}).encode()).command is None


@pytest.mark.parametrize("rate", [21, 30, 60, 1_000])
def test_too_many_questions_are_answered_in_part(
    monkeypatch: pytest.MonkeyPatch, rate: int
) -> None:
    """As many as the limit allows, also after seconds, however many there are."""
    now = 100.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    limit, allowed = Limit(20), []
    for _ in range(10 * rate):
        now += 1 / rate
        allowed.append(limit.allows())

    assert 18 <= sum(allowed[-rate:]) <= 21
    assert sum(allowed) <= 20 * 11
