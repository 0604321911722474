"""`workerkit topology` on RabbitMQ 3.10 and 4.3: what it plans is what a worker declares."""

import asyncio
import json
import re
import shlex
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from pamqp.commands import Basic
from pydantic import SecretStr

from tests.application import running
from tests.client import connected
from tests.command import workerkit, write_package
from tests.ports import free_port
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from workerkit import Consumer, Exchange, Queue
from workerkit.amqp.comparison import Vanished, exchange_differences, queue_differences
from workerkit.amqp.session import connect
from workerkit.config.connections import AMQPSettings
from workerkit.testing import embedded_broker

PASSWORD = "hunter22"
URL, TYPE = "WORKERKIT_AMQP__DEFAULT__URL", "WORKERKIT_AMQP__DEFAULT__QUEUE_TYPE"
NOWHERE = ("--management-url", "http://127.0.0.1:1")
SHOP = """
    from workerkit import *

    EVENTS = Exchange("shop.events", "topic")

    class OrderPlaced(AMQPConsumer):
        queues = [Queue("orders", "quorum", bindings=[Binding(EVENTS, "order.*")])]
        retry = RetryPolicy(delays=(0.2,))

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self, order: dict[str, int]) -> dict[str, int]:
            if "fail" in order:
                raise KeyError("fail")
            await self.publisher.publish(order, "booked")
            return order

    class Changed(AMQPConsumer):
        queues = [Queue("changed", per_process=True,
                        bindings=[Binding(Exchange("shop.changes", "fanout"))])]

        async def handle(self, change: bytes) -> None: ...

    class Invoices(PeriodicTask):
        every = 3600
        singleton = "shop.Invoices"

        async def handle(self) -> None: ...
"""
MORE = """

    class Small(AMQPConsumer):
        queues = [Queue("small", "classic", max_length=5, ttl=60, bindings=[
            Binding("amq.headers", arguments={"x-match": "all", "kind": "small"})]), "plain"]
        on_invalid = Action.REJECT

        async def handle(self, body: bytes) -> None: ...

    class Log(AMQPConsumer):
        queues = [Queue("log", "stream", max_bytes=1_000_000)]

        async def handle(self, body: bytes) -> None: ...
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A RabbitMQ with the management API, and the packages of these tests.

    Attributes:
        port: Of the management API.
        home: The directory of the packages.
    """

    rabbit: PrivateRabbit
    port: int
    home: Path

    @property
    def version(self) -> str:
        """Its series, such as 4.3."""
        return ".".join(map(str, self.rabbit.version[:2]))

    def vhost(self) -> str:
        """Create a virtual host and return its name."""
        name = f"test-{token_hex(6)}"
        self.rabbit.add_vhost(name)
        return name

    def user(self, vhost: str, configure: str, write: str, read: str) -> str:
        """Return the address of a virtual host for a new user with these permissions."""
        name = f"limited-{token_hex(6)}"
        self.rabbit.add_user(name, PASSWORD, vhost, configure, write, read)
        return self.rabbit.url(vhost, name, PASSWORD)

    def topology(self, command: str, vhost: str, *arguments: str, **variables: str) -> "Done":
        """Run `workerkit topology COMMAND shop`, with the management API."""
        variables = {URL: self.rabbit.url(vhost), TYPE: "quorum", **variables}
        if command in ("plan", "apply", "check") and not set(NOWHERE) & set(arguments):
            arguments = (*arguments, "--management-url", f"http://127.0.0.1:{self.port}")
        return workerkit("topology", command, "shop", *arguments, cwd=self.home, **variables)

    def definitions(self, vhost: str) -> dict[str, Any]:
        """Return what the broker has: exchanges, queues and bindings, in a stable order."""
        found = self.api("GET", f"definitions/{quote(vhost, safe='')}")
        return {
            kind: sorted((strip(each) for each in found[kind]), key=repr)
            for kind in ("exchanges", "queues", "bindings")
        }

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request to the management API."""
        login = b64encode(b"guest:guest").decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port}/api/{path}"
        with urlopen(Request(url, data, headers, method=method), timeout=30.0) as response:
            text = response.read()
        return json.loads(text) if text else None


Done = subprocess.CompletedProcess[str]


def strip(definition: dict[str, Any]) -> dict[str, Any]:
    """Return a definition without its virtual host."""
    return {name: value for name, value in definition.items() if name != "vhost"}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the package `shop`, which this process can import as well."""
    home = tmp_path_factory.mktemp("topology")
    write_package(home, "shop", consumers=SHOP + MORE)
    write_package(home, "less", consumers=SHOP)
    sys.path.insert(0, str(home))
    yield home
    sys.path.remove(str(home))
    for name in ("shop", "shop.consumers", "less", "less.consumers"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module", params=["3.10", "4.3"])
def server(request: pytest.FixtureRequest, home: Path) -> Iterator[Server]:
    """A node that has loaded the definitions of `shop` for the virtual host `boot`."""
    exported = workerkit(
        *("topology", "export", "shop", "--vhosts", "--rabbitmq", request.param),
        cwd=home,
        **{URL: "amqp://127.0.0.1/boot", TYPE: "quorum"},
    )
    assert exported.returncode == 0, exported.stderr
    file = home / f"boot-{request.param}.json"
    file.write_text(exported.stdout)
    port = free_port()
    conf = f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {port}\nload_definitions = {file}"
    plugins = ["rabbitmq_management"]
    with PrivateRabbit(conf, version=request.param, plugins=plugins) as rabbit:
        # A node that loads definitions creates no user.
        rabbit.add_user("guest", "guest", "boot")
        rabbit.eval(
            'rabbit_auth_backend_internal:set_tags(<<"guest">>, [administrator], <<"tests">>)'
        )
        yield Server(rabbit, port, home)


def classes(package: str = "shop") -> list[type[Consumer]]:
    """Return the consumers of a package."""
    found = vars(import_module(f"{package}.consumers")).values()
    return [
        each
        for each in found
        if isinstance(each, type)
        and issubclass(each, Consumer)
        and each.__name__ in ("OrderPlaced", "Changed", "Invoices", "Small", "Log")
    ]


def connection(url: str, declare: str = "missing") -> dict[str, dict[str, str]]:
    """Return the settings of a connection."""
    return {"default": {"url": url, "queue_type": "quorum", "declare": declare}}


def states(done: Done) -> dict[tuple[str, str], str]:
    """Return the state of each item of a plan in JSON."""
    [plan] = json.loads(done.stdout)
    return {
        (
            each["kind"],
            f"{each['declared']['exchange']} to {each['name']}"
            if each["kind"] == "binding"
            else each["name"],
        ): each["state"]
        for each in plan["items"]
    }


async def test_the_plan_is_what_a_worker_declares(server: Server) -> None:
    """A worker on an empty virtual host declares what the plan, and `apply`, would create."""
    started, applied = server.vhost(), server.vhost()
    before = server.definitions(started)

    plan = server.topology("plan", started, "--json")
    assert (plan.returncode, plan.stderr) == (3, "")
    assert server.definitions(started) == before
    url = server.rabbit.url(started)
    async with running(url, *classes(), amqp=connection(url)):
        pass
    done = server.topology("apply", applied)

    assert done.returncode == 0, done.stderr
    has = server.definitions(started)
    assert has == server.definitions(applied)
    [planned] = json.loads(plan.stdout)
    missing = [each for each in planned["items"] if each["state"] == "missing"]
    assert sorted(each["name"] for each in missing if each["kind"] == "queue") == sorted(
        each["name"] for each in has["queues"]
    )
    arguments = {each["name"]: each["arguments"] for each in has["queues"]}
    for each in missing:
        if each["kind"] == "queue":
            assert each["declared"]["arguments"] == arguments[each["name"]]
    assert states(server.topology("plan", started, "--json")) == {
        **dict.fromkeys(states(plan), "present"),
        ("queue", "changed"): "at run time",
        ("binding", "shop.changes to changed"): "at run time",
    }
    for command in ("plan", "check", "apply"):
        assert server.topology(command, started).returncode == 0
    assert server.topology("check", applied).stdout == "2 at run time, 13 present\n"


async def test_apply_twice_and_at_the_same_time(server: Server) -> None:
    """Concurrent applies succeed; the next one has nothing to do."""
    vhost = server.vhost()

    done = await asyncio.gather(
        *(asyncio.to_thread(server.topology, "apply", vhost, *NOWHERE) for _ in range(3))
    )
    again = server.topology("apply", vhost, "--json")

    assert [each.returncode for each in done] == [0, 0, 0]
    assert again.returncode == 0
    assert "created" not in states(again).values()


async def test_differences(server: Server) -> None:
    """All arguments that differ are shown with both values, and nothing is created."""
    vhost = server.vhost()
    path = quote(vhost, safe="")
    wrong = {"durable": True, "arguments": {"x-max-length": 7}}
    server.api("PUT", f"queues/{path}/small", wrong)
    server.api("PUT", f"queues/{path}/log", {"durable": True, "arguments": {}})
    server.api("PUT", f"exchanges/{path}/shop.events", {"type": "direct", "auto_delete": True})
    quorum = {"durable": True, "arguments": {"x-queue-type": "quorum"}}
    server.api("PUT", f"queues/{path}/orders.retry.200ms", quorum)
    server.api("PUT", f"queues/{path}/orders.dlq", {"durable": False})
    server.api("PUT", f"queues/{path}/plain", wrong)
    server.api(
        "PUT",
        f"policies/{path}/limits",
        {"pattern": "^plain$", "definition": {"max-length": 3}, "apply-to": "queues"},
    )
    before = server.definitions(vhost)
    # The management API knows a policy when the queue has sent its statistics.
    await eventually(lambda: server.api("GET", f"queues/{path}/plain").get("policy"))

    plan = server.topology("plan", vhost, "--json")
    check = server.topology("check", vhost)
    apply = server.topology("apply", vhost)

    assert (plan.returncode, check.returncode, apply.returncode) == (4, 4, 4)
    [planned] = json.loads(plan.stdout)
    differences = {
        each["name"]: {name: (have, want) for name, have, want in map(dict.values, found)}
        for each in planned["items"]
        if (found := each["differences"])
    }
    assert differences["small"] == {"x-max-length": (7, 5), "x-message-ttl": (None, 60_000)}
    assert differences["log"]["x-queue-type"][1] == "stream"
    assert differences["shop.events"] == {
        "type": ("direct", "topic"),
        "durable": (False, True),
        "auto_delete": (True, False),
    }
    assert differences["orders.retry.200ms"]["x-dead-letter-strategy"] == (None, "at-least-once")
    # A worker accepts every declaration of these.
    assert states(plan)["queue", "orders.dlq"] == states(plan)["queue", "plain"] == "present"
    [policies] = [each["policies"] for each in planned["items"] if each["name"] == "plain"]
    assert policies == ["policy 'limits': max-length = 3"]
    assert "  ! queue     small " in check.stdout
    assert "      x-max-length: have 7, want 5\n" in check.stdout
    assert "nothing was created" in apply.stderr
    assert server.definitions(vhost) == before


async def test_a_comparison_creates_nothing(server: Server) -> None:
    """It is refused where nothing exists, for each type of queue and for exchanges."""
    vhost = server.vhost()
    before = server.definitions(vhost)
    url = SecretStr(server.rabbit.url(vhost))
    session = await connect(AMQPSettings(url=url), None, "tests")
    queues = [
        *(Queue("missing", kind) for kind in ("classic", "quorum", "stream", None)),
        Queue("missing", "quorum", delivery_limit=-1, max_length=3),
        Queue("missing", durable=False, arguments={"x-max-priority": 3}),
    ]

    for queue in queues:
        with pytest.raises(Vanished):
            await queue_differences(session, queue)
    for kind in ("direct", "topic", "fanout", "headers"):
        exchange = Exchange("missing", kind, alternate="amq.fanout")
        with pytest.raises(Vanished):
            await exchange_differences(session, exchange)
    await session.close()

    assert server.definitions(vhost) == before


async def test_the_management_api_of_another_broker(server: Server) -> None:
    """It is not used, although it knows a virtual host of that name."""
    vhost = server.vhost()
    async with embedded_broker() as other:
        other.add_vhost(vhost)
        url = f"{other.url.rstrip('/')}/{vhost}"
        plan = await asyncio.to_thread(server.topology, "plan", vhost, **{URL: url})

    assert plan.returncode != 0
    assert "without the management API: http://127.0.0.1:" in plan.stdout
    assert "not of workerkit-embedded: see --management-url" in plan.stdout


async def test_without_the_management_api(server: Server) -> None:
    """Bindings cannot be seen, and the output says so; `apply` creates them."""
    vhost = server.vhost()
    server.topology("apply", vhost)
    server.api("DELETE", f"bindings/{quote(vhost, safe='')}/e/shop.events/q/orders/order.%2A")

    check = server.topology("check", vhost, *NOWHERE)
    seen = server.topology("check", vhost)
    apply = server.topology("apply", vhost, *NOWHERE)

    assert check.returncode == 5
    assert "without the management API: http://127.0.0.1:1: " in check.stdout
    assert re.search(r"  \? binding   shop.events to orders .*management API", check.stdout)
    assert (seen.returncode, apply.returncode) == (3, 0)
    assert server.topology("check", vhost).returncode == 0


async def test_without_permissions(server: Server) -> None:
    """What may not be compared by AMQP is compared by the management API, or unknown."""
    vhost = server.vhost()
    server.topology("apply", vhost)
    limited = server.user(vhost, "^$", "^$", ".*")
    api = f"http://guest:guest@127.0.0.1:{server.port}"

    unknown = server.topology("plan", vhost, *NOWHERE, "--json", **{URL: limited})
    known = server.topology("plan", vhost, "--management-url", api, "--json", **{URL: limited})
    refused = server.topology("apply", server.vhost(), **{URL: limited.replace(PASSWORD, "no")})

    assert (unknown.returncode, known.returncode, refused.returncode) == (5, 0, 1)
    assert states(unknown)["queue", "small"] == "unknown"
    assert states(known)["queue", "small"] == "present"
    for done in (unknown, known, refused):
        assert PASSWORD not in done.stdout + done.stderr
        assert "guest:guest" not in done.stdout + done.stderr


async def test_definitions_loaded_at_boot(server: Server) -> None:
    """A node that has loaded the export at its boot has all that is needed."""
    done = server.topology("check", "boot")

    assert (done.returncode, done.stderr) == (0, "")


async def test_a_worker_without_configure(server: Server) -> None:
    """After an import, a worker with the printed permissions handles, retries and replies."""
    vhost = server.vhost()
    limited = server.user(vhost, "^$", "^$", "^$")
    variables = {URL: limited, "WORKERKIT_AMQP__DEFAULT__VHOST": vhost, TYPE: "quorum"}

    exported = server.topology("export", vhost, "--rabbitmq", server.version)
    file = server.home / "definitions.json"
    file.write_text(exported.stdout)
    server.rabbit.ctl("import_definitions", str(file))
    assert server.topology("check", vhost).returncode == 0
    printed = workerkit(
        *("topology", "permissions", "shop", "--rabbitmq", server.version),
        cwd=server.home,
        **variables,
    )
    lines = [each for each in printed.stdout.splitlines() if each.startswith("rabbitmqctl ")]
    assert len(lines) == 2
    server.rabbit.ctl(*shlex.split(lines[1])[1:])
    assert "^changed" in shlex.split(lines[1])[5]

    await traffic(server, vhost, limited, *classes(), declare="never")
    assert PASSWORD not in printed.stdout


async def traffic(
    server: Server, vhost: str, url: str, *consumers: type[Consumer], declare: str
) -> None:
    """Run consumers as a limited user, and check each path of a message."""
    async with (
        running(url, *consumers, amqp=connection(url, declare)),
        connected(server.rabbit.url(vhost)) as client,
    ):
        await client.declare("booked", "answers")
        request = Basic.Properties(reply_to="answers", correlation_id="1")
        properties = Basic.Properties(content_type="application/json")
        await client.publish("shop.events", "order.new", b'{"id": 1}', properties)
        booked = await client.take("booked")
        await client.send("orders", b'{"id": 2}', properties=request)
        answer = await client.take("answers")
        await client.send("orders", b'{"fail": 3}')
        letter = await client.take("orders.dlq")

    assert json.loads(booked.body) == {"id": 1}
    assert json.loads(answer.body) == {"id": 2}
    assert letter.evidence["attempt"] == 2


@pytest.mark.parametrize("variant", ["declares", "applied"])
async def test_the_permissions_are_the_least(server: Server, variant: str) -> None:
    """With them everything works; with one character less in any name something is refused."""
    arguments = ("topology", "permissions", "less", "--rabbitmq", server.version, "--json")
    [grant] = json.loads(workerkit(*arguments, cwd=server.home, **{TYPE: "quorum"}).stdout)
    names = [re.sub(r"^\^\(?|\)?\$$", "", text).split("|") for text in grant[variant].values()]
    declare = "missing" if variant == "declares" else "never"
    consumers = classes("less")

    vhost = await prepared(server, variant)
    exact = server.user(vhost, *grant[variant].values())
    await traffic(server, vhost, exact, *consumers, declare=declare)

    async def shortened(kind: int, place: int) -> None:
        less = [list(each) for each in names]
        less[kind][place] = less[kind][place][:-1]
        patterns = [f"^({'|'.join(each)})$" for each in less]
        # What is applied before can be used again.
        own = vhost if variant == "applied" else server.vhost()
        limited = server.user(own, *patterns)
        assert await refuses(server, own, limited, consumers, declare), (
            f"{names[kind][place]!r} is not needed: {patterns}"
        )

    for kind, every in enumerate(names):
        for place, name in enumerate(every):
            if name:
                await shortened(kind, place)


async def prepared(server: Server, variant: str) -> str:
    """Return a new virtual host, with the topology if it is to be applied."""
    vhost = server.vhost()
    if variant == "applied":
        url = {URL: server.rabbit.url(vhost), TYPE: "quorum"}
        done = await asyncio.to_thread(
            workerkit, "topology", "apply", "less", *NOWHERE, cwd=server.home, **url
        )
        assert done.returncode == 0, done.stderr
    return vhost


async def refuses(
    server: Server, vhost: str, url: str, consumers: Sequence[type[Consumer]], declare: str
) -> bool:
    """Return whether the broker refuses a consumer or a binding; wait until either is known."""
    async with running(url, *consumers, amqp=connection(url, declare), ready=False) as runner:
        await eventually(
            lambda: runner.ready or any("refused" in each.reason for each in runner.health),
            what=f"ready or refused: {runner.health}",
        )
        bound = [
            server.rabbit.eval(
                "length(rabbit_binding:list_for_source(rabbit_misc:r("
                f'<<"{vhost}">>, exchange, <<"{exchange}">>)))'
            )
            for exchange in ("shop.events", "shop.changes")
        ]
        return not runner.ready or "0" in bound
