"""`workerkit settings`: every variable, with its current value and its source."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.application import package_of
from workerkit import AMQPConsumer, SSEConsumer
from workerkit.cli.commands import app


class Booked(AMQPConsumer):
    queues = ["orders", "more"]
    timeout = 5.0

    async def handle(self, body: bytes) -> None: ...


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_variable_is_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of every connection and options of every consumer, each with its source."""
    monkeypatch.setenv("WORKERKIT_AMQP__LOGS__URL", "amqp://me:hush@logs/")
    monkeypatch.setenv("WORKERKIT_CONSUMERS__BOOKED__CONCURRENCY", "7")
    Path(".env").write_text("WORKERKIT_SHUTDOWN_GRACE=3\n")

    result = CliRunner().invoke(app, ["settings", package_of(Booked), "--json"])
    rows = {row["variable"]: row for row in json.loads(result.output)}

    def found(name: str) -> tuple[object, object, str, str]:
        row = rows[f"WORKERKIT_{name}"]
        return row["default"], row["value"], row["type"], row["source"]

    assert found("AMQP__LOGS__URL")[1:] == ("***", "str", "environment")
    assert found("AMQP__DEFAULT__HEARTBEAT") == (15, 15, "int", "default")
    assert found("SHUTDOWN_GRACE") == (20.0, 3.0, "float", ".env")
    assert found("CONSUMERS__BOOKED__CONCURRENCY") == (16, 7, "int", "environment")
    assert found("CONSUMERS__BOOKED__TIMEOUT") == (300.0, 5.0, "float | none", "class")
    assert found("CONSUMERS__BOOKED__QUEUES") == (None, ["orders", "more"], "list of str", "class")
    assert found("AMQP__DEFAULT__DECLARE")[2] == "missing | always | never"
    assert "hush" not in result.output


def test_the_text_output() -> None:
    """Without --json there is one line for each variable, in the syntax of a shell."""
    result = CliRunner().invoke(app, ["settings", package_of(Booked)])

    lines = result.output.splitlines()
    assert "WORKERKIT_SHUTDOWN_GRACE=20.0  (float, default)" in lines
    assert "WORKERKIT_CONSUMERS__BOOKED__QUEUES=orders,more  (list of str, class)" in lines


class Asked(SSEConsumer):
    url = "https://llm.example/"
    json = {"stream": True, "messages": [{"role": "user"}]}
    done = "[DONE]"

    async def handle(self, data: str) -> None: ...


def test_what_is_nested_is_json() -> None:
    """A dict is printed as JSON for a variable, and as an object with --json."""
    package = package_of(Asked)
    text = CliRunner().invoke(app, ["settings", package]).output
    rows = json.loads(CliRunner().invoke(app, ["settings", package, "--json"]).output)

    [line] = [each for each in text.splitlines() if "__ASKED__JSON=" in each]
    assert json.loads(line.partition("=")[2].partition("  (")[0]) == Asked.json
    assert Asked.json in [row["value"] for row in rows]
