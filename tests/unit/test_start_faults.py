"""Faults at start: all at once, none twice, no consequential faults, and no secrets."""

import ssl
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from dependency_injector import providers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator
from pydantic_settings import SettingsConfigDict
from typer.testing import CliRunner

from tests.application import package_of
from workerkit import AMQPConsumer, Runner, SSEConsumer, StartError, WorkerContainer, WorkerSettings
from workerkit.cli.commands import app
from workerkit.cli.settings import inventory
from workerkit.config.connections import TLSSettings
from workerkit.safe_text import without_credentials


class Pool(BaseModel):
    """A section of the user's own."""

    size: int = 3
    tls: TLSSettings = TLSSettings()


class Settings(WorkerSettings):
    """Settings with fields of the user."""

    model_config = SettingsConfigDict(env_prefix="SHOP_", env_file=None)

    pool: Pool = Pool()
    opened: datetime | None = None
    limit: int
    backend: str = "memory"
    cache: str = ""

    @field_validator("backend")
    @classmethod
    def _check_backend(cls, given: str) -> str:
        if given != "memory":
            raise ValueError(f"{given} is no backend")
        return given


class Container(WorkerContainer):
    settings = providers.Singleton(Settings)


class Each(AMQPConsumer):
    queues = ["q"]

    async def handle(self, body: bytes) -> None: ...


class Other(SSEConsumer):
    connection = "marathon"

    async def handle(self, body: bytes) -> None: ...


def faults(only: Any = (), *packages: str) -> list[str]:
    """The faults of these two classes in this environment."""
    names = packages or (package_of(Each, Other),)
    try:
        Runner(Container(), packages=names, only=only).assemble()
    except StartError as error:
        return list(error.faults)
    return []


FAULTS = {
    "SHOP_LIMIT": "many",
    "SHOP_POOL__SIZE": "large",
    "SHOP_OPENED": "yesterday",
    "SHOP_BACKEND": "paper",
    "SHOP_HTTP__PORT": "web",
    "SHOP_OPS__PORT": "-1",
    "SHOP_LOG__LEVEL": "loud",
    "SHOP_METRICS__BUCKETS": "3,2",
    "SHOP_SHUTDOWN_GRACE": "long",
    "SHOP_CURSORS_FSYNC": "perhaps",
    "SHOP_AMQP__DEFAULT__PORT": "rabbit",
    "SHOP_AMQP__DEFAULT__TLS__CA": "/missing/ca.pem",
    "SHOP_AMQP__LOGS__HEARTBEAT": "0",
    "SHOP_SSE__MARATHON__IDLE_TIMEOUT": "x",
    "SHOP_POOL__TLS__CERT": "/missing/cert.pem",
    "SHOP_NO_SUCH": "1",
    "SHOP_CONSUMERS__EACH__CONCURRENCY": "0",
    "SHOP_CONSUMERS__EACH__NO_SUCH": "0",
    "SHOP_CONSUMERS__EACH__BATCH_SIZE": "3",
    "SHOP_CONSUMERS__EACH__CONNECTION": "nowhere",
    "SHOP_CONSUMERS__OTHER__TIMEOUT": "-1",
    "SHOP_CONSUMERS__NOBODY__TIMEOUT": "3",
}
"""Variables with a value that is wrong, independently of all others."""


@given(st.sets(st.sampled_from(sorted(FAULTS)), min_size=1))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_fp7_n_faults_of_the_environment_are_n_lines(wrong: set[str]) -> None:
    """Each invalid variable has one line, in every combination, and there is no other line."""
    right = {"SHOP_LIMIT": "3", "SHOP_SSE__MARATHON__URL": "https://h/"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**right, **{name: FAULTS[name] for name in wrong}}.items():
            patch.setenv(name, value)
        found = faults()

    named = {line.partition(":")[0].partition(" ")[0] for line in found}
    # An option with a fault of its own is not judged further.
    assert named == wrong
    assert len(found) == len(wrong)


def test_fp7_a_required_setting_that_is_missing_hides_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same where there is no value at all."""
    monkeypatch.setenv("SHOP_SSE__MARATHON__URL", "https://h/")
    monkeypatch.setenv("SHOP_CONSUMERS__EACH__CONCURRENCY", "0")

    assert [line.partition(" is ")[0] for line in faults()] == [
        "SHOP_LIMIT",
        "SHOP_CONSUMERS__EACH__CONCURRENCY",
    ]


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of which one module cannot be imported."""
    package = tmp_path / "brokenshop"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "bad.py").write_text("import no_such_module\n")
    (package / "good.py").write_text(
        "from workerkit import AMQPConsumer\n\n\nclass Good(AMQPConsumer):\n"
        '    queues = ["good"]\n\n    async def handle(self, body: bytes) -> None: ...\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "brokenshop"
    for name in [each for each in sys.modules if each.partition(".")[0] == "brokenshop"]:
        del sys.modules[name]


def test_fp7_an_import_error_brings_no_other_fault(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its consumers are unknown, so variables and arguments for them are no faults."""
    monkeypatch.setenv("SHOP_LIMIT", "3")
    monkeypatch.setenv("SHOP_CONSUMERS__BAD__CONCURRENCY", "3")

    [fault] = faults(["Bad"], broken)

    assert fault.startswith("cannot import brokenshop.bad: ModuleNotFoundError: No module named")


def test_fp7_beside_an_import_error_the_other_consumers_are_checked(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All faults of the modules that could be imported are reported."""
    monkeypatch.setenv("SHOP_LIMIT", "3")
    monkeypatch.setenv("SHOP_CONSUMERS__GOOD__CONCURRENCY", "0")

    _, fault = faults((), broken)

    assert fault.startswith("SHOP_CONSUMERS__GOOD__CONCURRENCY is '0'")


def test_fp7_the_plain_container_is_named() -> None:
    """If a package has no container, the fault of a parameter names the default container."""

    class Needs(AMQPConsumer):
        queues = ["q"]

        def __init__(self, orders: Pool) -> None: ...

        async def handle(self, body: bytes) -> None: ...

    with pytest.raises(StartError) as raised:
        Runner(WorkerContainer(), packages=[package_of(Needs)]).assemble()

    [fault] = raised.value.faults
    assert "the container in use is the plain WorkerContainer of workerkit, which has" in fault
    assert fault.endswith("or choose another one with --container")


SECRETS = [
    ("SHOP_AMQP__DEFAULT__HOST", "user:s3cr3t@host"),
    ("SHOP_AMQP__HOST", "user:s3cr3t@host"),
    ("SHOP_AMQP__DEFAULT__HOSTS", "a,user:s3cr3t@host"),
    ("SHOP_AMQP__DEFAULT__VHOST", "amqp://user:s3cr3t@host/%2F"),
    ("SHOP_AMQP__DEFAULT__PORT", "user:s3cr3t@host:5672"),
    ("SHOP_AMQP__DEFAULT__URL", "http://user:s3cr3t@host"),
    ("SHOP_AMQP__DEFAULT__URL", "user:s3cr3t@host"),
    ("SHOP_SSE__MARATHON__URL", "ftp://h/?token=s3cr3t"),
    ("SHOP_SSE__MARATHON__HEADERS", "user:s3cr3t@host"),
    ("SHOP_HTTP__PORT", "https://h/?token=s3cr3t"),
    ("SHOP_HTTP__PORT", "h?token=s3cr3t"),
    ("SHOP_LIMIT", "redis://:s3cr3t@host"),
    ("SHOP_BACKEND", "redis://:s3cr3t@host"),
    ("SHOP_CONSUMERS__EACH__CONNECTION", "amqp://user:s3cr3t@host"),
    ("SHOP_CONSUMERS__EACH__CONCURRENCY", "user:s3cr3t@host"),
    ("SHOP_CONSUMERS__OTHER__URL", "ftp://user:s3cr3t@host"),
    ("SHOP_CONSUMERS__OTHER__ROUTES", "https://user:s3cr3t@host"),
    ("SHOP_CONSUMERS__OTHER__ROUTES", "https://host/?token=s3cr3t"),
]


@pytest.mark.parametrize(("name", "value"), SECRETS)
def test_fp7_a_fault_of_a_variable_has_no_credentials(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It contains no text before an @, and no token of a query, in any variable."""
    monkeypatch.setenv("SHOP_LIMIT", "3")
    monkeypatch.setenv("SHOP_SSE__MARATHON__URL", "https://h/")
    monkeypatch.setenv(name, value)

    found = faults()

    assert found
    assert name.rpartition("__")[0] in " ".join(found)
    assert "s3cr3t" not in " ".join(found)


def test_fp7_the_list_of_settings_has_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A valid value of a plain setting of the user's may be an address as well."""
    monkeypatch.setenv("SHOP_LIMIT", "3")
    monkeypatch.setenv("SHOP_SSE__MARATHON__URL", "https://h/")
    monkeypatch.setenv("SHOP_CACHE", "redis://user:s3cr3t@host/?token=s3cr3t")
    assembly = Runner(Container(), packages=[package_of(Each, Other)]).assemble()

    [row] = [each for each in inventory(assembly) if each.variable == "SHOP_CACHE"]

    assert row.value == "redis://***@host/?***"


@pytest.mark.parametrize(
    "attributes",
    [
        {"connection": "amqp://user:s3cr3t@host"},
        {"vhost": ["amqp://user:s3cr3t@host"]},
        {"concurrency": "user:s3cr3t@host"},
        {"queues": "amqp://user:s3cr3t@host/queue"},
        {"declare": "https://h/?token=s3cr3t"},
    ],
)
def test_fp7_a_fault_of_a_class_has_no_credentials(attributes: dict[str, Any]) -> None:
    """The same for what stands in code, whose faults get into logs as well."""
    consumer = type("Each", (Each,), attributes)

    with pytest.raises(StartError) as raised:
        Runner(WorkerContainer(), packages=[package_of(consumer)]).assemble()

    assert "s3cr3t" not in str(raised.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "amqp://user:s3cr3t@host/"],
        ["check", "user:s3cr3t@host"],
        ["check", "shop", "amqp://user:s3cr3t@host/"],
        ["check", "shop", "--container", "amqp://user:s3cr3t@host/"],
        ["check", "shop", "--container", "user:s3cr3t@host"],
        ["check", "shop", "--amqp://user:s3cr3t@host/"],
        ["amqp://user:s3cr3t@host/"],
        ["run", "tests", "--only", "amqp://user:s3cr3t@host/"],
        ["run", "tests", "--log-level", "amqp://user:s3cr3t@host/"],
        ["publish", "http://user:s3cr3t@host/", "q", "x"],
        ["publish", "user:s3cr3t@host", "q", "x"],
        ["publish", "amqp://user:s3cr3t@host:port/", "q", "x"],
        ["publish", "amqp://user:s3cr3t@host/?token=s3cr3t", "q", "x"],
        ["publish", "amqp://host/", "q", "x", "--header", "Authorization: s3cr3t"],
        ["broker", "--port", "amqp://user:s3cr3t@host/"],
        ["dead-letters", "list", "http://user:s3cr3t@host/", "q"],
        ["dead-letters", "list", "--url", "http://user:s3cr3t@host/", "q"],
        ["dead-letters", "list", "--url", "user:s3cr3t@host", "q"],
        ["dead-letters", "amqp://user:s3cr3t@host/"],
    ],
)
def test_fp7_a_wrong_command_line_has_no_credentials(arguments: list[str]) -> None:
    """Whatever argument an address was given as."""
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "500"})

    assert result.exit_code != 0
    assert "s3cr3t" not in result.output


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("amqp://u:p@h:5672/v is wrong", "amqp://***@h:5672/v is wrong"),
        ("'u:p@h' is wrong", "'***@h' is wrong"),
        ("HOST=u:p/q@h", "HOST=***@h"),
        ("see https://h/p?token=a&b=c now", "see https://h/p?*** now"),
        ("shop.A (a.py:3): 'x' of b@c", "shop.A (a.py:3): 'x' of b@c"),
        ("tests.A (a.py:12): @decorated", "tests.A (a.py:12): @decorated"),
        ("did you mean 'retry'?", "did you mean 'retry'?"),
    ],
)
def test_fp7_what_is_left_out_of_a_text(text: str, shown: str) -> None:
    """User, password and query; the rest stays readable."""
    assert without_credentials(text) == shown


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates and keys, right and wrong ones."""
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    for name in ("one", "two"):
        issued = authority.issue_cert(f"{name}.example")
        issued.private_key_pem.write_to_path(directory / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(directory / f"{name}.pem")
        issued.private_key_and_cert_chain_pem.write_to_path(directory / f"{name}.both")
    key: Any = load_pem_private_key((directory / "one.key").read_bytes(), None)
    secret = BestAvailableEncryption(b"s3cr3t")
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret)
    (directory / "encrypted.key").write_bytes(encrypted)
    (directory / "empty.pem").write_text("")
    (directory / "text.pem").write_text("no certificate\n")
    der = ssl.PEM_cert_to_DER_cert((directory / "one.pem").read_text())
    (directory / "der.pem").write_bytes(der)
    (directory / "directory").mkdir()
    return directory


@pytest.mark.parametrize(
    ("given", "at", "text"),
    [
        ({"ca": "none.pem"}, "CA", "no such file or directory"),
        ({"ca": "directory"}, "CA", "is a directory"),
        ({"ca": "empty.pem"}, "CA", "which has no certificate in PEM"),
        ({"ca": "text.pem"}, "CA", "which has no certificate in PEM"),
        ({"ca": "der.pem"}, "CA", "which has no certificate in PEM"),
        ({"cert": "none.pem", "key": "one.key"}, "CERT", "no such file or directory"),
        ({"cert": "text.pem", "key": "one.key"}, "CERT", "which has no certificate in PEM"),
        ({"cert": "one.pem"}, "CERT", "which has no private key in PEM; set KEY as well"),
        ({"cert": "one.pem", "key": "none.key"}, "KEY", "no such file or directory"),
        ({"cert": "one.pem", "key": "text.pem"}, "KEY", "which has no private key in PEM"),
        ({"cert": "one.pem", "key": "two.key"}, "KEY", "which is not the key of CERT"),
        ({"cert": "one.pem", "key": "encrypted.key"}, "KEY", "whose key is encrypted: set KEY_P"),
        ({"key": "one.key"}, "KEY", "has no effect without CERT"),
    ],
)
@pytest.mark.parametrize("connection", ["AMQP__DEFAULT", "AMQP__LOGS", "SSE__MARATHON", "POOL"])
def test_fp7_a_tls_file_that_cannot_be_used_is_a_fault(
    given: dict[str, str],
    at: str,
    text: str,
    connection: str,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Variable and path are named before anything connects, in sections of the user's as well."""
    monkeypatch.setenv("SHOP_LIMIT", "3")
    monkeypatch.setenv("SHOP_SSE__MARATHON__URL", "https://h/")
    for name, file in given.items():
        monkeypatch.setenv(f"SHOP_{connection}__TLS__{name.upper()}", str(files / file))

    [fault] = faults()

    assert fault.startswith(f"SHOP_{connection}__TLS__{at} ")
    assert text in fault
    if "no effect" not in text:
        assert str(files) in fault


def test_fp7_a_wrong_key_password_is_a_fault(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and not shown."""
    monkeypatch.setenv("SHOP_LIMIT", "3")
    monkeypatch.setenv("SHOP_SSE__MARATHON__URL", "https://h/")
    for name, value in {
        "CERT": str(files / "one.pem"),
        "KEY": str(files / "encrypted.key"),
        "KEY_PASSWORD": "guessed",
    }.items():
        monkeypatch.setenv(f"SHOP_AMQP__DEFAULT__TLS__{name}", value)

    [fault] = faults()

    assert fault.startswith("SHOP_AMQP__DEFAULT__TLS__KEY_PASSWORD does not open the key in '")
    assert "guessed" not in fault


@pytest.mark.parametrize(
    "given",
    [
        {"ca": "ca.pem"},
        {"cert": "one.both"},
        {"cert": "one.pem", "key": "one.key"},
        {"cert": "one.pem", "key": "encrypted.key", "key_password": "s3cr3t"},
    ],
)
def test_fp7_tls_files_that_can_be_used(
    given: dict[str, str], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every right combination passes."""
    monkeypatch.setenv("SHOP_LIMIT", "3")
    monkeypatch.setenv("SHOP_SSE__MARATHON__URL", "https://h/")
    for name, value in given.items():
        text = value if name == "key_password" else str(files / value)
        monkeypatch.setenv(f"SHOP_AMQP__DEFAULT__TLS__{name.upper()}", text)

    assert faults() == []
