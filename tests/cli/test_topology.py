"""`workerkit topology` without RabbitMQ: names, faults, users, and the embedded broker."""

import asyncio
import json
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.command import workerkit, write_package
from tests.raw_server import raw_server
from workerkit.amqp.comparison import Difference
from workerkit.amqp.needs import Needs
from workerkit.cli.topology.management import NoManagement, management, management_urls
from workerkit.cli.topology.plan import Item, ItemState, Plan, exit_code
from workerkit.cli.topology.text import lines, print_tables, summary
from workerkit.config.connections import AMQPSettings
from workerkit.embedded import EmbeddedBroker

PASSWORD = "hunter22"
URL, TYPE = "WORKERKIT_AMQP__DEFAULT__URL", "WORKERKIT_AMQP__DEFAULT__QUEUE_TYPE"
OTHER = "WORKERKIT_AMQP__OTHER__URL"
NOWHERE = ("--management-url", "http://127.0.0.1:1")
SHOP = """
    from workerkit import *

    class OrderPlaced(AMQPConsumer):
        queues = [Queue("orders", bindings=[Binding(Exchange("events", "topic"), "order.*")])]

        async def handle(self, order: bytes) -> None: ...

    class Invoices(PeriodicTask):
        every = 3600
        singleton = True

        async def handle(self) -> None: ...
"""


def test_names_are_quoted(tmp_path: Path) -> None:
    """Names may have any character: the shell gets them back, and the terminal is safe."""
    queue, exchange, user = 'it\'s $(x) `a`|b "c"\t\x1b[31m\u202e é', "e'x|(.*)", "o'ne\u202e x"
    write_package(
        tmp_path,
        "shop",
        consumers=f"""
        from workerkit import *

        class Any(AMQPConsumer):
            queues = [Queue({queue!r}, bindings=[Binding(Exchange({exchange!r}), "k\\n")])]

            async def handle(self, body: bytes) -> None: ...
        """,
    )
    variables = {
        URL: f"amqp://guest:{PASSWORD}@127.0.0.1/",
        "WORKERKIT_AMQP__DEFAULT__USER": user,
        "WORKERKIT_AMQP__DEFAULT__VHOST": "v h'\u202ez",
    }

    printed = workerkit("topology", "permissions", "shop", cwd=tmp_path, **variables)
    exported = workerkit("topology", "export", "shop", cwd=tmp_path, **variables)

    assert (printed.returncode, exported.returncode) == (0, 0)
    lines = printed.stdout.splitlines()
    assert all(line.isprintable() for line in lines)
    [line] = [each for each in lines if each.startswith("rabbitmqctl ")][:1]
    echoed = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True
    ).stdout.split(b"\0")
    words = [each.decode() for each in echoed]
    assert words[2:5] == ["-p", "v h'\u202ez", user]
    configure = words[5].encode()
    for name in (queue, f"{queue}.dlq", exchange):
        assert re.fullmatch(configure, name.encode())
    assert not re.fullmatch(configure, b"e'x")
    definitions = json.loads(exported.stdout)
    assert definitions["queues"][0]["name"] == queue
    assert definitions["bindings"][0]["routing_key"] == "k\n"
    assert PASSWORD not in printed.stdout + exported.stdout


def test_an_embedded_broker(tmp_path: Path) -> None:
    """The embedded broker, which has no management API, gets what is missing.

    An exchange that no class declares is not created, and nothing else is.
    """
    write_package(tmp_path, "shop", consumers=SHOP)
    with EmbeddedBroker.in_thread() as broker:
        variables = {URL: broker.url, TYPE: "quorum"}

        def topology(command: str) -> "subprocess.CompletedProcess[str]":
            return workerkit("topology", command, "shop", *NOWHERE, cwd=tmp_path, **variables)

        codes = [topology(each).returncode for each in ("plan", "apply", "check")]
        nowhere = """
            from workerkit import *

            class Lost(AMQPConsumer):
                queues = [Queue("lost", bindings=[Binding("nowhere", "key")])]

                async def handle(self, body: bytes) -> None: ...
        """
        write_package(tmp_path, "lost", consumers=nowhere)
        lost = [
            workerkit("topology", each, "lost", *NOWHERE, cwd=tmp_path, **variables)
            for each in ("apply", "plan")
        ]

    assert codes == [3, 0, 5]
    assert [each.returncode for each in lost] == [4, 4]
    for each in lost:
        assert "! exchange  nowhere" in each.stdout
        assert "+ queue     lost" in each.stdout


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[" * 100_000, "maximum recursion depth"),
        (b"<html>", "Expecting value"),
        (b"[]", "another server answers"),
        (b" " * (16 * 1024 * 1024 + 1), "is larger than 16777216 bytes"),
    ],
)
async def test_another_server_than_the_management_api(body: bytes, reason: str) -> None:
    """Whatever it answers is a reason, no traceback."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with raw_server(lambda *_: head + body) as server:
        with pytest.raises(NoManagement, match=reason):
            await asyncio.to_thread(opened, server.url)


async def test_a_management_api_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is limited for the whole answer, not only for each piece of it."""
    monkeypatch.setattr("workerkit.cli.topology.management._LONGEST_READ", 0.2)
    ended = threading.Event()

    def endless() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        while not ended.wait(0.01):
            yield b" "

    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(60.0)

    def serve() -> None:
        with suppress(OSError), server, server.accept()[0] as client:
            for piece in endless():
                client.sendall(piece)

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        with pytest.raises(NoManagement, match="took longer than"):
            await asyncio.to_thread(opened, f"http://127.0.0.1:{server.getsockname()[1]}")
    finally:
        ended.set()
        serving.join()


def opened(url: str) -> None:
    """Open and close the management API."""
    settings = AMQPSettings()
    with management(settings, "/", management_urls(settings, url), cluster=""):
        pass


def test_faults_of_a_command_line(tmp_path: Path) -> None:
    """They are one line with exit code 2, without credentials."""
    write_package(tmp_path, "shop", consumers=SHOP)

    def fault(*arguments: str) -> str:
        done = workerkit("topology", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr

    assert "no connection 'other', only default" in fault("plan", "shop", "--connection", "other")
    wrong = fault("plan", "shop", "--management-url", f"amqp://u:{PASSWORD}@host")
    assert "--management-url is wrong" in wrong
    assert PASSWORD not in wrong
    assert "write a version" in fault("export", "shop", "--rabbitmq", "latest")
    assert "nothing" in fault("check", "nothing")


def test_connections_of_one_user_share_a_line(tmp_path: Path) -> None:
    """`set_permissions` replaces, so one line has everything; another user has another one."""
    write_package(
        tmp_path,
        "shop",
        consumers="""
        from workerkit import *

        class A(AMQPConsumer):
            queues = ["a"]

            async def handle(self, body: bytes) -> None: ...

        class B(A):
            queues = ["b"]
            connection = "other"
        """,
    )

    def patterns(other: str) -> dict[str, str]:
        variables = {URL: f"amqp://u:{PASSWORD}@host/v", OTHER: other}
        done = workerkit("topology", "permissions", "shop", "--json", cwd=tmp_path, **variables)
        assert (done.returncode, done.stderr) == (0, "")
        assert PASSWORD not in done.stdout
        found = json.loads(done.stdout)
        return {" ".join(each["connections"]): each["declares"]["read"] for each in found}

    assert patterns(f"amqp://u:{PASSWORD}@host/v") == {"default other": "^(a|b)$"}
    assert patterns(f"amqp://w:{PASSWORD}@host/v") == {"default": "^a$", "other": "^b$"}
    ambiguous = workerkit("topology", "plan", "shop", *NOWHERE, cwd=tmp_path, **{OTHER: "amqp://h"})
    assert ambiguous.returncode == 2
    assert "choose its connection with --connection, one of default, other" in ambiguous.stderr


def test_what_classes_say_that_they_publish(tmp_path: Path) -> None:
    """Each kind of class, on the connection and the virtual host of the destination."""
    write_package(
        tmp_path,
        "shop",
        consumers="""
        from workerkit import *

        class View(HTTPView):
            routes = ["/"]
            publishes = {
                "orders": str,
                Destination("", Exchange("booked", "fanout")): str,
                Destination("k", "named", connection="OTHER", vhost="w"): str,
            }

            async def get(self) -> None: ...
        """,
    )

    variables = {OTHER: "amqp://u:p@host/v"}
    done = workerkit("topology", "permissions", "shop", "--json", cwd=tmp_path, **variables)

    assert (done.returncode, done.stderr) == (0, "")
    assert [(each["vhost"], each["declares"]) for each in json.loads(done.stdout)] == [
        ("/", {"configure": "^booked$", "write": r"^(amq\.default|booked)$", "read": "^$"}),
        ("w", {"configure": "^$", "write": "^named$", "read": "^$"}),
    ]


@pytest.mark.parametrize(
    ("constructor", "handle", "write"),
    [
        ("service: Service", "", r"^amq\.default$"),
        ("", ", publisher: Publisher", r"^amq\.default$"),
        ("settings: WorkerSettings", "", "^$"),
    ],
)
def test_a_publisher_needs_the_default_exchange(
    tmp_path: Path, constructor: str, handle: str, write: str
) -> None:
    """Also if a class gets it within another object."""
    write_package(
        tmp_path,
        "shop",
        service="class Service:\n    def __init__(self, publisher): ...",
        container="""
        from dependency_injector import providers
        from shop.service import Service
        from workerkit import WorkerContainer

        class Container(WorkerContainer):
            service = providers.Factory(Service, WorkerContainer.publisher)
        """,
        consumers=f"""
        from shop.service import Service
        from workerkit import *

        class A(AMQPConsumer):
            queues = ["a"]
            on_invalid = Action.REJECT

            def __init__(self{constructor and ", " + constructor}) -> None: ...

            async def handle(self, body: bytes{handle}) -> None: ...
        """,
    )

    done = workerkit("topology", "permissions", "shop", "--json", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["declares"]["write"] == write


def test_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal gets colours, unless NO_COLOR is set; a pipe none; no value can add any."""
    differs = (Difference("x-max-length", 7, "\x1b[31m"),)
    items = [
        Item("queue", "a\x1b[0m", {}, "", ItemState.DIFFERS, differences=differs),
        Item("queue", "b", {}, "", ItemState.MISSING),
        Item("queue", "c", {}, "", ItemState.PRESENT),
    ]
    plan = Plan(Needs("default", "/"), "amqp://host/", (4, 3, 6), "", "no login", items)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")

    def shown() -> str:
        print_tables([plan], all_items=False)
        return capsys.readouterr().out

    coloured = shown()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = shown()

    assert list(lines([plan], all_items=False)) == [
        "connection default: amqp://host/ (RabbitMQ 4.3.6)",
        "  without the management API: no login",
        r"  ! queue     a\x1b[0m",
        r"      x-max-length: have 7, want '\x1b[31m'",
        r"  + queue     b",
    ]
    assert [line.rstrip() for line in re.sub(r"\x1b\[\d*m", "", plain).splitlines()] == [
        "connection default: amqp://host/ (RabbitMQ 4.3.6)",
        "  without the management API: no login",
        r"  !  queue     a\x1b[0m  x-max-length: have 7, want '\x1b[31m'",
        "  +  queue     b",
    ]
    assert "\x1b[1;31m!" in coloured
    assert "\x1b[32mb" in coloured
    assert "\x1b[3" not in plain
    assert (summary([plan]), exit_code([plan])) == ("1 to create, 1 different, 1 present", 4)
