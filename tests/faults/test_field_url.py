"""FR14. The broker gets exactly the values of the URL."""

import pytest

from tests.application import running
from tests.client import connected
from tests.consumers import collector
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually


@pytest.mark.parametrize(("path", "own"), [("a%252Fb", "a%2Fb"), ("a%2Fb", "a/b"), ("..", "..")])
async def test_fr14_a_url_leads_to_exactly_its_virtual_host(
    rabbit: PrivateRabbit, path: str, own: str
) -> None:
    """A virtual host that is percent-encoded twice is decoded once."""
    vhosts = ("a%2Fb", "a/b", "..")
    consumer, bodies = collector("orders")
    by_option, also = collector("others", vhost=own, name="Other")
    server = rabbit.url().rstrip("/").removesuffix("%2F").rstrip("/")
    for vhost in vhosts:
        rabbit.add_vhost(vhost)
    try:
        async with running(f"{server}/{path}", consumer, by_option):
            connections = rabbit.eval(
                "[V || Pid <- rabbit_networking:connections(), {vhost, V}"
                " <- (catch rabbit_networking:connection_info(Pid, [vhost])),"
                ' lists:member(V, [<<"a%2Fb">>, <<"a/b">>, <<"..">>])]'
            )
    finally:
        for vhost in vhosts:
            rabbit.delete_vhost(vhost)

    assert bodies == also == []
    assert set(connections.strip("[]").replace("\n", "").split(",")) == {f'<<"{own}">>'}


async def test_fr14_the_heartbeat_of_the_url_is_agreed_on(
    rabbit: PrivateRabbit, vhost: str, url: str
) -> None:
    """The broker uses the heartbeat of the URL."""
    consumer, bodies = collector("orders")

    def timeouts() -> str:
        return rabbit.eval(
            "[{heartbeat, T} || Pid <- rabbit_networking:connections(), [{vhost, V}, {timeout, T}]"
            " <- [(catch rabbit_networking:connection_info(Pid, [vhost, timeout]))],"
            f' V =:= <<"{vhost}">>, T =:= 47]'
        )

    async with running(f"{url}?heartbeat=47", consumer), connected(url) as client:
        await client.send("orders", b"x")
        await eventually(lambda: bodies == [b"x"])
        found = timeouts()

    assert "{heartbeat,47}" in found
