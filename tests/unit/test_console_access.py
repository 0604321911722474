"""Who may use the API of the console: tokens, proxies, roles, other sites, lock-out."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession, web
from pydantic import SecretStr, ValidationError

from workerkit.config.sections import OpsSettings
from workerkit.console import access
from workerkit.console.access import OPERATOR, Access, Lockout
from workerkit.console.audit import Audit
from workerkit.console.model import Operator

ADMIN, OPERATE, VIEW = "admin-secret", "operate-secret", "view-secret"
TOKENS = {"token": ADMIN, "operate_token": OPERATE, "view_token": VIEW}


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[str]:
    """Serve an API of three operations, one for each role; yield its address."""
    host = settings.get("host", "127.0.0.1")
    checked = Access(OpsSettings(**settings), lambda field: f"WORKERKIT_OPS__{field.upper()}")
    roles: dict[str, Any] = {"/api/see": "view", "/api/run": "operate", "/api/drop": "admin"}
    application = web.Application(
        middlewares=[checked.middleware(lambda request: roles.get(request.path))]
    )

    async def who(request: web.Request) -> web.Response:
        operator = request.get(OPERATOR)
        return web.json_response(None if operator is None else operator.model_dump())

    for path in (*roles, "/api/free", "/health"):
        application.router.add_route("*", path, who)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, host, 0)
    await site.start()
    try:
        checked.enable(runner.addresses)
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def ask(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> Any:
    """Return status, decoded body and headers of a response."""
    async with (
        ClientSession() as session,
        session.request(method, url, headers=headers or {}) as response,
    ):
        return response.status, json.loads(await response.text()), response.headers


def bearer(token: str) -> dict[str, str]:
    """Return the header with a token."""
    return {"Authorization": f"Bearer {token}"}


async def test_loopback_without_a_token_may_do_everything() -> None:
    """The role is admin, and the address is known."""
    async with served() as url:
        assert (await ask(f"{url}/api/drop"))[:2] == (
            200,
            {"user": "local", "role": "admin", "address": "127.0.0.1"},
        )


async def test_other_paths_are_not_checked() -> None:
    """Health pages are for everybody, and so are operations without a role."""
    async with served(**TOKENS) as url:
        for path in ("/health", "/api/free"):
            assert (await ask(url + path, {"Host": "evil.example"}))[:2] == (200, None)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"Host": "evil.example"}, 421, id="DNS rebinding"),
        pytest.param({"Host": "127.0.0.1.evil.example"}, 421, id="a name like an address"),
        pytest.param({"Sec-Fetch-Site": "cross-site"}, 403, id="another site"),
        pytest.param({"Sec-Fetch-Site": "same-site"}, 403, id="another subdomain"),
        pytest.param({"Origin": "http://evil.example"}, 403, id="origin"),
        pytest.param({"Origin": "null"}, 403, id="sandboxed frame"),
        pytest.param({"Origin": "http://127.0.0.1:1"}, 403, id="another port"),
        pytest.param({"Origin": "file://127.0.0.1"}, 403, id="file"),
        pytest.param({"Origin": "http://[::1"}, 403, id="no origin at all"),
        pytest.param({"X-Forwarded-For": "192.0.2.1"}, 403, id="a proxy that is not set"),
        pytest.param({"Via": "1.1 proxy"}, 403, id="another proxy"),
        pytest.param({"Sec-Fetch-Site": "same-origin"}, 200, id="the page itself"),
        pytest.param({"Sec-Fetch-Site": "none"}, 200, id="typed by the user"),
    ],
)
async def test_other_sites(headers: dict[str, str], status: int) -> None:
    """A page of another site cannot use the API of a worker on this machine."""
    async with served() as url:
        found, body, _ = await ask(f"{url}/api/see", headers)

        assert found == status
        assert status == 200 or body["status"] == status


async def test_the_origin_of_the_page_itself() -> None:
    """With the port, and with TLS in front."""
    async with served() as url:
        for origin in (url, url.replace("http", "https")):
            assert (await ask(f"{url}/api/see", {"Origin": origin}))[0] == 200


async def test_posts_are_json() -> None:
    """A form of another site cannot have this content type."""
    async with served() as url:
        for sent in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            assert (await ask(f"{url}/api/run", {"Content-Type": sent}, "POST"))[0] == 415
        as_json = {"Content-Type": "application/json; charset=utf-8"}
        assert (await ask(f"{url}/api/run", as_json, "POST"))[0] == 200


async def test_a_port_that_others_can_reach_needs_a_token() -> None:
    """The response names the variable."""
    async with served(host="0.0.0.0") as url:
        status, body, _ = await ask(f"{url}/api/see")

        assert status == 403
        assert "WORKERKIT_OPS__TOKEN" in body["detail"]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_tokens_and_roles(host: str) -> None:
    """Each token has its role, and the role includes the ones below."""
    allowed = {ADMIN: "see run drop", OPERATE: "see run", VIEW: "see"}
    async with served(host=host, **TOKENS) as url:
        for token, names in allowed.items():
            for name in ("see", "run", "drop"):
                status, body, _ = await ask(f"{url}/api/{name}", bearer(token))
                assert (status, name) == (200 if name in names.split() else 403, name)
            assert "role" in body["detail"] if status == 403 else body["user"] == "admin token"
        status, _, headers = await ask(f"{url}/api/see")
        assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="workerkit"')
        assert (await ask(f"{url}/api/see", {"Authorization": "Basic YTpi"}))[0] == 401
        assert (await ask(f"{url}/api/see", bearer("ü")))[0] == 401


async def test_read_only() -> None:
    """Nobody may change anything, and the response names the variable."""
    async with served(console="read") as url:
        assert (await ask(f"{url}/api/see"))[0] == 200
        status, body, _ = await ask(f"{url}/api/run")
        assert (status, body["detail"]) == (
            403,
            "the console is read-only: set WORKERKIT_OPS__CONSOLE=operate",
        )


async def test_guessing_is_locked_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After ten wrong tokens the right one is refused too, until the time has passed."""
    now = 1000.0
    monkeypatch.setattr(access, "monotonic", lambda: now)
    caplog.set_level(logging.WARNING, "workerkit.audit")
    async with served(**TOKENS) as url:
        for number in range(access.MOST_FAILURES):
            assert (await ask(f"{url}/api/see", bearer(f"guess-{number}")))[0] == 401
        status, _, headers = await ask(f"{url}/api/see", bearer(ADMIN))
        assert (status, headers["Retry-After"]) == (429, "61")
        assert [each.getMessage() for each in caplog.records] == ["console: address locked out"]
        now += access.LOCKED_SECONDS + 1
        assert (await ask(f"{url}/api/see", bearer(ADMIN)))[0] == 200


def test_the_table_of_addresses_is_bounded() -> None:
    """Also for one who has a whole network of IPv6, which counts as one address."""
    lockout = Lockout()
    for number in range(5_000):
        lockout.failed(f"10.0.{number // 250}.{number % 250}")
        lockout.failed(f"2001:db8::{number:x}")

    assert len(lockout._failures) == 1_000
    with pytest.raises(access.Denied, match="too many wrong tokens"):
        lockout.check("2001:db8::1234")


async def test_a_proxy_that_authenticates() -> None:
    """The headers count if they come from its address, and the role is view by default."""
    headers = {"X-Forwarded-User": "alice", "X-Forwarded-For": "198.51.100.7, 203.0.113.9"}
    async with served(proxy={"addresses": ["127.0.0.0/8"]}) as url:
        assert (await ask(f"{url}/api/see", headers))[:2] == (
            200,
            {"user": "alice", "role": "view", "address": "203.0.113.9"},
        )
        assert (await ask(f"{url}/api/run", headers))[0] == 403
        as_operator = {**headers, "X-Workerkit-Role": "Operate"}
        assert (await ask(f"{url}/api/run", as_operator))[0] == 200
        assert (await ask(f"{url}/api/see", {**headers, "X-Workerkit-Role": "root"}))[0] == 403
        assert (await ask(f"{url}/api/see"))[0] == 401


async def test_a_client_that_pretends_to_be_the_proxy() -> None:
    """Its headers have no effect."""
    async with served(proxy={"addresses": ["192.0.2.0/24"]}) as url:
        assert (await ask(f"{url}/api/see", {"X-Forwarded-User": "alice"}))[0] == 401


def test_a_short_token_is_refused() -> None:
    """It could be guessed."""
    with pytest.raises(ValidationError, match="at least 8"):
        OpsSettings(token=SecretStr("short"))


def test_audit_records(caplog: pytest.LogCaptureFixture) -> None:
    """The log has who, from where and what; the page gets the last ones, the newest first."""
    caplog.set_level(logging.INFO, "workerkit.audit")
    audit = Audit()
    alice = Operator(user="alice", role="admin", address="192.0.2.1")

    for number in range(300):
        audit(alice, "replay", f"orders{number}", "1 of 1")

    assert [each.target for each in audit.records()][:2] == ["orders299", "orders298"]
    assert len(audit.records()) == 200
    record = vars(caplog.records[0])
    assert (record["user"], record["address"], record["target"]) == (
        "alice",
        "192.0.2.1",
        "orders0",
    )
