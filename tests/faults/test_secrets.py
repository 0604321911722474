"""Secrets in every place where one can be configured, and all output of real processes."""

import asyncio
import json
import signal
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import trustme
from aiohttp import web
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tests.client import Client, connected
from tests.command import Application, running, workerkit, write_package
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually

# One for each place, with characters that have to be encoded in a URL.
BROKER, OTHER, STREAM, QUERY, HEADER, TOKEN, PROXY, PLAIN, DSN, NESTED, KEY = (
    f"sec+{name}/%zz"
    for name in "broker other stream query header token proxy plain dsn nested key".split()
)
ALL = (BROKER, OTHER, STREAM, QUERY, HEADER, TOKEN, PROXY, PLAIN, DSN, NESTED, KEY)

SETTINGS = """
    from typing import Any
    from pydantic import BaseModel, PostgresDsn, SecretStr
    from workerkit import WorkerSettings

    class Mail(BaseModel):
        password: SecretStr
        sender: str = "me"

    class Settings(WorkerSettings):
        api_key: SecretStr
        database: PostgresDsn
        replica: Any = None
        mail: Mail
"""
CONTAINER = """
    import os
    from dependency_injector import providers
    from workerkit import WorkerContainer
    from app.settings import Settings

    def opened(database):
        if os.environ.get("FAIL") == "resource":
            raise OSError(f"cannot connect to {database}")
        yield database

    class Container(WorkerContainer):
        settings = providers.Singleton(Settings)
        database = providers.Resource(opened, settings.provided.database)
        if os.environ.get("FAIL") == "container":
            raise OSError(f"cannot connect to {Settings().database}")
"""
CONSUMERS = """
    from workerkit import AMQPConsumer, HTTPView, PeriodicTask, RetryPolicy, SSEConsumer, SSEEvent

    class Orders(AMQPConsumer):
        queues = ["orders"]
        retry = RetryPolicy((0, 0.1))

        def __init__(self, database) -> None:
            self.database = database

        async def handle(self, body: dict[str, str]) -> None:
            raise OSError(f"cannot connect to {self.database}")

    class Refused(AMQPConsumer):
        queues = ["others"]
        connection = "other"

        async def handle(self, body: bytes) -> None: ...

    class Stream(SSEConsumer):
        connection = "stream"
        routes = ["/events"]

        def __init__(self, database) -> None:
            self.database = database

        async def handle(self, event: SSEEvent[str]) -> None:
            raise OSError(f"cannot connect to {self.database}")

    class Bearer(SSEConsumer):
        connection = "bearer"
        routes = ["/events"]

        async def handle(self, event: SSEEvent[str]) -> None: ...

    class View(HTTPView):
        routes = ["/{number}"]

        def __init__(self, database) -> None:
            self.database = database

        async def get(self, number: int) -> str:
            raise OSError(f"cannot connect to {self.database}")

    class Often(PeriodicTask):
        every = 0.2

        def __init__(self, database) -> None:
            self.database = database

        async def handle(self) -> None:
            raise OSError(f"cannot connect to {self.database}")
"""


def leaks(*outputs: object) -> list[str]:
    """Return the secrets found in outputs, unchanged, encoded for a URL, or in base64."""
    text = "\n".join(map(str, outputs))
    forms = {
        secret: (
            secret,
            quote(secret, safe=""),
            quote(secret),
            b64encode(f"app:{secret}".encode()).decode(),
        )
        for secret in ALL
    }
    return [
        f"{secret}: ...{text[max(text.index(form) - 200, 0) : text.index(form) + 60]}"
        for secret, every in forms.items()
        for form in every
        if form in text
    ]


@asynccontextmanager
async def stream_server() -> AsyncIterator[int]:
    """A server that fails in a different way each time, then sends an event and disconnects."""
    requests = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal requests
        requests += 1
        if requests % 7 in (1, 2):
            return web.Response(status=401 if requests % 7 == 1 else 503)
        if requests % 7 == 3:
            raise web.HTTPFound("ftp://elsewhere/")
        if requests % 7 == 4:
            return web.Response(text="no stream")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"retry: 10\ndata: x\n\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def variables(broker: str, other: str, port: int, **more: str) -> dict[str, str]:
    """Return the environment of the application, with a secret in every place."""
    at = f"127.0.0.1:{port}"
    return {
        "WORKERKIT_AMQP__DEFAULT__URL": broker,
        "WORKERKIT_AMQP__OTHER__URL": other,
        "WORKERKIT_AMQP__OTHER__PASSWORD": OTHER,
        "WORKERKIT_AMQP__OTHER__TLS__CERT": "client.pem",
        "WORKERKIT_AMQP__OTHER__TLS__KEY": "client.key",
        "WORKERKIT_AMQP__OTHER__TLS__KEY_PASSWORD": KEY,
        "WORKERKIT_SSE__STREAM__URL": (
            f"http://app:{quote(STREAM, safe='')}@{at}/?key={quote(QUERY)}"
        ),
        "WORKERKIT_SSE__STREAM__HEADERS": json.dumps({"X-Api-Key": HEADER}),
        "WORKERKIT_SSE__BEARER__URL": f"http://{at}/",
        "WORKERKIT_SSE__BEARER__TOKEN": TOKEN,
        "WORKERKIT_API_KEY": PLAIN,
        "WORKERKIT_DATABASE": f"postgresql://app:{quote(DSN, safe='')}@127.0.0.1:1/shop",
        "WORKERKIT_REPLICA": f"postgresql://app:{quote(DSN, safe='')}@127.0.0.1:1/shop",
        "WORKERKIT_MAIL__PASSWORD": NESTED,
        "WORKERKIT_OPS__ENABLED": "true",
        "WORKERKIT_OPS__PORT": "0",
        "WORKERKIT_HTTP__PORT": "0",
        "WORKERKIT_LOG__LEVEL": "DEBUG",
        "HTTP_PROXY": f"http://app:{quote(PROXY, safe='')}@127.0.0.1:1/",
        **more,
    }


@pytest.fixture
def broker(rabbit: PrivateRabbit, vhost: str) -> str:
    """Add a login whose password is a secret."""
    user = f"app-{vhost}"
    rabbit.add_user(user, BROKER, vhost)
    return rabbit.url(vhost, user, BROKER)


@pytest.fixture
def package(tmp_path: Path) -> str:
    """Write the application, and a client certificate whose key has a password."""
    client = trustme.CA().issue_cert("client.example")
    client.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    key: Any = load_pem_private_key(client.private_key_pem.bytes(), None)
    secret = BestAvailableEncryption(KEY.encode())
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret)
    (tmp_path / "client.key").write_bytes(encrypted)
    return write_package(tmp_path, settings=SETTINGS, container=CONTAINER, consumers=CONSUMERS)


async def pages(app: Application) -> list[str]:
    """Return every response of the process, including errors."""
    ops = (await app.says("ops server at")).rpartition(" ")[2]
    line = await app.says("listening")
    url = json.loads(line)["url"] if line.startswith("{") else line.rpartition("url=")[2].strip('"')
    paths = [
        f"{ops}/{each}" for each in ("health/live", "health/ready", "health/startup", "metrics")
    ]
    paths += [f"{url}/{each}" for each in ("1", "x", "1/2", "openapi.json", "docs")]
    async with aiohttp.ClientSession() as session:
        found = []
        for path in paths:
            async with session.get(path) as answer:
                found.append(f"{answer.status} {dict(answer.headers)} {await answer.text()}")
    return found


@pytest.mark.parametrize("form", ["text", "json"])
async def test_no_secret_leaves_a_running_process(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path, package: str, broker: str, form: str
) -> None:
    """No secret is in logs at DEBUG, pages or dead letters, for any failure."""
    other = rabbit.url(vhost, "app", "wrong")
    async with stream_server() as port, connected(rabbit.url(vhost)) as client:
        await client.declare("orders", "orders.dlq")
        settings: dict[str, Any] = variables(broker, other, port, WORKERKIT_LOG__FORMAT=form)
        async with running(package, cwd=tmp_path, **settings) as app:
            await client.send("orders", b'{"a": "b"}', b"no JSON")
            letters = [await client.take("orders.dlq"), await client.take("orders.dlq")]
            answers = await pages(app)
            for text in ("connection failed", "stream lost", "run failed", "request failed"):
                await app.says(text)
            await eventually(lambda: "Stream" in repr(app) and "cannot connect" in repr(app))
            app.send(signal.SIGTERM)
            await app.ended()

    assert leaks(app, *answers, *(letter.headers for letter in letters)) == []
    assert "app:***@127.0.0.1:1/shop" in repr(app)
    assert "app:***@127.0.0.1" in str([letter.headers for letter in letters])


COMMANDS: Mapping[str, tuple[str, ...]] = {
    "check": ("check", "app"),
    "list as JSON": ("list", "app", "--json"),
    "settings": ("settings", "app"),
    "settings as JSON": ("settings", "app", "--json"),
    "dead letters": ("dead-letters", "list", "app", "orders"),
    "dead letters of another broker": ("dead-letters", "list", "app", "others"),
    "publish": ("publish", "app", "orders", "x", "--connection", "other"),
}


async def test_no_secret_is_printed_by_a_command(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path, package: str, broker: str, client: Client
) -> None:
    """With and without a failure, also with a traceback."""
    await client.declare("orders.dlq")
    given = variables(broker, rabbit.url(vhost, "app", "wrong"), 1)
    given["WORKERKIT_AMQP__DEFAULT__CONNECT_TIMEOUT"] = "5"
    url = ("--url", broker.replace("://app-", "://nobody-"))
    commands = {
        **COMMANDS,
        "dead letters of a URL": ("dead-letters", "list", *url, "orders", "--traceback"),
        "publish to a URL": ("publish", url[1], "orders", "x", "--traceback"),
    }
    outputs = await asyncio.gather(
        *(
            asyncio.to_thread(workerkit, *command, cwd=tmp_path, **given)
            for command in commands.values()
        )
    )
    codes = {name: done.returncode for name, done in zip(commands, outputs, strict=True)}
    shown = {
        name: leaks(done.stdout, done.stderr) for name, done in zip(commands, outputs, strict=True)
    }

    assert {name: found for name, found in shown.items() if found} == {}
    assert [name for name, code in codes.items() if code == 0] == [
        name for name in commands if name in list(COMMANDS)[:5]
    ]
    assert "***" in outputs[list(commands).index("settings")].stdout


FAULTS: Mapping[str, dict[str, str]] = {
    "values that do not fit": {
        "WORKERKIT_AMQP__DEFAULT__URL": f"http://app:{BROKER}@h",
        "WORKERKIT_AMQP__OTHER__PASSWORD": f" {OTHER}",
        "WORKERKIT_SSE__STREAM__URL": f"ftp://app:{STREAM}@h/?key={QUERY}",
        "WORKERKIT_SSE__BEARER__TOKEN": f"{TOKEN}\n",
        "WORKERKIT_DATABASE": f"mysql://app:{DSN}@h/shop",
        "WORKERKIT_MAIL": f'{{"password": "{NESTED}", "x": 1}}',
    },
    "values of another kind": {
        "WORKERKIT_AMQP__DEFAULT__URL": f"amqp://app:{quote(BROKER, safe='')}@h/?x=1",
        "WORKERKIT_SSE__STREAM__HEADERS": f"X-Api-Key: {HEADER}",
        "WORKERKIT_SSE__BEARER__USER": "app",
        "WORKERKIT_DATABASE": f"app:{DSN}",
        "WORKERKIT_MAIL": f"password={NESTED}",
    },
    "a header that is a list": {
        "WORKERKIT_SSE__STREAM__HEADERS": json.dumps({"X-Api-Key": [HEADER]})
    },
    "the container": {"FAIL": "container"},
    "a resource": {"FAIL": "resource"},
}


async def test_no_secret_is_printed_by_a_start_that_fails(tmp_path: Path, package: str) -> None:
    """Each invalid value is named without a quote, also in the traceback."""
    given = variables(f"amqp://app:{quote(BROKER, safe='')}@127.0.0.1:1/", "amqp://127.0.0.1:1/", 1)

    def run(fault: dict[str, str]) -> Any:
        command = "run" if "FAIL" in fault else "check"
        return workerkit(command, package, "--traceback", cwd=tmp_path, **{**given, **fault})

    outputs = await asyncio.gather(*(asyncio.to_thread(run, each) for each in FAULTS.values()))

    shown = {
        name: leaks(done.stdout, done.stderr) for name, done in zip(FAULTS, outputs, strict=True)
    }
    assert {name: found for name, found in shown.items() if found} == {}
    assert {
        name for name, done in zip(FAULTS, outputs, strict=True) if done.returncode == 0
    } == set()
    assert all(done.stderr for done in outputs)
