"""Event streams through a proxy, and the cookies of their servers."""

import asyncio
import ssl
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict
from yarl import URL

from tests.forward_proxy import forward_proxy
from tests.ports import free_port
from tests.raw_server import raw_server
from tests.records import everything, fields
from tests.streams import collector, consuming
from tests.waiting import eventually
from workerkit import WorkerSettings
from workerkit.config.connections import SSESettings
from workerkit.sse.cookies import MAX_COOKIE_SIZE, MAX_COOKIES, Cookies
from workerkit.testing import sse_server

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUEST_METHOD")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the proxy variables of the environment of the test run."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


async def test_fe7_a_stream_through_a_proxy(caplog: pytest.LogCaptureFixture) -> None:
    """Each connection uses it, with its credentials, which appear nowhere else."""
    consumer, handled = collector()

    async with (
        forward_proxy("user", "s3cret") as proxy,
        sse_server() as server,
        consuming(server, consumer, proxy=proxy.url) as runner,
    ):
        await server.send("a")
        await eventually(lambda: handled == ["a"])
        server.cut()
        await server.client(2)
        shown = repr(runner.health)

    assert proxy.targets == [f"{server.url}/events"] * 2
    assert not any("proxy" in name.lower() for name in server.requests[0].headers)
    assert "s3cret" not in everything(caplog) + shown


async def test_fe7_a_tunnel_to_a_server_with_tls(tmp_path: Path) -> None:
    """The proxy gets the address, and neither the path nor the headers."""
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    consumer, handled = collector()

    async with (
        forward_proxy("user", "pw") as proxy,
        sse_server(tls=tls) as server,
        consuming(
            server, consumer, proxy=proxy.url, token="s3cret", tls={"ca": tmp_path / "ca.pem"}
        ),
    ):
        await server.send("a")
        await eventually(lambda: handled == ["a"])

    assert proxy.targets == [server.url.removeprefix("https://")]
    assert "s3cret" not in "".join(proxy.heads)
    assert not any("proxy" in name.lower() for name in server.requests[0].headers)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_fe7_the_environment_is_used_if_trusted(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TRUST_ENV its proxy is used; without, and for hosts in NO_PROXY, it is not."""
    consumer, _ = collector()

    async with forward_proxy() as proxy, sse_server() as server:
        monkeypatch.setenv(variable, proxy.origin)
        async with consuming(server, consumer):
            await server.client(1)
        untrusted = len(proxy.targets)
        async with consuming(server, consumer, trust_env=True):
            await server.client(2)
        trusted = len(proxy.targets)
        monkeypatch.setenv("NO_PROXY", "other.example, 127.0.0.1")
        async with consuming(server, consumer, trust_env=True):
            await server.client(3)
        excepted = len(proxy.targets)

    assert (untrusted, trusted, excepted) == (0, 1, 1)


async def test_fe7_the_setting_precedes_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The setting is more specific."""
    consumer, _ = collector()

    async with forward_proxy() as proxy, sse_server() as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
        async with consuming(server, consumer, trust_env=True, proxy=proxy.origin):
            await server.client()

    assert len(proxy.targets) == 1


async def test_fe7_netrc_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRUST_ENV does not include the passwords in this file."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    consumer, _ = collector()

    async with sse_server() as server, consuming(server, consumer, trust_env=True):
        request = await server.client()

    assert "Authorization" not in request.headers


@pytest.mark.parametrize("value", ["socks5://h:1", "http://", "http://[s3cret", "://s3cret"])
async def test_fe7_an_invalid_proxy_in_the_environment(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a refusal without a quote; the stream does not connect directly."""
    monkeypatch.setenv("HTTP_PROXY", value)
    consumer, _ = collector()

    async with (
        sse_server() as server,
        consuming(server, consumer, ready=False, trust_env=True) as runner,
    ):
        await eventually(lambda: "proxy of the environment" in runner.health[0].reason)

    assert server.requests == []
    assert "s3cret" not in everything(caplog)


@pytest.mark.parametrize(("status", "refused"), [(407, True), (502, False)])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_fe7_a_proxy_that_refuses(
    scheme: str, status: int, refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason names the proxy without its credentials; a 5xx is tried again."""
    consumer, _ = collector()
    url = f"{scheme}://127.0.0.1:{free_port()}"

    async with (
        forward_proxy("user", "s3cret", refusal=status) as proxy,
        consuming(url, consumer, ready=False, proxy=proxy.url) as runner,
    ):
        await eventually(lambda: str(status) in runner.health[0].reason)
        reason = runner.health[0].reason
        assert (runner.health[0].parts[0].refusals > 0) is refused

    assert f"through {proxy.origin}" in reason
    assert "s3cret" not in everything(caplog) + reason


async def test_fe7_a_tunnel_that_fails() -> None:
    """The reason describes the failure, without the repr of an object."""
    consumer, _ = collector()
    answer = b"HTTP/1.1 200 Connected\r\n\r\nthis is no TLS"

    async with (
        raw_server(lambda number, head: answer) as proxy,
        consuming("https://127.0.0.1:1", consumer, ready=False, proxy=proxy.url) as runner,
    ):
        await eventually(lambda: "127.0.0.1:1: " in runner.health[0].reason)
        reason = runner.health[0].reason

    assert "cannot connect to 127.0.0.1:1: " in reason
    assert "<" not in reason


async def test_fe7_a_proxy_that_is_not_reachable(caplog: pytest.LogCaptureFixture) -> None:
    """It is a failed attempt; the reason has no credentials."""
    consumer, _ = collector()
    proxy = f"http://user:s3cret@127.0.0.1:{free_port()}"

    async with (
        sse_server() as server,
        consuming(server, consumer, ready=False, proxy=proxy),
    ):
        await eventually(lambda: fields(caplog, "connection failed"))

    assert server.requests == []
    assert "s3cret" not in everything(caplog)


@pytest.mark.parametrize("proxy", ["socks5://h", "h:1", "http://", "https://user:s3cret@"])
def test_fe7_an_invalid_proxy_in_the_settings(proxy: str) -> None:
    """It is a fault of the settings that does not quote the value."""
    with pytest.raises(ValidationError) as caught:
        SSESettings(url=SecretStr("https://h"), proxy=SecretStr(proxy))

    assert "s3cret" not in str(caught.value)


def test_fe7_variables_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the settings has a variable."""

    class Settings(WorkerSettings):
        model_config = SettingsConfigDict(env_prefix="SHOP_")

    monkeypatch.setenv("SHOP_SSE__M__URL", "https://m/base")
    monkeypatch.setenv("SHOP_SSE__M__PROXY", "http://user:s3cret@proxy:3128")
    monkeypatch.setenv("SHOP_SSE__M__TRUST_ENV", "true")
    monkeypatch.setenv("SHOP_SSE__M__REDIRECTS", "Same-Origin")
    monkeypatch.setenv("SHOP_SSE__M__TRUSTED_ORIGINS", "https://a.example,https://b.example:444")
    monkeypatch.setenv("SHOP_CURSORS_CORRUPT", "wait")
    made = Settings()
    found = made.sse["m"]

    assert found.proxy is not None
    assert found.proxy.get_secret_value() == "http://user:s3cret@proxy:3128"
    assert (found.trust_env, found.redirects) == (True, "same-origin")
    assert found.trusted_origins == ("https://a.example", "https://b.example:444")
    assert made.cursors_corrupt == "wait"
    assert "s3cret" not in repr(made)


def setting(*cookies: str, body: bytes = b"data: x\n\n", status: int = 200) -> bytes:
    """Return a response that sets *cookies*."""
    lines = "".join(f"Set-Cookie: {each}\r\n" for each in cookies)
    head = f"HTTP/1.1 {status} Any\r\nContent-Type: text/event-stream\r\n{lines}\r\n"
    return head.encode() + body


def cookie_of(head: list[str]) -> str:
    """Return the header `Cookie` of a request."""
    return next((line.partition(": ")[2] for line in head if line.startswith("cookie: ")), "")


async def test_fe7_cookies_are_kept_between_attempts() -> None:
    """Also those of an error response, next to a configured one; newer ones replace older."""
    answers = iter(
        [
            setting("node=1; Path=/; HttpOnly", status=503),
            setting("node=a/b=; Path=/", "other=2"),
            setting("other=; Max-Age=0"),
        ]
    )
    consumer, _ = collector()

    async with (
        raw_server(lambda *_: next(answers, setting())) as server,
        consuming(server.url, consumer, ready=False, headers={"Cookie": "own=0"}),
    ):
        await eventually(lambda: len(server.heads) >= 4)

    assert [cookie_of(each) for each in server.lines[:4]] == [
        "own=0",
        "own=0; node=1",
        "own=0; node=a/b=; other=2",
        "own=0; node=a/b=",
    ]


async def test_fe7_cookies_are_discarded_when_the_server_refuses() -> None:
    """Otherwise an expired session would make every attempt fail."""
    answers: Iterator[bytes] = iter([setting("sid=1"), setting(status=401), setting()])
    consumer, _ = collector()

    async with (
        raw_server(lambda *_: next(answers, setting())) as server,
        consuming(server.url, consumer, ready=False),
    ):
        await eventually(lambda: len(server.heads) >= 3)

    assert [cookie_of(each) for each in server.lines[:3]] == ["", "sid=1", ""]


async def test_fe7_streams_do_not_share_cookies() -> None:
    """Each stream has its own jar."""
    consumer, _ = collector(routes=["/a", "/b"])

    async with (
        raw_server(
            lambda _, head: setting("sid=" + ("a" if head.startswith(b"GET /a") else "b"))
        ) as server,
        consuming(server.url, consumer, ready=False),
    ):
        await eventually(lambda: len(server.heads) >= 6)

    for lines in server.lines:
        route = lines[0].split(" ")[1]
        assert cookie_of(lines) in ("", f"sid={route[1:]}")


async def test_fe7_cookies_that_are_too_long_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """The header stays within its limit, so servers accept it; there is one WARNING."""
    answer = setting("small=1", *(f"large{n}={'x' * 3000}" for n in range(2)))
    consumer, _ = collector()

    async with (
        raw_server(lambda *_: answer) as server,
        consuming(server.url, consumer, ready=False),
    ):
        await eventually(lambda: len(server.heads) >= 3)

    assert cookie_of(server.lines[2]) == f"small=1; large0={'x' * 3000}"
    warning = "cookies of the server are ignored: too many, too long or malformed"
    assert len(fields(caplog, warning)) == 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.text("abc", min_size=1, max_size=3), st.integers(0, 3000)), max_size=80)
)
def test_fe7_the_jar_has_limits(cookies: list[tuple[str, int]]) -> None:
    """The number of cookies and of their characters is limited."""

    async def run() -> str:
        jar, url = Cookies(), URL("http://127.0.0.1/")
        for name, size in cookies:
            jar.add(SimpleCookie({name: "x" * size}), url)
        return jar.header(url)

    sent = asyncio.run(run())

    assert len(sent.split("; ")) <= MAX_COOKIES
    assert len(sent.replace("; ", "").replace("=", "")) <= MAX_COOKIE_SIZE
