"""FP8: a first start declares missing queues, and logs them once per consumer, at INFO."""

import json
import logging
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import command
from tests.application import running
from tests.client import Client
from tests.consumers import collector
from tests.ports import free_port
from tests.records import fields
from tests.waiting import eventually
from workerkit import Action, AMQPConsumer, Binding, Exchange, Queue, Retry, RetryPolicy

TEMPLATE = Path(__file__).parents[2] / "app_template"
DECLARED = "declared what was missing"
AGAIN = "queue was deleted and has been declared again"
WARNING = logging.WARNING


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages at WARNING and above, except those that a busy machine may cause."""
    found = [each.message for each in caplog.records if each.levelno >= WARNING]
    return [each for each in found if not each.startswith("the event loop is blocked")]


async def test_fp8_one_record_names_all_declarations(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Queues, exchanges and bindings of one consumer; the second start logs nothing."""
    caplog.set_level(logging.INFO)
    shop = Exchange("shop", type="topic")
    consumer, _ = collector(
        Queue("orders", bindings=[Binding(shop, "order.*"), Binding("amq.fanout")]),
        "returns",
        retry=RetryPolicy(delays=(1, 5)),
    )
    async with running(url, consumer):
        pass
    [record] = fields(caplog, DECLARED)
    assert warnings(caplog) == []
    caplog.clear()
    async with running(url, consumer):
        pass

    assert (record["levelno"], record["consumer"]) == (logging.INFO, "Collector")
    suffixes = ("", ".dlq", ".retry.1s", ".retry.5s")
    expected = [name + suffix for name in ("orders", "returns") for suffix in suffixes]
    assert sorted(record["queues"]) == expected
    assert record["exchanges"] == ["shop"]
    assert sorted(record["bindings"]) == [
        "amq.fanout to orders",
        "shop to orders with routing key 'order.*'",
    ]
    assert fields(caplog, DECLARED) == []
    assert warnings(caplog) == []


@pytest.mark.parametrize("declare", ["missing", "always"])
async def test_fp8_a_deleted_queue_is_a_warning(
    url: str, client: Client, caplog: pytest.LogCaptureFixture, declare: str
) -> None:
    """A dead-letter queue or a queue of the consumer that existed, and is declared again."""
    caplog.set_level(logging.INFO)

    class Orders(AMQPConsumer):
        queues = ["orders"]
        on_exception = Action.DEAD_LETTER

        async def handle(self, number: int) -> None: ...

    Orders.declare = declare  # type: ignore[assignment]
    async with running(url, Orders) as runner:
        assert warnings(caplog) == []
        if declare == "always":
            await client.delete("orders.dlq")
            await client.send("orders", b"no number")
            await eventually(lambda: fields(caplog, AGAIN))
            await client.delete("orders")
            await eventually(lambda: len(fields(caplog, AGAIN)) == 2)
            await eventually(lambda: runner.ready)
        else:
            await client.delete("orders")
            await eventually(lambda: fields(caplog, "queue is missing"))

    again = [name for each in fields(caplog, AGAIN) for name in each["queues"]]
    assert again == (["orders.dlq", "orders"] if declare == "always" else [])
    assert {each["levelno"] for each in fields(caplog, AGAIN)} <= {WARNING}
    [first] = fields(caplog, DECLARED)
    assert first["queues"] == ["orders", "orders.dlq"]


async def test_fp8_a_retry_queue_that_is_needed_later_is_not_a_warning(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a policy, the delays that a handler will use are not known at the start."""
    caplog.set_level(logging.INFO)

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None:
            raise Retry(after=60)

    async with running(url, Orders):
        await client.send("orders", b"a")
        await eventually(lambda: len(fields(caplog, DECLARED)) == 2)

    assert fields(caplog, DECLARED)[1]["queues"] == ["orders.retry.60s"]
    assert set(warnings(caplog)) <= {"not handled"}


@pytest.mark.parametrize("broker", ["rabbitmq", "embedded"])
async def test_fp8_the_first_start_of_the_template_has_no_warning(
    broker: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """On an empty virtual host, from the start to the end."""
    port = str(free_port())
    variables = {
        "SHOP_DATABASE_URL": f"sqlite:///{tmp_path / 'shop.db'}",
        "SHOP_LOG__FORMAT": "json",
        "SHOP_OPS__PORT": "0",
        "SHOP_HTTP__PORT": port,
        "SHOP_SSE__SHOP__URL": f"http://127.0.0.1:{port}",
    }
    arguments = ["--embedded-broker"]
    if broker == "rabbitmq":
        variables["SHOP_AMQP__DEFAULT__URL"] = request.getfixturevalue("url")
        arguments = []
    async with command.running("shop", *arguments, cwd=TEMPLATE, uvloop=True, **variables) as app:
        await app.says('"message": "consuming"')
        await app.says(DECLARED)
        app.send(signal.SIGTERM)
        code = await app.ended()

    records: list[dict[str, Any]] = [json.loads(line) for line in app.err if line.startswith("{")]
    odd = [each for each in records if each["level"] not in ("DEBUG", "INFO")]
    assert [each for each in odd if "event loop is blocked" not in each["message"]] == []
    assert [line for line in app.err if not line.startswith("{")] == []
    assert code == 0
