"""Row A6, as an operator sees it: the output of commands in an invalid environment."""

import json
from pathlib import Path

import pytest

from tests.command import workerkit, write_package

CONSUMERS = """
    from workerkit import AMQPConsumer

    class OrderPlaced(AMQPConsumer):
        queues = ["orders"]
        concurrency = 16

        async def handle(self, body: bytes) -> None: ...

    class Audit(AMQPConsumer):
        queues = ["audit"]

        async def handle(self, body: bytes) -> None: ...
"""

CONTAINER = """
    from dependency_injector import providers
    from pydantic import SecretStr
    from pydantic_settings import SettingsConfigDict
    from workerkit import WorkerContainer, WorkerSettings

    class Settings(WorkerSettings):
        model_config = SettingsConfigDict(env_prefix="SHOP_")
        database_url: str
        api_key: SecretStr = SecretStr("")
        pool_size: int = 4

    class Container(WorkerContainer):
        settings = providers.Singleton(Settings)
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with the package `shop`, whose variables begin with `SHOP_`."""
    write_package(tmp_path, "shop", consumers=CONSUMERS, container=CONTAINER)
    return tmp_path


@pytest.mark.parametrize("command", ["check", "run", "list"])
def test_a6_everything_at_once(shop: Path, command: str) -> None:
    """A6: every invalid variable is one line on stderr, and the exit code is 2."""
    done = workerkit(
        command,
        "shop",
        cwd=shop,
        SHOP_AMQP__DEFAULT__PORT="abc",
        SHOP_HTTP="{bad",
        SHOP_OPS__PROT="1",
        SHOP_SHUTDOWN_GRACE="-3",
        SHOP_POOL_SIZE="many",
        SHOP_DATABSE_URL="postgres://u:hunter22@h/db",
        SHOP_CONSUMERS__ORDER_PLACD__CONCURRENCY="4",
        SHOP_CONSUMERS__ORDER_PLACED__CONCURENCY="5",
        SHOP_CONSUMERS__AUDIT__TIMEOUT="soon",
    )

    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    # All of them, and one that is not set.
    for name, found in {
        "SHOP_AMQP__DEFAULT__PORT": "'abc'",
        "SHOP_HTTP": "not valid JSON",
        "SHOP_OPS__PROT": "did you mean SHOP_OPS__PORT?",
        "SHOP_SHUTDOWN_GRACE": "'-3'",
        "SHOP_POOL_SIZE": "'many'",
        "SHOP_DATABSE_URL": "did you mean SHOP_DATABASE_URL?",
        "SHOP_DATABASE_URL": "not set",
        "SHOP_CONSUMERS__ORDER_PLACD__CONCURRENCY": (
            "did you mean SHOP_CONSUMERS__ORDER_PLACED__CONCURRENCY?"
        ),
        "SHOP_CONSUMERS__ORDER_PLACED__CONCURENCY": (
            "did you mean SHOP_CONSUMERS__ORDER_PLACED__CONCURRENCY?"
        ),
        "SHOP_CONSUMERS__AUDIT__TIMEOUT": "'soon'",
    }.items():
        [line] = [line for line in lines if line.split()[0].rstrip(":") == name]
        assert found in line
    assert len(lines) == 10
    assert "hunter22" not in done.stderr


def test_a6_with_faults_of_classes(shop: Path) -> None:
    """A6: faults of classes and of variables are reported together."""
    (shop / "shop" / "more.py").write_text(
        "from workerkit import AMQPConsumer\n"
        "class Bare(AMQPConsumer):\n    queues = ['q']\n    async def handle(self, x): ...\n"
    )

    done = workerkit("run", "shop", cwd=shop, SHOP_DATABASE_URL="x", SHOP_OPS__PROT="1")

    first, second = done.stderr.splitlines()
    assert done.returncode == 2
    assert "shop.more.Bare.handle (more.py:4): parameter 'x'" in first
    assert second.startswith("SHOP_OPS__PROT: ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SHOP_AMQP__DEFAULT__URL", "amqp://user:hunter22@[bad/"),
        ("SHOP_AMQP__DEFAULT__URL", "http://user:hunter22@rabbit/"),
        ("SHOP_AMQP__DEFAULT__PASWORD", "hunter22"),
        ("SHOP_AMQP__DEFAULT", '{"password": "hunter22", "port": "x"}'),
        ("SHOP_AMQP", '{"default": {"password": "hunter22"'),
        ("SHOP_API_KEYS", "hunter22"),
        ("SHOP_CONSUMERS__AUDIT__PASSWORD", "hunter22"),
    ],
)
def test_a6_secrets_stay_secret(shop: Path, name: str, text: str) -> None:
    """A6: no fault contains the value of a secret."""
    done = workerkit("check", "shop", cwd=shop, **{"SHOP_DATABASE_URL": "x", name: text})

    assert done.returncode == 2
    assert name in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "hunter22" not in done.stderr + done.stdout


def test_a6_a_good_secret_is_not_shown(shop: Path) -> None:
    """A6: `list` does not show the password of a connection."""
    done = workerkit(
        "list",
        "shop",
        "--json",
        cwd=shop,
        SHOP_DATABASE_URL="x",
        SHOP_AMQP__DEFAULT__URL="amqp://user:hunter22@rabbit/",
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "hunter22" not in done.stdout


def test_a6_what_kubernetes_injects(shop: Path) -> None:
    """A6: the variables that Kubernetes injects for a service named shop are no faults."""
    done = workerkit(
        "check",
        "shop",
        cwd=shop,
        SHOP_DATABASE_URL="x",
        SHOP_SERVICE_HOST="10.0.0.1",
        SHOP_SERVICE_PORT="80",
        SHOP_SERVICE_PORT_HTTP="80",
        SHOP_PORT="tcp://10.0.0.1:80",
        SHOP_PORT_80_TCP="tcp://10.0.0.1:80",
        SHOP_PORT_80_TCP_ADDR="10.0.0.1",
        SHOP_PORT_80_TCP_PORT="80",
        SHOP_PORT_80_TCP_PROTO="tcp",
        SHOP_RABBIT_SERVICE_HOST="10.0.0.2",
    )

    assert (done.returncode, done.stderr) == (0, "")


def options(shop: Path, consumer: str, **variables: str) -> dict[str, object]:
    """The options that `list --json` prints for a consumer."""
    done = workerkit("list", "shop", "--json", cwd=shop, SHOP_DATABASE_URL="x", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    [row] = [row for row in json.loads(done.stdout) if row["name"] == consumer]
    found: dict[str, object] = row["options"]
    return found


def test_options_of_the_environment(shop: Path) -> None:
    """A variable can set any option of any consumer, including lists and enums."""
    changed = options(
        shop,
        "OrderPlaced",
        SHOP_CONSUMERS__ORDER_PLACED__CONCURRENCY="64",
        SHOP_CONSUMERS__ORDER_PLACED__QUEUES="orders, orders/priority",
        SHOP_CONSUMERS__ORDERPLACED__TIMEOUT="1.5",
        SHOP_CONSUMERS__ORDER_PLACED__ON_EXCEPTION="DEAD_LETTER",
        SHOP_CONSUMERS__AUDIT__QUEUES='["a,b"]',
    )

    assert changed["concurrency"] == 64
    assert changed["queues"] == ["orders", "orders/priority"]
    assert changed["timeout"] == 1.5
    assert changed["on_exception"] == "dead_letter"


def test_options_of_the_env_file(shop: Path) -> None:
    """Options may be set in `.env` of the current directory; the environment overrides them."""
    (shop / ".env").write_text(
        "SHOP_CONSUMERS__ORDER_PLACED__CONCURRENCY=64\nSHOP_CONSUMERS__ORDER_PLACED__PREFETCH=99\n"
    )

    changed = options(shop, "OrderPlaced", SHOP_CONSUMERS__ORDER_PLACED__PREFETCH="100")

    assert (changed["concurrency"], changed["prefetch"]) == (64, 100)


def test_variables_with_another_prefix_are_ignored(shop: Path) -> None:
    """If the settings have another prefix, `WORKERKIT_` variables are ignored."""
    changed = options(
        shop, "Audit", WORKERKIT_CONSUMERS__AUDIT__CONCURRENCY="3", WORKERKIT_NONSENSE="1"
    )

    assert changed["concurrency"] == 16


def test_an_unknown_connection_of_a_variable(shop: Path) -> None:
    """A connection that a variable names and the settings do not have is a fault."""
    done = workerkit(
        "check",
        "shop",
        cwd=shop,
        SHOP_DATABASE_URL="x",
        SHOP_CONSUMERS__AUDIT__CONNECTION="secondary",
    )

    assert done.returncode == 2
    assert "'secondary'" in done.stderr
    assert "default" in done.stderr
