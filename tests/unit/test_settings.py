"""Settings: their sources, and the URL of a message broker."""

import asyncio
from pathlib import Path
from typing import Any

import aiormq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict
from yarl import URL

from workerkit.config.connections import AMQPSettings
from workerkit.config.load import load_settings
from workerkit.config.sections import HTTPSettings, LogSettings, OpsSettings
from workerkit.config.settings import WorkerSettings


class Settings(WorkerSettings):
    model_config = SettingsConfigDict(env_prefix="SHOP_")

    hosts: list[str] = []
    ports: dict[str, list[int]] = {}
    weights: tuple[float, ...] | None = None


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def connection(url: URL) -> aiormq.Connection:
    """Let aiormq parse *url*; it wants a running loop for that."""

    async def make() -> aiormq.Connection:
        return aiormq.Connection(url)

    return asyncio.run(make())


def amqp(**values: Any) -> AMQPSettings:
    return AMQPSettings.model_validate(values)


def test_defaults() -> None:
    """Without any variable every setting has the documented default."""
    settings = WorkerSettings()

    assert settings.amqp == {"default": AMQPSettings()}
    assert settings.http == HTTPSettings(host="127.0.0.1", port=8080, max_body=1_048_576)
    assert settings.ops == OpsSettings(enabled=True, host="127.0.0.1", port=8081)
    assert settings.log == LogSettings(level="INFO", format=None)
    assert (settings.shutdown_grace, settings.start_timeout, settings.consumers) == (20.0, None, {})


def test_the_default_address() -> None:
    """Without configuration, a connection logs in to the local broker as guest."""
    settings = AMQPSettings()

    assert str(settings.address()) == "amqp://guest:guest@127.0.0.1:5672/"
    assert settings.display() == "amqp://guest@127.0.0.1:5672/"
    assert settings.vhost_name() == "/"


@pytest.mark.parametrize(
    ("url", "port"), [("amqp://h/", 5672), ("amqps://h", 5671), ("amqp://h:1234", 1234)]
)
def test_the_port_is_that_of_the_protocol(url: str, port: int) -> None:
    """A URL without a port means the registered one."""
    assert amqp(url=url).address().port == port


@pytest.mark.parametrize("url", ["amqp://h", "amqp://h/", "amqp://h/%2F"])
def test_an_empty_path_is_the_vhost_slash(url: str) -> None:
    """Every way to write the vhost `/` is understood, by us and by aiormq."""
    settings = amqp(url=url)

    assert settings.vhost_name() == "/"
    assert connection(settings.address()).vhost == "/"


def test_an_empty_vhost_is_the_vhost_slash() -> None:
    """A consumer whose vhost is empty uses `/`."""
    assert amqp(url="amqp://h/orders").vhost_name("") == "/"


@pytest.mark.parametrize("path", ["orders", "a%2fb", "/prod", "%zz", "%C3%A4", "a%252fb"])
def test_the_vhost_of_a_url_is_the_one_that_aiormq_reads(path: str) -> None:
    """aiormq opens the vhost that `vhost_name` returns, however the URL encodes it."""
    settings = amqp(url=f"amqp://h/{path}")

    assert settings.vhost_name() == connection(URL(f"amqp://h/{path}")).vhost
    assert settings.vhost_name() == connection(settings.address()).vhost


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1))
def test_any_vhost_survives(vhost: str) -> None:
    """A vhost arrives at aiormq as it is called, whatever characters it has."""
    if "%2F" in vhost:
        return
    url = amqp(url="amqp://h/").address(vhost).update_query(heartbeat=15)

    assert connection(url).vhost == vhost


@pytest.mark.parametrize(
    "vhost", ["a/b", "/a", "a%b", "100%", "%41", "a b", "a+b", "?", "#", "..", "%2f", "ä€"]
)
def test_a_vhost_with_special_characters_survives(vhost: str) -> None:
    """Slashes, percent signs, spaces and the rest need no encoding by the operator."""
    assert connection(amqp(vhost=vhost).address()).vhost == vhost


def test_a_vhost_that_is_percent_encoded_by_mistake_is_refused() -> None:
    """`%2F` in VHOST comes from a URL, where it means a slash."""
    with pytest.raises(ValidationError, match="without percent-encoding"):
        amqp(vhost="a%2Fb")


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1),
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1),
)
def test_any_credentials_survive(user: str, password: str) -> None:
    """User and password arrive as they are, whatever characters they have."""
    assume(user == user.strip() and password == password.strip())
    url = URL(str(amqp(user=user, password=password).address()))

    assert (url.user, url.password) == (user, password)


def test_parts_override_the_url() -> None:
    """Each part of the address can be set alone; the others stay."""
    settings = amqp(
        url="amqps://u:p@h:1/v?heartbeat=9", host="::1", port=2, user="me", vhost="w", password="q@"
    )

    assert str(settings.address()) == "amqps://me:q%40@[::1]:2/w"
    assert str(amqp(url="amqp://u:p@h/v", user="me").address()) == "amqp://me:p@h:5672/v"


def test_broken_percent_encoding_is_taken_literally() -> None:
    """A percent sign that encodes nothing stands for itself."""
    url = amqp(url="amqp://u:%zz%@h/").address()

    assert url.password == "%zz%"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h",
        "http://u:hunter22@h/",
        "amqp://u:hunter22@/x",
        "amqp://u:hunter22@h:port/",
        "amqp://u:hunter22@h:99999/",
        "amqp://u:hunter22@[::1/",
        "amqp://u:hunter22#@h/",
    ],
)
def test_a_url_that_is_no_address_is_refused_without_printing_it(url: str) -> None:
    """Another scheme, a missing host and a bad port are errors that keep the password."""
    with pytest.raises(ValidationError) as caught:
        amqp(url=url)

    assert "hunter22" not in str(caught.value)
    assert caught.value.errors()[0]["loc"] == ("url",)


@pytest.mark.parametrize("host", ["a/b", "h:5672", "", "a b"])
def test_a_host_is_only_a_host(host: str) -> None:
    """A host with a port or a path is an error where it is set, not at the first connection."""
    with pytest.raises(ValidationError, match="host name"):
        amqp(host=host)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", 0),
        ("port", 65536),
        ("heartbeat", 0),
        ("heartbeat", 65536),
        ("heartbeat", 1.5),
        ("connect_timeout", 0),
        ("connect_timeout", float("inf")),
        ("declare", "maybe"),
        ("x", 1),
    ],
)
def test_bounds_of_a_connection(field: str, value: object) -> None:
    """Values out of bounds and unknown fields are refused."""
    with pytest.raises(ValidationError):
        amqp(**{field: value})


def test_nothing_that_prints_settings_prints_a_password() -> None:
    """Neither repr nor str nor display show a password, wherever it was given."""
    settings = WorkerSettings(
        amqp={
            "default": amqp(url="amqp://u:hunter22@h/", password="hunter33"),
            "other": amqp(url="amqp://u:hunter44@h/v"),
        }
    )
    texts = [f"{settings!r} {settings}", *(each.display() for each in settings.amqp.values())]

    assert "hunter" not in " ".join(texts)
    assert texts[1:] == ["amqp://u@h:5672/", "amqp://u@h:5672/v"]


def test_a_named_connection_leaves_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """`default` exists although the environment names only another connection."""
    monkeypatch.setenv("SHOP_AMQP__Main__HOST", "rabbit")

    settings = Settings()

    assert settings.amqp == {"default": AMQPSettings(), "main": AMQPSettings(host="rabbit")}


def test_connections_of_the_class_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment changes parts of a connection that the class declares."""

    class Own(WorkerSettings):
        amqp: dict[str, AMQPSettings] = Field(
            default={"logs": AMQPSettings(host="log"), "default": AMQPSettings(vhost="v")}
        )

    monkeypatch.setenv("WORKERKIT_AMQP__LOGS__PORT", "1")

    assert Own().amqp == {
        "logs": AMQPSettings(host="log", port=1),
        "default": AMQPSettings(vhost="v"),
    }


def test_json_for_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """One variable may hold all connections; single variables override its parts."""
    monkeypatch.setenv("SHOP_AMQP__DEFAULT__PORT", "1")
    monkeypatch.setenv("SHOP_AMQP__DEFAULT", '{"port": 2, "user": "u"}')
    monkeypatch.setenv("SHOP_AMQP", '{"Default": {"host": "h", "port": 3}, "B": {"host": "b"}}')

    settings = Settings()

    assert settings.amqp == {
        "default": AMQPSettings(host="h", port=1, user="u"),
        "b": AMQPSettings(host="b"),
    }


def test_nested_variables_change_only_their_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """One variable of a section leaves the defaults of the section's other fields."""
    monkeypatch.setenv("SHOP_HTTP__PORT", "0")
    monkeypatch.setenv("shop_log__level", "debug")
    monkeypatch.setenv("SHOP_LOG__FORMAT", "JSON")
    monkeypatch.setenv("SHOP_OPS__ENABLED", "no")
    monkeypatch.setenv("SHOP_START_TIMEOUT", "")

    settings = Settings()

    assert settings.http == HTTPSettings(port=0)
    assert settings.log == LogSettings(level="DEBUG", format="json")
    assert settings.ops == OpsSettings(enabled=False)
    assert settings.start_timeout is None


@pytest.mark.parametrize(
    ("text", "hosts"),
    [("a", ["a"]), ("a, b", ["a", "b"]), ('["a,b"]', ["a,b"]), ("5", ["5"]), ("true", ["true"])],
)
def test_lists_are_json_or_commas(
    monkeypatch: pytest.MonkeyPatch, text: str, hosts: list[str]
) -> None:
    """A list needs no JSON, and single items are not mistaken for it."""
    monkeypatch.setenv("SHOP_HOSTS", text)

    assert Settings().hosts == hosts


def test_lists_inside_dicts_and_tuples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commas work for every kind of list, at any depth."""
    monkeypatch.setenv("SHOP_PORTS__A", "1,2")
    monkeypatch.setenv("SHOP_WEIGHTS", "1,2.5")

    settings = Settings()

    assert (settings.ports, settings.weights) == ({"a": [1, 2]}, (1.0, 2.5))


def test_options_of_consumers_stay_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the option's type can say what a text means, so nothing is decoded before."""
    monkeypatch.setenv("SHOP_CONSUMERS__ORDER_PLACED__CONCURRENCY", "64")
    monkeypatch.setenv("SHOP_CONSUMERS__ORDER_PLACED__RETRY__DELAYS", "5")

    assert Settings().consumers == {
        "order_placed": {"concurrency": "64", "retry": {"delays": "5"}},
    }


def test_bad_json_is_found_together_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad JSON is a validation error like any other."""
    monkeypatch.setenv("SHOP_AMQP", "{")
    monkeypatch.setenv("SHOP_HOSTS", "[" * 100_000)
    monkeypatch.setenv("SHOP_SHUTDOWN_GRACE", "-1")

    with pytest.raises(ValidationError) as caught:
        Settings()

    assert [each["loc"][0] for each in caught.value.errors()] == ["amqp", "shutdown_grace", "hosts"]


def test_the_order_of_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Arguments come before the environment, `.env` and secret files."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "amqp__default__password").write_text("file\n")
    (secrets / "SHOP_AMQP__DEFAULT__USER").write_text("file\n")
    (secrets / "amqp__default__vhost").write_text("file\n")
    Path(".env").write_text("SHOP_AMQP__DEFAULT__VHOST=dotenv\nSHOP_AMQP__DEFAULT__HOST=dotenv\n")
    monkeypatch.setenv("SHOP_AMQP__DEFAULT__HOST", "environment")
    monkeypatch.setenv("SHOP_AMQP__DEFAULT__PORT", "1")

    class Own(Settings):
        model_config = SettingsConfigDict(secrets_dir=secrets)

    found = Own(amqp={"default": {"port": 2}}).amqp["default"]  # type: ignore[dict-item]

    assert found == amqp(user="file", password="file", vhost="dotenv", host="environment", port=2)


@pytest.mark.parametrize(
    ("variable", "value", "fault"),
    [
        (
            "AMQP__URL",
            "amqp://h/",
            "lacks the name of a connection; did you mean SHOP_AMQP__DEFAULT__URL?",
        ),
        (
            "SSE__TOKEN",
            "hunter22",
            "lacks the name of a connection; did you mean SHOP_SSE__DEFAULT__TOKEN?",
        ),
        ("AMQP__DEFAULT", "amqp://h/", "is not valid JSON: expecting value (character 1)"),
        (
            "METRICS__BUCKETS",
            "x",
            "at [0] is 'x': should be a valid number, unable to parse string as a number",
        ),
    ],
)
def test_one_mistake_is_one_fault(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, fault: str
) -> None:
    """A mistake causes one fault only, with the nearest known name if there is one."""
    monkeypatch.setenv(f"SHOP_{variable}", value)

    found, faults = load_settings(Settings, Settings)

    assert found is None
    assert faults == [f"SHOP_{variable} {fault}"]
