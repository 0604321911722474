"""The API of the console and its page, over real sockets."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from yarl import URL

from tests.console import STARTED, Served, console
from tests.faults.test_http_connections import ops_server
from tests.faults.test_http_openapi import NOT_PROMISED, fuzz
from workerkit.console.model import Operator

API = "/api/v1"
TOKENS = {"view": "the view token", "operate": "the operate token", "admin": "the admin token"}
SETTINGS: dict[str, Any] = {
    "view_token": TOKENS["view"],
    "operate_token": TOKENS["operate"],
    "token": TOKENS["admin"],
}
QUEUE = {"queue": "orders"}
ALL = {"everything": True}
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@asynccontextmanager
async def served(
    folder: Path | None = None, role: str = "", **ops: Any
) -> AsyncIterator[tuple[Served, ClientSession]]:
    """Serve a console, and yield it with a client."""
    headers = {"Authorization": f"Bearer {TOKENS[role]}"} if role else {}
    async with (
        console(folder, **{**ops, **(SETTINGS if role else {})}) as found,
        ClientSession(found.url, headers=headers) as client,
    ):
        yield found, client


async def get(client: ClientSession, path: str, **options: Any) -> tuple[int, Any]:
    """Return status and body of a response."""
    async with client.get(f"{API}{path}", **options) as response:
        return response.status, await response.json()


async def post(client: ClientSession, path: str, body: Any = None) -> tuple[int, Any]:
    """Return status and body of a response."""
    async with client.post(f"{API}{path}", json=body if body is not None else {}) as response:
        return response.status, await response.json()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the files of a page, next to one that is none of them."""
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<!doctype html><title>Console</title>")
    (page / "app.js").write_text("export {};")
    (page / "notes.txt").write_text("not of the page")
    (tmp_path / "secret.js").write_text("secret")
    return page


async def test_everything_that_can_be_seen() -> None:
    """Each page has what the overview, the agent, the desk and the audit records have."""
    async with served() as (found, client):
        found.audit(Operator(user="me", role="admin"), "pause", "OrderPlaced", "done")
        me = await get(client, "/me")
        fleet = await get(client, "/fleet")
        process = await get(client, "/process")
        audit = await get(client, "/audit")
        queues = await get(client, "/dead-letters")
        page = await get(client, "/dead-letters/page?queue=orders&position=1&limit=1")
        groups = await get(client, "/dead-letters/groups?queue=orders")
        letter = await get(client, "/dead-letters/letter?queue=orders&key=key-1")

    pages = (me, fleet, process, audit, queues, page, groups, letter)
    assert {status for status, _ in pages} == {200}
    assert me[1]["operator"] == {"user": "local", "role": "admin", "address": "127.0.0.1"}
    assert {"/metrics", f"{API}/docs"} <= set(me[1]["links"])
    assert fleet[1]["consumers"][0]["name"] == "OrderPlaced"
    assert process[1]["id"] == "process-1"
    assert audit[1][0]["action"] == "pause"
    assert queues[1][0]["consumers"] == ["OrderPlaced"]
    assert [each["key"] for each in page[1]["letters"]] == ["key-1"]
    assert groups[1]["groups"][0]["id"] == "group-1"
    assert letter[1]["headers"] == {"x": 1}


async def test_a_filter_is_read_from_the_query() -> None:
    """Times have a zone, and everything arrives at the desk."""
    query = {
        "queue": "orders",
        "vhost": "/",
        "limit": "7",
        "text": "a=b&c",
        "since": STARTED.isoformat(),
    }
    async with served() as (found, client):
        status, _ = await get(client, "/dead-letters/page", params=query)
    _, ref, wanted, position, limit = found.desk.called[0]

    assert status == 200
    assert (ref.queue, ref.connection, ref.vhost) == ("orders", "default", "/")
    assert (wanted.text, wanted.since, wanted.consumer) == ("a=b&c", STARTED, None)
    assert (position, limit) == (0, 7)


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("", "queue"),
        ("queue=orders&position=-1", "position"),
        ("queue=orders&limit=1000", "limit"),
        ("queue=orders&since=yesterday", "since"),
        ("queue=orders&since=2026-01-01T00:00:00", "since"),
        (f"queue={'x' * 256}", "queue"),
    ],
)
async def test_an_invalid_query_is_a_422(query: str, part: str) -> None:
    """The problem names the parameter."""
    async with served() as (found, client):
        status, body = await get(client, f"/dead-letters/page?{query}")

    assert status == 422
    assert [each["name"] for each in body["errors"]] == [part]
    assert found.desk.called == []


async def test_what_operators_do() -> None:
    """Commands and jobs get the operator, and a job can be looked at, stopped and not undone."""
    async with served() as (found, client):
        command = await post(client, "/commands", {"action": "pause", "consumer": "OrderPlaced"})
        replay = await post(client, "/dead-letters/replay", {"queue": QUEUE, "selection": ALL})
        deletion = {"queue": QUEUE, "selection": {"keys": ["key-1"]}, "confirm": 1}
        deleted = await post(client, "/dead-letters/delete", deletion)
        jobs = await get(client, "/jobs")
        stopped = await post(client, f"/jobs/{replay[1]['id']}/stop")
        undone = await post(client, f"/jobs/{replay[1]['id']}/undo")
        job = await get(client, f"/jobs/{replay[1]['id']}")

    assert command == (200, command[1])
    assert command[1]["text"] == "1 of 1 answered"
    [(executed, operator)] = found.overview.executed
    assert (executed.action, executed.consumer) == ("pause", "OrderPlaced")
    assert operator.user == "local"
    assert (replay[0], deleted[0]) == (202, 202)
    assert [each["id"] for each in jobs[1]] == [deleted[1]["id"], replay[1]["id"]]
    assert stopped[1]["state"] == "stopped"
    assert (undone[0], undone[1]["detail"]) == (409, "the job cannot be undone: it is stopped")
    assert job[1]["state"] == "stopped"


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        ("/jobs/nothing", 404, "there is no such job"),
        ("/dead-letters/letter?queue=orders&key=x", 404, "there is no such dead letter"),
        ("/dead-letters/groups?queue=other", 404, "no queue other"),
        (
            "/dead-letters/page?queue=orders&connection=other",
            502,
            r"amqp://shop:***@rabbit/ refused\nthe login",
        ),
    ],
)
async def test_errors_of_the_desk_are_problems(path: str, status: int, detail: str) -> None:
    """They have the reason on one line, without a password."""
    async with served() as (_, client), client.get(f"{API}{path}") as response:
        body = await response.json(content_type="application/problem+json")

    assert (response.status, body["status"], body["detail"]) == (status, status, detail)


async def test_a_request_that_the_desk_refuses_is_a_422() -> None:
    """A `ValueError` has the reason."""
    deletion = {"queue": QUEUE, "selection": ALL, "confirm": 3}
    async with served() as (_, client):
        status, body = await post(client, "/dead-letters/delete", deletion)

    assert (status, body["detail"]) == (422, "confirm should be 2")


REPLAY: dict[str, Any] = {"queue": QUEUE, "selection": {"keys": ["key-1"]}}


@pytest.mark.parametrize(
    ("path", "body", "role"),
    [
        ("/commands", {"action": "pause", "consumer": "OrderPlaced"}, "operate"),
        ("/commands", {"action": "run", "consumer": "OrderPlaced"}, "operate"),
        ("/commands", {"action": "log_level", "value": "DEBUG"}, "admin"),
        ("/commands", {"action": "drain"}, "admin"),
        ("/commands", {"action": "undrain"}, "admin"),
        ("/dead-letters/replay", REPLAY, "operate"),
        ("/dead-letters/replay", {**REPLAY, "edit": {"body": "x"}}, "admin"),
        ("/dead-letters/delete", {**REPLAY, "confirm": 1}, "admin"),
        ("/jobs/none/stop", {}, "operate"),
        ("/jobs/none/undo", {}, "admin"),
    ],
)
async def test_what_needs_which_role(path: str, body: Any, role: str) -> None:
    """Each role may do what those before it may, and nothing is done for the others."""
    allowed = {}
    for each in TOKENS:
        async with served(role=each) as (found, client):
            status, answer = await post(client, path, body)
        done = bool(found.overview.executed or found.desk.called)
        allowed[each] = status != 403
        assert done == (status in (200, 202))
        if status == 403:
            assert f"yours is {each}" in answer["detail"]

    assert allowed == {"view": False, "operate": role == "operate", "admin": True}


async def test_without_a_token_there_is_only_the_page(folder: Path) -> None:
    """The page, its files and the description of the API are the same everywhere; no data is."""
    async with console(folder, **SETTINGS) as found, ClientSession(found.url) as client:
        statuses = {}
        for path in ("/", "/console/app.js", f"{API}/openapi.json", f"{API}/docs"):
            statuses[path] = (await client.get(path, headers=HTML)).status
        data = {}
        for path in ("me", "fleet", "live", "process", "audit", "dead-letters", "jobs", "nothing"):
            data[path] = (await client.get(f"{API}/{path}")).status

    assert set(statuses.values()) == {200}
    assert set(data.values()) == {401}
    assert found.overview.views == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"{API}/nothing", 404),
        ("GET", f"{API}/jobs/a/b/c", 404),
        ("GET", f"{API}/commands", 405),
        ("POST", f"{API}/fleet", 405),
        ("DELETE", f"{API}/jobs/x", 405),
        ("GET", "/console/nothing.js", 404),
        ("GET", "/console/", 404),
        ("POST", "/", 405),
    ],
)
async def test_what_there_is_not_is_a_problem(
    method: str, path: str, status: int, folder: Path
) -> None:
    """A 405 lists what there is."""
    async with served(folder) as (_, client), client.request(method, path, json={}) as response:
        body = await response.json(content_type="application/problem+json")

    assert (response.status, body["status"]) == (status, status)
    assert ("Allow" in response.headers) == (status == 405)


async def test_head_and_options() -> None:
    """HEAD has the headers only, also of the live stream, and the connection stays usable."""
    async with served() as (found, client):
        heads = {}
        for path in ("fleet", "live", "jobs", "openapi.json"):
            async with client.head(f"{API}/{path}") as response:
                heads[path] = response.status, await response.read()
        async with client.options(f"{API}/commands") as response:
            options = response.status, response.headers["Allow"]
        status, _ = await get(client, "/fleet")

    assert set(heads.values()) == {(200, b"")}
    assert options == (204, "OPTIONS, POST")
    assert status == 200
    assert found.console.live.clients == 0


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        ("/commands", 70_000, 413),
        ("/dead-letters/delete", 70_000, 413),
        ("/dead-letters/replay", 70_000, 202),
        ("/dead-letters/replay", 2 * 1024 * 1024, 413),
    ],
)
async def test_bodies_are_limited(path: str, size: int, status: int) -> None:
    """Only a replay may have a large body, for its edit."""
    async with served() as (_, client):
        body = io.BytesIO(json.dumps({**REPLAY, "edit": {"body": "x" * size}}).encode())
        headers = {"Content-Type": "application/json"}
        async with client.post(f"{API}{path}", data=body, headers=headers) as response:
            assert response.status == status


async def test_only_json_is_accepted() -> None:
    """A form, which other sites could send without a preflight request, is refused."""
    async with served() as (found, client):
        statuses = []
        for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data"):
            headers = {"Content-Type": kind}
            body = json.dumps({"action": "drain"})
            async with client.post(f"{API}/commands", data=body, headers=headers) as response:
                statuses.append(response.status)
        invalid, _ = await post(client, "/commands", {"action": "explode"})
        unknown, _ = await post(client, "/commands", {"action": "drain", "more": 1})

    assert statuses == [415, 415, 415]
    assert (invalid, unknown) == (422, 422)
    assert found.overview.executed == []


async def test_a_client_that_leaves_cancels_what_it_waits_for() -> None:
    """A long search in the dead letters ends with the client's connection."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def reading() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with served() as (found, client):
        found.desk.reading = reading  # type: ignore[method-assign]
        asked = asyncio.create_task(get(client, "/dead-letters/page?queue=orders"))
        await begun.wait()
        asked.cancel()
        await asyncio.wait_for(ended.wait(), 10.0)


async def test_nothing_in_a_request_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    """A request for which the memory does not suffice is a 500, and the next one is answered."""
    async with served() as (found, client):
        found.overview.error = MemoryError("too much")
        failed, body = await get(client, "/fleet")
        found.overview.error = None
        status, _ = await get(client, "/fleet")

    assert (failed, status) == (500, 200)
    assert "too much" not in json.dumps(body)
    assert any("request failed" in each.getMessage() for each in caplog.records)


async def test_the_page_is_served_to_browsers(folder: Path) -> None:
    """With a strict policy; what the browser has is not sent again."""
    async with served(folder) as (_, client):
        async with client.get("/", headers=HTML) as page:
            html = await page.text()
        async with client.get("/console/app.js") as script:
            js = await script.text()
        known = {"If-None-Match": script.headers["ETag"]}
        async with client.get("/console/app.js", headers=known) as again:
            body = await again.read()
        async with client.get("/") as index:
            links = (await index.json())["links"]

    policy = page.headers["Content-Security-Policy"]
    assert html == "<!doctype html><title>Console</title>"
    assert (page.content_type, script.content_type) == ("text/html", "text/javascript")
    assert js == "export {};"
    assert (again.status, body) == (304, b"")
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert page.headers["Cache-Control"] == script.headers["Cache-Control"] == "no-cache"
    assert f"{API}/docs" in links


@pytest.mark.parametrize(
    "path",
    [
        "/console/../secret.js",
        "/console/%2e%2e/secret.js",
        "/console/..%2fsecret.js",
        "/console/%2e%2e%2fsecret.js",
        "/console/notes.txt",
        "/console//app.js",
        "/console/./app.js%00",
        "/console/page",
        "/secret.js",
    ],
)
async def test_no_other_file_is_served(folder: Path, path: str) -> None:
    """Not those beside the page, and none of another type."""
    async with served(folder) as (found, _):
        url = URL(found.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()

    assert b" 404 " in answer.partition(b"\r\n")[0]
    assert b"secret" not in answer


async def test_a_foreign_host_gets_nothing(folder: Path) -> None:
    """A page of a name that is resolved to this machine (DNS rebinding) sees nothing."""
    headers = {"Host": "attacker.example", **HTML}
    async with served(folder) as (found, client):
        statuses = [
            (await client.get(path, headers=headers)).status
            for path in ("/", "/console/app.js", f"{API}/fleet")
        ]

    assert statuses == [421, 421, 421]
    assert found.overview.views == 0


async def test_without_an_extension_the_port_is_as_before() -> None:
    """Browsers get the page of links, and there is neither an API nor a file of the page."""
    async with ops_server() as server, ClientSession(server.url) as client:
        async with client.get("/", headers=HTML) as page:
            html = await page.text()
        statuses = [(await client.get(path)).status for path in (f"{API}/fleet", "/console/app.js")]

    assert "/health/ready" in html
    assert statuses == [404, 404]


async def test_the_document_of_the_api() -> None:
    """Requests as it describes them, and others, get the responses that it describes."""
    async with served(role="admin") as (found, client):
        _, document = await get(client, "/openapi.json")
        asked = await asyncio.to_thread(
            fuzz,
            found.url,
            endless=[f"{API}/live"],
            not_promised=NOT_PROMISED,
            headers={"Authorization": f"Bearer {TOKENS['admin']}"},
            document=f"{API}/openapi.json",
        )

    statuses = {each.rpartition(" ")[2] for each in asked}
    paths = {each.split()[1] for each in asked}
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert paths == set(document["paths"]) - {f"{API}/live"}
    assert {"200", "202", "404", "422"} <= statuses
    assert statuses <= {"200", "202", "400", "404", "405", "409", "413", "415", "422", "502"}
