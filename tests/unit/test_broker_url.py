"""The URL of a message broker: each part is honoured, or a fault that names it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from workerkit.config.connections import AMQPSettings
from workerkit.config.load import load_settings
from workerkit.config.settings import WorkerSettings

URL = "SHOP_AMQP__DEFAULT__URL is ***: "


class Settings(WorkerSettings):
    model_config = SettingsConfigDict(env_prefix="SHOP_")


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def amqp(**values: Any) -> AMQPSettings:
    return AMQPSettings.model_validate(values)


def faults() -> list[str]:
    return load_settings(Settings, Settings)[1]


def test_fr14_the_heartbeat_of_the_url_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the setting's default; HEARTBEAT overrides it, as PORT overrides the URL's port."""
    monkeypatch.setenv("SHOP_AMQP__DEFAULT__URL", "amqp://h/v?heartbeat=60")
    of_url = Settings().amqp["default"]
    monkeypatch.setenv("SHOP_AMQP__DEFAULT__HEARTBEAT", "5")
    both = Settings().amqp["default"]

    assert (of_url.heartbeat, both.heartbeat) == (60, 5)
    assert of_url.display() == "amqp://h:5672/v"
    assert str(of_url.address()) == "amqp://h:5672/v"
    assert amqp(url=SecretStr("amqp://h?heartbeat=7")).heartbeat == 7
    assert amqp(url="amqp://h").heartbeat == 15
    assert faults() == []


def test_fr14_the_heartbeat_of_a_class_goes_with_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's URL replaces that of the class together with its heartbeat."""

    class Own(Settings):
        amqp: dict[str, AMQPSettings] = {"default": amqp(url="amqp://h/?heartbeat=60")}

    kept = Own().amqp["default"].heartbeat
    monkeypatch.setenv("SHOP_AMQP__DEFAULT__URL", "amqp://other/")

    assert kept == 60
    assert Own().amqp["default"].heartbeat == 15


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("connection_timeout=5000", "'connection_timeout' in its query: set CONNECT_TIMEOUT"),
        ("heartbeat=60&timeout=3", "'timeout' in its query: set CONNECT_TIMEOUT, in seconds,"),
        ("auth=external", "'auth' in its query: set AUTH instead"),
        ("no_verify_ssl=1", "'no_verify_ssl' in its query: set TLS__VERIFY instead"),
        ("cafile=/dev/null", "'cafile' in its query: set TLS__CA instead"),
        ("channel_max=5", "'channel_max' in its query: only heartbeat is supported"),
        ("name=x", "'name' in its query: only heartbeat is supported"),
        ("x", "'x' in its query: only heartbeat is supported"),
        ("Hunter22@h/", "should not have such a part in its query"),
        ("heartbeat=0", "should have one heartbeat in its query, from 1 to 65535 seconds"),
        ("heartbeat=65536", "should have one heartbeat"),
        ("heartbeat=", "should have one heartbeat"),
        ("heartbeat=1.5", "should have one heartbeat"),
        ("heartbeat=%D9%A3", "should have one heartbeat"),
        ("heartbeat=5&heartbeat=6", "should have one heartbeat"),
    ],
)
def test_fr14_other_parts_of_the_query_are_named(
    query: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is ignored: the fault names the part, and the setting that means the same."""
    monkeypatch.setenv("SHOP_AMQP__DEFAULT__URL", f"amqp://h/v?{query}")

    [found] = faults()

    assert found.startswith(URL)
    assert fault in found
    assert "Hunter22" not in found


@pytest.mark.parametrize(
    ("path", "vhost"),
    [
        ("/a%252Fb", "a%2Fb"),
        ("/a%252fb", "a%2fb"),
        ("/a%2Fb", "a/b"),
        ("/a/b", "a/b"),
        ("/%25252F", "%252F"),
        ("/%252F", "%2F"),
        ("/%2F", "/"),
        ("/", "/"),
        ("", "/"),
        ("//", "/"),
        ("/a+b", "a+b"),
        ("/%2e%2E", ".."),
        ("/%41%zz", "A%zz"),
    ],
)
def test_fr14_the_vhost_of_a_url_is_decoded_once(path: str, vhost: str) -> None:
    """What is percent-encoded twice is another vhost than what is so once."""
    assert amqp(url=f"amqp://h{path}").vhost_name() == vhost


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("amqp://u:hunter22@h/v#x", "should have no # part"),
        ("amqp://h/v#hunter22@h/", "should have no # part"),
        ("amqp://u:hunter22%0A@h/", "another control character in its password"),
        ("amqp://u%00:hunter22@h/", "another control character in its user"),
        ("amqp://u:hun\nter22@h/", "should have no line break"),
        ("amqp://u:hunter22@h/v%0A", "control character in the virtual host"),
        ("amqp://u:hunter22@h/%FF", "should have a virtual host in UTF-8"),
        (f"amqp://u:hunter22@h/{'v' * 256}", "at most 255 bytes"),
    ],
)
def test_fr14_what_else_is_no_address_is_named(
    url: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fragments, control characters and impossible vhosts are faults, not other addresses."""
    with pytest.raises(ValidationError) as caught:
        amqp(url=url)

    assert fault in str(caught.value)
    assert "hunter22" not in str(caught.value)


def test_fr14_a_line_break_after_a_url_is_no_part_of_it() -> None:
    """Files end with one."""
    assert amqp(url="amqp://u:p@h/v\n").vhost_name() == "v"
    assert amqp(url="amqp://u:p@h/v?heartbeat=9\r\n").heartbeat == 9


@pytest.mark.parametrize("name", ["AMQP__DEFAULT__PASSWORD", "SSE__DEFAULT__TOKEN"])
def test_fr14_a_secret_with_a_byte_order_mark_is_a_fault_with_a_hint(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of some editors begin with one; it is invisible, and the server refuses it."""
    monkeypatch.setenv("SHOP_SSE__DEFAULT__URL", "https://h/")
    monkeypatch.setenv(f"SHOP_{name}", "\ufeffhunter22")

    [fault] = faults()

    assert fault.startswith(f"SHOP_{name} is ")
    assert "should not begin with a byte order mark" in fault
    assert "hunter22" not in fault


@pytest.mark.parametrize("name", ["PASSWORD", "USER"])
@pytest.mark.parametrize("text", ["hunter22\n", "hunter22\r\n", " hunter22", "hunter22\t"])
def test_fr14_a_password_with_a_line_break_is_a_fault_with_a_hint(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of secrets end with one; the broker would refuse it without saying why."""
    monkeypatch.setenv(f"SHOP_AMQP__DEFAULT__{name}", text)

    [fault] = faults()

    assert fault.startswith(f"SHOP_AMQP__DEFAULT__{name} is ")
    assert "should not begin or end with a space or line break" in fault
    assert "files of secrets often end with one" in fault
    assert name == "USER" or "hunter22" not in fault


@pytest.mark.parametrize("text", ["hun\nter22", "hun\x00ter22", "hun\x7fter22", "hun\u2028ter22"])
@pytest.mark.parametrize("name", ["PASSWORD", "USER", "VHOST"])
def test_fr14_control_characters_are_faults(name: str, text: str) -> None:
    """Nobody means them, and NUL would end the user's name on its way to the broker."""
    with pytest.raises(ValidationError, match="control character"):
        amqp(**{name.lower(): text})


def test_fr14_a_space_that_is_meant_is_written_percent_encoded() -> None:
    """The way out for a password that ends with one."""
    url = amqp(url="amqp://u%20:p%20@h/").address()

    assert (url.user, url.password) == ("u ", "p ")


def test_fr14_secret_files_may_end_with_a_line_break(tmp_path: Path) -> None:
    """It is no part of what they hold."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "amqp__default__password").write_text("hunter22\n")

    class Own(Settings):
        model_config = SettingsConfigDict(env_prefix="SHOP_", secrets_dir=secrets)

    password = Own().amqp["default"].password

    assert password is not None
    assert password.get_secret_value() == "hunter22"


@given(st.text())
def test_fr14_any_text_is_a_url_or_refused(text: str) -> None:
    """Nothing but a validation error is raised, whatever stands behind the scheme."""
    try:
        settings = amqp(url=f"amqp://{text}")
    except ValidationError:
        return
    assert settings.servers
    assert settings.address().host
    assert settings.vhost_name()
    assert settings.display()
