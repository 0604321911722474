"""`workerkit publish`: one message from the command line, and its errors."""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client import Client
from tests.command import environment, workerkit, write_package
from tests.ports import free_port
from tests.rabbit import PrivateRabbit

CONSUMERS = """
    from workerkit import AMQPConsumer

    class OrderPlaced(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None: ...
"""

CONTAINER = """
    from dependency_injector import providers
    from pydantic_settings import SettingsConfigDict
    from workerkit import WorkerContainer, WorkerSettings

    class Settings(WorkerSettings):
        model_config = SettingsConfigDict(env_prefix="SHOP_")

    class Container(WorkerContainer):
        settings = providers.Singleton(Settings)
"""

PASSWORD = "hunter22"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with the package `shop`, whose variables begin with `SHOP_`."""
    write_package(tmp_path, "shop", consumers=CONSUMERS, container=CONTAINER)
    return tmp_path


@pytest.fixture
def vhost(vhost: str, rabbit: PrivateRabbit) -> str:
    """A virtual host with a user `operator`, whose password must not be shown."""
    rabbit.add_user(f"operator-{vhost}", PASSWORD, vhost)
    return vhost


def secret_url(rabbit: PrivateRabbit, vhost: str) -> str:
    """Return the address, with a password that can be found in outputs."""
    return rabbit.url(vhost, f"operator-{vhost}", PASSWORD)


async def test_to_a_url(rabbit: PrivateRabbit, vhost: str, tmp_path: Path, client: Client) -> None:
    """No package is needed: the message arrives, persistent, and its id is printed."""
    await client.declare("orders")
    done = workerkit("publish", rabbit.url(vhost), "orders", '{"id": 1}', cwd=tmp_path)
    letter = await client.take("orders")

    assert (done.returncode, done.stderr) == (0, "")
    assert letter.body == b'{"id": 1}'
    assert done.stdout.strip() == letter.properties.message_id
    assert letter.properties.delivery_mode == 2


async def test_to_a_package(url: str, shop: Path, client: Client) -> None:
    """The settings of the package have the address; an option selects a named connection."""
    await client.declare("orders")
    nowhere = f"amqp://127.0.0.1:{free_port()}/"
    first = workerkit("publish", "shop", "orders", "a", cwd=shop, SHOP_AMQP__DEFAULT__URL=url)
    second = workerkit(
        "publish", "shop", "orders", "b", "--connection", "Other",
        cwd=shop, SHOP_AMQP__DEFAULT__URL=nowhere, SHOP_AMQP__OTHER__URL=url,
    )  # fmt: skip
    letters = [await client.take("orders") for _ in range(2)]

    assert [(each.returncode, each.stderr) for each in (first, second)] == [(0, "")] * 2
    assert [each.body for each in letters] == [b"a", b"b"]


@pytest.mark.parametrize("arguments", [[], ["-"]], ids=["left out", "dash"])
async def test_from_standard_input(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path, client: Client, arguments: list[str]
) -> None:
    """The body is read from standard input, unchanged."""
    await client.declare("orders")
    body = bytes(range(256)) * 2_000
    done = subprocess.run(
        [sys.executable, "-m", "workerkit", "publish", rabbit.url(vhost), "orders", *arguments],
        cwd=tmp_path,
        env=environment({}),
        input=body,
        capture_output=True,
        timeout=30.0,
        check=False,
    )
    letter = await client.take("orders")

    assert (done.returncode, done.stderr) == (0, b"")
    assert letter.body == body


async def test_fr16_properties_of_a_message(url: str, tmp_path: Path, client: Client) -> None:
    """Options set its properties; `content_encoding` compresses the body."""
    await client.declare("orders")
    done = workerkit(
        "publish",
        url,
        "orders",
        "{}",
        *("--content-type", "application/json", "--content-encoding", "gzip"),
        *("--type", "order.placed", "--reply-to", "answers", "--correlation-id", "c"),
        cwd=tmp_path,
    )
    letter = await client.take("orders")
    refused = workerkit("publish", url, "orders", "x", "--header", "CC=a", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert gzip.decompress(letter.body) == b"{}"
    sent = letter.properties
    assert (sent.content_type, sent.content_encoding) == ("application/json", "gzip")
    assert (sent.message_type, sent.reply_to) == ("order.placed", "answers")
    assert sent.correlation_id == "c"
    assert refused.returncode == 1
    assert "header 'CC' is of type str: write a list of str" in refused.stderr


async def test_headers_and_an_exchange(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path, client: Client
) -> None:
    """Headers are text; only the first equals sign of each divides it."""
    await client.declare("orders")
    await client.declare_exchange("shop", "orders")
    done = workerkit(
        "publish", rabbit.url(vhost), "orders", "x", "--exchange", "shop",
        "--header", "trace=t-1", "--header", "query=a=b", "--header", "empty=",
        cwd=tmp_path,
    )  # fmt: skip
    letter = await client.take("orders")

    assert done.returncode == 0
    assert letter.headers == {"trace": "t-1", "query": "a=b", "empty": ""}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nobody", "x"], "NO_ROUTE"),
        (["orders", "x", "--exchange", "nowhere"], "nowhere"),
        (["full", "x"], "'full'"),
        (["orders", "x", "--header", "h=" + "x" * 100_000, "--header", "i=" + "x" * 40_000], "fit"),
        (["k" * 256, "x"], "255"),
        (["orders", "x", "--header", "h" * 256 + "=1"], "255"),
    ],
    ids=["queue", "exchange", "full", "headers", "long routing key", "long header"],
)
async def test_a_message_that_cannot_be_published(
    rabbit: PrivateRabbit,
    vhost: str,
    tmp_path: Path,
    client: Client,
    arguments: list[str],
    reason: str,
) -> None:
    """Exit code 1 and one line with the reason; no traceback, no password."""
    await client.declare("orders")
    await client.declare("full", x_max_length=0, x_overflow="reject-publish")
    done = workerkit("publish", secret_url(rabbit, vhost), *arguments, cwd=tmp_path)

    [line] = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert reason in line
    assert PASSWORD not in done.stderr


@pytest.mark.parametrize("header", ["trace", "=t-1", "", "="])
def test_a_header_without_its_name(tmp_path: Path, header: str) -> None:
    """A usage error with exit code 2 and the right syntax; no connection is opened."""
    done = workerkit(
        "publish", "amqp://127.0.0.1:1/", "orders", "x", "--header", header, cwd=tmp_path
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert "name=value" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "target",
    [
        "amqp://",
        f"amqp://user:{PASSWORD}@[bad/",
        f"amqp://user:{PASSWORD}@host:99999/",
        "nope",
        f"http://user:{PASSWORD}@host/",
    ],
)
def test_an_invalid_target(tmp_path: Path, target: str) -> None:
    """One line and exit code 2, for any error in the address or the package."""
    done = workerkit("publish", target, "orders", "x", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert PASSWORD not in done.stderr


def test_an_invalid_variable(shop: Path) -> None:
    """Faults of the environment are one line each, as with every other command."""
    done = workerkit("publish", "shop", "orders", "x", cwd=shop, SHOP_SHUTDOWN_GRACE="soon")

    [line] = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert "SHOP_SHUTDOWN_GRACE" in line


async def test_a_url_needs_no_environment(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path, client: Client
) -> None:
    """With a URL, the variables of an application are ignored."""
    await client.declare("orders")
    wrong = {"WORKERKIT_SHUTDOWN_GRACE": "soon", "WORKERKIT_AMQP__DEFAULT__HOST": "elsewhere"}

    done = workerkit("publish", rabbit.url(vhost), "orders", "x", cwd=tmp_path, **wrong)

    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_connection(shop: Path) -> None:
    """One line with the existing ones, exit code 2."""
    done = workerkit("publish", "shop", "orders", "x", "--connection", "other", cwd=shop)

    [line] = done.stderr.splitlines()
    assert done.returncode == 2
    assert "'other'" in line
    assert "default" in line


def test_a_broker_that_refuses_the_login(rabbit: PrivateRabbit, vhost: str, tmp_path: Path) -> None:
    """Exit code 1 and one line that names user, host and reason, without the password."""
    wrong = rabbit.url(vhost, f"operator-{vhost}", "swordfish")
    done = workerkit("publish", wrong, "orders", "x", cwd=tmp_path)

    [line] = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert "ACCESS_REFUSED" in line
    assert f"operator-{vhost}@127.0.0.1:{rabbit.port}" in line
    assert "swordfish" not in done.stderr
    assert "not sent within" not in line  # the error after a wait


def test_fp17_a_broker_that_is_not_running(shop: Path) -> None:
    """It does not wait: one line has the address that was tried, and how to set another."""
    address = f"amqp://user:{PASSWORD}@127.0.0.1:{free_port()}/"
    done = workerkit("publish", "shop", "orders", "x", cwd=shop, SHOP_AMQP__DEFAULT__URL=address)
    to_url = workerkit("publish", address, "orders", "x", cwd=shop)

    [line], [other] = done.stderr.splitlines(), to_url.stderr.splitlines()
    assert (done.returncode, done.stdout) == (to_url.returncode, to_url.stdout) == (1, "")
    assert address.replace(f":{PASSWORD}", "") in line
    assert "Connection refused" in line
    assert "set SHOP_AMQP__DEFAULT__URL, or write an amqp:// URL in place of 'shop'" in line
    assert "check the URL; `workerkit run PACKAGE --embedded-broker` starts a broker" in other
    assert PASSWORD not in line + other
    assert "not sent within" not in line + other  # the error after a wait


def test_fp17_each_host_is_named(tmp_path: Path) -> None:
    """The line names each of several hosts."""
    ports = [free_port(), free_port()]
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    name = write_package(tmp_path)
    done = workerkit(
        "publish", name, "orders", "x", cwd=tmp_path, WORKERKIT_AMQP__DEFAULT__HOSTS=hosts
    )

    [line] = done.stderr.splitlines()
    assert done.returncode == 1
    assert all(f"127.0.0.1:{port}" in line for port in ports)
