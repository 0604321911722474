"""FR5. Hosts: the servers of a cluster in the settings."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict

from workerkit.amqp.addresses import ServerRotation
from workerkit.config.connections import AMQPSettings
from workerkit.config.hosts import Host, parse_host
from workerkit.config.load import load_settings
from workerkit.config.settings import WorkerSettings

ADVICE = "list several in HOSTS, as in a:5672,b:5672"


class Settings(WorkerSettings):
    model_config = SettingsConfigDict(env_prefix="SHOP_")


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def amqp(**values: Any) -> AMQPSettings:
    return AMQPSettings.model_validate(values)


def faults() -> list[str]:
    return load_settings(Settings, Settings)[1]


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("rabbit", Host("rabbit")),
        ("rabbit-1.mq.svc.cluster.local.", Host("rabbit-1.mq.svc.cluster.local.")),
        ("rabbit_1:5673", Host("rabbit_1", 5673)),
        ("10.0.0.1:1", Host("10.0.0.1", 1)),
        ("bücher.example", Host("bücher.example")),
        ("[::1]", Host("::1")),
        ("[2001:db8::1]:65535", Host("2001:db8::1", 65535)),
    ],
)
def test_fr5_a_host_is_a_name_or_an_address_with_or_without_a_port(text: str, host: Host) -> None:
    """Every valid text is parsed, and `str` returns it again."""
    assert parse_host(text) == host
    assert str(host) == text


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("", "should not be empty"),
        (":5672", "should not be empty"),
        ("a:", "should have a port from 1 to 65535"),
        ("a:0", "should have a port from 1 to 65535"),
        ("a:65536", "should have a port from 1 to 65535"),
        ("a:amqp", "should have a port from 1 to 65535"),
        ("a:٣", "should have a port from 1 to 65535"),
        ("::1", "in brackets"),
        ("::1:5672", "in brackets"),
        ("[::1", "close the bracket"),
        ("[::1]5672", "close the bracket"),
        ("[a]:5672", "IPv6 address in its brackets"),
        ("[1.2.3.4]", "IPv6 address in its brackets"),
        ("a b", "should be a host name"),
        ("a;b", "should be a host name"),
        ("a\n", "should be a host name"),
        ("amqp://hunter22", "without scheme"),
        ("u:hunter22@h", "without scheme, user"),
        ("h/hunter22", "without scheme, user or path"),
    ],
)
def test_fr5_an_invalid_host_is_refused_without_quoting_it(text: str, right: str) -> None:
    """The error states what is valid, and does not contain the value."""
    with pytest.raises(ValueError, match=right) as caught:
        parse_host(text)

    assert "hunter22" not in str(caught.value)


@given(st.text())
def test_fr5_any_text_is_a_host_or_refused(text: str) -> None:
    """No other error is raised, and a valid host can be written into a URL."""
    try:
        host = parse_host(text)
    except ValueError:
        return
    assert parse_host(str(host)) == host


@pytest.mark.parametrize(
    "text", ["a,b:5673,[::1]", '["a", "b:5673", "[::1]"]', " a , b:5673, [::1] "]
)
def test_fr5_hosts_are_json_or_separated_by_commas(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HOSTS replace the host of the URL; a host without a port has the port of the URL."""
    monkeypatch.setenv("SHOP_AMQP__DEFAULT__URL", "amqp://u:p@h:1234/v")
    monkeypatch.setenv("SHOP_AMQP__DEFAULT__HOSTS", text)

    settings = Settings().amqp["default"]

    assert faults() == []
    assert settings.servers == (Host("a", 1234), Host("b", 5673), Host("::1", 1234))
    assert settings.display() == "amqp://u@a:1234,b:5673,[::1]:1234/v"
    assert settings.display("w") == "amqp://u@a:1234,b:5673,[::1]:1234/w"
    assert settings.display(server=settings.servers[2]) == "amqp://u@[::1]:1234/v"
    assert str(settings.address(server=settings.servers[1])) == "amqp://u:p@b:5673/v"


def test_fr5_the_port_of_hosts() -> None:
    """PORT is the port of all hosts without one; the default is that of the protocol."""
    assert amqp(hosts=["a", "b:1"], port=2).servers == (Host("a", 2), Host("b", 1))
    assert amqp(hosts=["a"], url="amqps://h/").servers == (Host("a", 5671),)
    assert amqp(hosts=["a", "a:5672"], url="amqp://h/").servers == (Host("a", 5672),)
    assert amqp(url="amqp://h/").servers == (Host("h", 5672),)
    assert amqp(url="amqp://h:1/", host="::1").servers == (Host("::1", 1),)


@pytest.mark.parametrize(
    "url",
    [
        "amqp://u:hunter22@a,b:5672/",
        "amqp://u:hunter22@a:5672,b:5672/",
        "amqp://u:hunter22@a:5672,u:hunter22@b:5672/v",
        "amqp://u:hunter22@a:5672/,amqp://u:hunter22@b:5672/",
        "amqp://u:hunter22@a/v;amqps://u:hunter22@b/v",
        "amqp://u:hunter22@a;b",
        "amqp://u:hunter22@a;amqp://u:hunter22@b",
        "amqp://u:hunter22@[::1],[::2]?x=1",
    ],
)
def test_fr5_a_list_in_the_url_is_refused_with_advice(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other clients accept lists in a URL. The error names HOSTS."""
    monkeypatch.setenv("SHOP_AMQP__DEFAULT__URL", url)

    assert faults() == [f"SHOP_AMQP__DEFAULT__URL is ***: should name one host: {ADVICE}"]


@pytest.mark.parametrize("url", ["amqp://u,v:p,w;x@h/", "amqp://u:p@ss,v:w@h/", "amqp://h/a,b;c"])
def test_fr5_commas_elsewhere_in_the_url_are_allowed(url: str) -> None:
    """Passwords and virtual hosts may contain commas."""
    assert amqp(url=url).servers == (Host("h", 5672),)


def test_fr5_a_list_in_host_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """HOST is a single host."""
    monkeypatch.setenv("SHOP_AMQP__DEFAULT__HOST", "a,b")

    assert faults() == [f"SHOP_AMQP__DEFAULT__HOST is 'a,b': should be one host: {ADVICE}"]


def test_fr5_host_and_hosts_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names both."""
    monkeypatch.setenv("SHOP_AMQP__DEFAULT__HOST", "a")
    monkeypatch.setenv("SHOP_AMQP__DEFAULT__HOSTS", "b,c")

    assert faults() == [
        "SHOP_AMQP__DEFAULT__HOST, SHOP_AMQP__DEFAULT__HOSTS: should have HOST or HOSTS, not both"
    ]


@pytest.mark.parametrize(
    ("text", "number"), [("a,b:x", 2), ("a,", 2), ("a,{", 2), ("u:hunter22@a", 1)]
)
def test_fr5_an_invalid_entry_is_named_by_its_number(
    text: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variable and the entry, and does not contain the value."""
    monkeypatch.setenv("SHOP_AMQP__DEFAULT__HOSTS", text)

    [fault] = faults()

    assert fault.startswith(f"SHOP_AMQP__DEFAULT__HOSTS: entry {number} should ")
    assert "hunter22" not in fault


@pytest.mark.parametrize(
    ("default", "name", "text", "servers"),
    [
        ({"host": "log"}, "HOSTS", "a,b", (Host("a", 5672), Host("b", 5672))),
        ({"hosts": ["a", "b"]}, "HOST", "log", (Host("log", 5672),)),
    ],
)
def test_fr5_an_operator_replaces_the_hosts_of_the_class(
    default: dict[str, Any],
    name: str,
    text: str,
    servers: tuple[Host, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A HOST in a settings class does not conflict with HOSTS in the environment."""

    class Own(Settings):
        amqp: dict[str, AMQPSettings] = {"default": AMQPSettings.model_validate(default)}

    monkeypatch.setenv(f"SHOP_AMQP__DEFAULT__{name}", text)

    assert Own().amqp["default"].servers == servers


def test_fr5_both_in_code_are_refused() -> None:
    """In code as in the environment."""
    with pytest.raises(ValidationError, match="HOST or HOSTS"):
        amqp(host="a", hosts=["b"])


SERVERS = tuple(Host(name, 5672) for name in "abc")


def test_fr5_servers_are_tried_in_turn_from_a_random_one_on() -> None:
    """Each server is tried once before a pause. Different connections start at different ones."""
    starts = set()
    for _ in range(200):
        rotation = ServerRotation()
        tried, waits = [], []
        for _ in range(6):
            attempt = rotation.attempt(SERVERS)
            tried.append(attempt.server.name)
            waits.append(rotation.failed(attempt, SERVERS))
        starts.add(tried[0])
        assert "".join(tried) in "abcabcabc"
        assert waits == [False, False, True] * 2

    assert starts == {"a", "b", "c"}


def test_fr5_after_a_loss_another_server_is_tried_first() -> None:
    """The loss of a stable connection starts a new round, at the next server."""
    rotation = ServerRotation()
    rotation.failed(rotation.attempt(SERVERS), SERVERS)
    lost = rotation.attempt(SERVERS)
    rotation.stable()

    waits = rotation.failed(lost, SERVERS)
    following = rotation.attempt(SERVERS)

    assert not waits
    assert following.server != lost.server
    assert [rotation.failed(rotation.attempt(SERVERS), SERVERS) for _ in range(2)] == [False, True]


def test_fr5_servers_that_drop_every_connection_get_pauses() -> None:
    """Connections that do not last count as failures: there is a pause after each round."""
    rotation = ServerRotation()

    waits = [rotation.failed(rotation.attempt(SERVERS), SERVERS) for _ in range(6)]

    assert waits == [False, False, True] * 2


def test_fr5_the_list_may_change_between_two_attempts() -> None:
    """A list that is read again may be shorter."""
    rotation = ServerRotation()
    for length in (3, 1, 2, 3):
        servers = SERVERS[:length]
        assert rotation.attempt(servers).server in servers
        rotation.failed(rotation.attempt(servers), servers)
