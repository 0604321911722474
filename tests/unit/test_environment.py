"""Row A6: all faults of the environment are reported at once, each with its variable."""

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices, BaseModel, Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from workerkit.config.load import load_options, load_settings, valid_part
from workerkit.config.settings import WorkerSettings
from workerkit.options import Options, Override, Source


class Database(BaseModel):
    host: str
    port: int = 5432
    pin: SecretStr | None = None


class Settings(WorkerSettings):
    model_config = SettingsConfigDict(env_prefix="SHOP_")

    database_url: str = "x"
    database: Database | None = None
    peers: list[Database] = []
    limits: dict[str, int] = {}
    shards: dict[int, str] = {}
    amount: int | float = 1
    pin: SecretStr = SecretStr("")
    region: str = Field(default="eu", validation_alias="CLOUD_REGION")
    zone: int = Field(default=1, validation_alias=AliasChoices("SHOP_AREA", "CLOUD_ZONE"))

    @field_validator("database_url")
    @classmethod
    def _check(cls, url: str) -> str:
        if "bad" in url:
            raise ValueError(f"cannot use {url}")
        return url


class Demanding(Settings):
    api_key: str
    database: Database


class Action(StrEnum):
    ACK = "ack"
    REQUEUE = "requeue"


@dataclass(frozen=True)
class Policy:
    delays: tuple[float, ...]
    jitter: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueOptions(Options):
    queues: list[str]
    retry: Policy | None = None
    on_success: Action = Action.ACK
    declare: Literal["missing", "always"] = "missing"
    headers: dict[str, str] | None = None
    auth_token: int | None = None


CONSUMERS: dict[str, type[Options]] = {"OrderPlaced": QueueOptions, "Cleanup": Options}


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def set_all(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)


def read_all(
    settings_type: type[WorkerSettings] = Settings,
) -> tuple[WorkerSettings | None, list[str]]:
    return load_settings(settings_type, settings_type)


def faults_of(settings_type: type[WorkerSettings] = Settings) -> list[str]:
    return read_all(settings_type)[1]


def test_a_valid_environment_has_no_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Valid variables of every kind give settings and no fault."""
    set_all(
        monkeypatch,
        SHOP_AMQP__LOGS__URL="amqp://h/",
        SHOP_DATABASE__HOST="h",
        shop_limits__a="1",
        SHOP_LIMITS__B="2",
        SHOP_AREA="3",
        CLOUD_REGION="us",
        SHOP_CONSUMERS__ORDER_PLACED__RETRY__DELAYS="1",
        SHOPPING="x",
    )

    settings, faults = read_all()

    assert faults == []
    assert isinstance(settings, Settings)
    assert (settings.limits, settings.zone, settings.region) == ({"a": 1, "b": 2}, 3, "us")


def test_all_faults_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong types, invalid JSON, missing and unknown variables are all reported together."""
    set_all(
        monkeypatch,
        SHOP_AMQP__DEFAULT__PORT="abc",
        SHOP_HTTP="{bad",
        SHOP_OPS__PROT="1",
        SHOP_LOG__LEVEL="loud",
    )

    settings, faults = read_all(Demanding)

    assert settings is None
    assert faults == [
        (
            "SHOP_AMQP__DEFAULT__PORT is 'abc': should be a valid integer, unable to parse string"
            " as an integer"
        ),
        (
            "SHOP_HTTP is not valid JSON: expecting property name enclosed in double quotes"
            " (character 2)"
        ),
        (
            "SHOP_LOG__LEVEL is 'loud': should be 'CRITICAL', 'FATAL', 'ERROR', 'WARN', 'WARNING',"
            " 'INFO', 'DEBUG' or 'NOTSET'"
        ),
        "SHOP_DATABASE is not set: it is required and has no default",
        "SHOP_API_KEY is not set: it is required and has no default",
        "SHOP_OPS__PROT: no setting of that name; did you mean SHOP_OPS__PORT?",
    ]


def test_a_fault_names_the_variable_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is named in the case that it has in the environment."""
    set_all(monkeypatch, Shop_Http__Port="x")

    assert faults_of()[0].startswith("Shop_Http__Port is 'x': should be a valid integer")


def test_a_fault_inside_json_names_variable_and_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value inside a JSON variable is named by its path."""
    set_all(
        monkeypatch,
        SHOP_AMQP='{"Main": {"port": 70000, "prot": 1}}',
        SHOP_AMQP__MAIN__HEARTBEAT="0",
        SHOP_PEERS='[{"host": "h", "port": "y"}, {}]',
    )

    assert faults_of() == [
        "SHOP_AMQP at main.port is 70000: should be less than or equal to 65535",
        "SHOP_AMQP__MAIN__HEARTBEAT is '0': should be greater than or equal to 1",
        "SHOP_AMQP at main.prot: no setting of that name; did you mean SHOP_AMQP__MAIN__PORT?",
        (
            "SHOP_PEERS at [0].port is 'y': should be a valid integer, unable to parse string as an"
            " integer"
        ),
        "SHOP_PEERS at [1] lacks 'host': it is required and has no default",
    ]


def test_a_container_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON of another shape is a fault without its content, which may hold anything."""
    set_all(monkeypatch, SHOP_HTTP="[1]")

    (fault,) = faults_of()

    assert fault.startswith("SHOP_HTTP: should be a valid dictionary")


def test_a_wrong_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the name of a part is wrong, the fault does not blame its value."""
    set_all(monkeypatch, SHOP_SHARDS__X="a")

    (fault,) = faults_of()

    assert fault.startswith("SHOP_SHARDS__X: the last part of the name should be a valid integer")


def test_a_missing_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A required field of a nested model is missing by its full variable."""
    set_all(monkeypatch, SHOP_DATABASE__PORT="1")

    assert faults_of() == ["SHOP_DATABASE__HOST is not set: it is required and has no default"]


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable is ignored where there is a default, and named where there is none."""
    set_all(monkeypatch, SHOP_API_KEY="", SHOP_HTTP__PORT="", SHOP_DATABASE__HOST="h")

    assert faults_of(Demanding) == ["SHOP_API_KEY is empty: it is required and has no default"]


def test_an_alias_is_the_name_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field with an alias is named by it, without the prefix."""
    set_all(monkeypatch, CLOUD_ZONE="x")

    assert faults_of()[0].startswith("CLOUD_ZONE is 'x': should be a valid integer")


def test_members_of_a_union_share_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """One fault contains what each member of a union requires."""
    set_all(monkeypatch, SHOP_AMOUNT="x")

    (fault,) = faults_of()

    assert fault.startswith("SHOP_AMOUNT is 'x': should be a valid integer")
    assert " or should be a valid number" in fault


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("SHOP_AMQP__DEFAULT__PROT", "SHOP_AMQP__DEFAULT__PORT"),
        ("SHOP_AMQP__LOGS__VHOTS", "SHOP_AMQP__LOGS__VHOST"),
        ("SHOP_AMPQ__DEFAULT__URL", "SHOP_AMQP__DEFAULT__URL"),
        ("SHOP_AMQP_URL", "SHOP_AMQP__DEFAULT__URL"),
        ("SHOP_HTTP_PORT", "SHOP_HTTP__PORT"),
        ("SHOP_HTTP__PORT__X", "SHOP_HTTP__PORT"),
        ("shop_shutdown_grac", "SHOP_SHUTDOWN_GRACE"),
        ("SHOP_DATABASE__HOTS", "SHOP_DATABASE__HOST"),
        ("SHOP_ÄREA", "SHOP_AREA"),
    ],
)
def test_an_unknown_variable_is_named_with_its_nearest(
    monkeypatch: pytest.MonkeyPatch, name: str, nearest: str
) -> None:
    """A mistyped variable is a fault at any depth, with the nearest known name."""
    set_all(monkeypatch, **{name: "1", "SHOP_DATABASE__HOST": "h"})

    assert f"{name}: no setting of that name; did you mean {nearest}?" in faults_of()


@pytest.mark.parametrize(
    "name", ["SHOP_", "SHOP__", "SHOP_AMQP__", "SHOP_AMQP____", "SHOP_AMQP__DEFAULT__", "SHOP___X"]
)
def test_a_name_with_nothing_between_delimiters_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A variable whose name is cut off is a fault that names it, never a crash."""
    set_all(monkeypatch, **{name: "1"})

    assert any(fault.startswith((name, "settings.")) for fault in faults_of())


def test_a_valid_configuration_keeps_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown variable alone is a fault although the settings could be made."""
    set_all(monkeypatch, SHOP_COLOUR="red")

    settings, faults = read_all()

    assert settings is not None
    assert [fault.partition(":")[0] for fault in faults] == ["SHOP_COLOUR"]


def test_the_env_file_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults in `.env` are found, unless the environment overrides them."""
    Path(".env").write_text("SHOP_HTTP__PORT=x\nSHOP_OPS__PORT=x\nSHOP_COLOR=red\nOTHER=1\n")
    set_all(monkeypatch, SHOP_OPS__PORT="0")

    assert [fault.split()[0].rstrip(":") for fault in faults_of()] == [
        "SHOP_HTTP__PORT",
        "SHOP_COLOR",
    ]


def test_fr14_the_first_line_of_an_env_file_counts_after_a_byte_order_mark() -> None:
    """Windows editors write one, which would become a part of the first name."""
    Path(".env").write_text("SHOP_HTTP__PORT=x\n", encoding="utf-8-sig")

    assert [fault.split()[0] for fault in faults_of()] == ["SHOP_HTTP__PORT"]


@pytest.mark.parametrize("file", ["pipe", "/dev/zero"])
def test_fp7_a_tls_file_that_has_no_end_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """A pipe or a device is not read: a check of the settings would never end."""
    os.mkfifo("pipe")
    set_all(monkeypatch, SHOP_AMQP__DEFAULT__TLS__CA=file)

    assert faults_of() == [f"SHOP_AMQP__DEFAULT__TLS__CA is {file!r}: no regular file"]


def test_an_env_file_that_is_no_text_is_a_fault() -> None:
    """A `.env` in another encoding is a fault that does not quote its content."""
    Path(".env").write_bytes(b"SHOP_PIN=\xff\n")

    assert faults_of() == ["Settings cannot be read: a file is not UTF-8"]


def test_what_kubernetes_injects_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of the services of a namespace are no faults."""
    set_all(
        monkeypatch,
        SHOP_RABBIT_SERVICE_HOST="10.0.0.1",
        SHOP_RABBIT_SERVICE_PORT="5672",
        SHOP_RABBIT_SERVICE_PORT_AMQP="5672",
        SHOP_RABBIT_PORT="tcp://10.0.0.1:5672",
        SHOP_RABBIT_PORT_5672_TCP_ADDR="10.0.0.1",
        SHOP_SERVICE_HOST="10.0.0.1",
    )

    assert faults_of() == []


def test_a_real_setting_is_not_mistaken_for_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of a known section, or without an address as value, are checked."""
    set_all(monkeypatch, SHOP_HTTP__PORT="tcp://1", SHOP_OPS__SERVICE_PORT="1", SHOP_X_PORT="1")

    assert [fault.split()[0].rstrip(":") for fault in faults_of()] == [
        "SHOP_HTTP__PORT",
        "SHOP_OPS__SERVICE_PORT",
        "SHOP_X_PORT",
    ]


def test_without_a_prefix_only_known_sections_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs use the environment too, but not names of our sections."""

    class Bare(WorkerSettings):
        model_config = SettingsConfigDict(env_prefix="")

    set_all(monkeypatch, HTTP_PROXY="x", COLOUR="red", HTTP__PROT="1", AMQP__DEFAULT__PORT="x")

    assert [fault.split()[0].rstrip(":") for fault in faults_of(Bare)] == [
        "AMQP__DEFAULT__PORT",
        "HTTP__PROT",
    ]


def test_duplicates_that_differ_in_case_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two variables for one setting contradict each other unless their values are equal."""
    set_all(monkeypatch, SHOP_PIN="hunter22", shop_pin="hunter33", SHOP_AREA="1", shop_area="1")

    assert faults_of() == [
        "SHOP_PIN and shop_pin set the same setting to different values: keep one"
    ]


def test_a_fault_of_several_fields_names_their_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of a whole model is about every variable that went into it."""

    class Span(BaseModel):
        low: int = 0
        high: int = 9

        @model_validator(mode="after")
        def _check(self) -> "Span":
            if self.low > self.high:
                raise ValueError("low should not be above high")
            return self

    class Own(WorkerSettings):
        span: Span = Span()

    set_all(monkeypatch, WORKERKIT_SPAN__LOW="5", WORKERKIT_SPAN__HIGH="4")

    (fault,) = faults_of(Own)

    assert set(fault.partition(": ")[0].split(", ")) == {
        "WORKERKIT_SPAN__LOW",
        "WORKERKIT_SPAN__HIGH",
    }
    assert fault.endswith(": low should not be above high")


def test_values_given_in_code_are_named_by_their_expression() -> None:
    """A fault of an argument does not blame a variable."""
    _, faults = load_settings(lambda: Settings(http={"port": -1}), Settings)  # type: ignore[arg-type]

    assert faults == ["settings.http['port'] is -1: should be greater than or equal to 0"]


@pytest.mark.parametrize(
    "variables",
    [
        {"SHOP_AMQP__DEFAULT__URL": "http://u:hunter22@h"},
        {"SHOP_AMQP": '{"default": {"url": "amqp://u:hunter22@"}}'},
        {"SHOP_AMQP": '{"default": {"url": "amqp://u:hunter22@h/"'},
        {"SHOP_AMQP__DEFAULT": "amqp://u:hunter22@h/"},
        {"SHOP_AMQP__DEFAULT__PASSWORD__X": "hunter22"},
        {"SHOP_HTTP__PORT": "amqp://u:hunter22/@h/"},
        {"SHOP_HTTP__PORT": '{"password": "hunter22"}'},
        {"SHOP_DATABASE_URL": "bad://u:hunter22@h/"},
        {"SHOP_DATABASE_URL": "bad hunter22"},
        {"SHOP_DATABASE__PIN": "hunter22"},
        {"SHOP_DATABASE": '["hunter22"]'},
        {"SHOP_PASSWORT": "hunter22"},
        {"SHOP_CONSUMERS__ORDER_PLACED": "hunter22"},
    ],
)
def test_no_fault_prints_a_secret(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """Every kind of fault keeps the secret of its value."""
    set_all(monkeypatch, **variables)

    faults = faults_of()

    assert faults
    assert "hunter" not in "\n".join(faults)


def test_a_secret_value_is_starred(monkeypatch: pytest.MonkeyPatch) -> None:
    """The place of a secret value is shown, and what would be right."""
    set_all(monkeypatch, SHOP_AMQP__DEFAULT__URL="http://u:p@h")

    assert faults_of() == ["SHOP_AMQP__DEFAULT__URL is ***: should start with amqp:// or amqps://"]


def test_faults_of_secret_files_name_the_file(tmp_path: Path) -> None:
    """A secret file is named like a variable, and its content is never shown."""

    class Own(Settings):
        model_config = SettingsConfigDict(secrets_dir=tmp_path)

    (tmp_path / "http__port").write_text("hunter22")

    (fault,) = faults_of(Own)

    assert fault.startswith("secret file http__port is ***: should be a valid integer")


def chosen(monkeypatch: pytest.MonkeyPatch, option: str, text: str) -> Any:
    monkeypatch.setenv(f"SHOP_CONSUMERS__ORDER_PLACED__{option.upper()}", text)
    found, faults = load_options(Settings(), CONSUMERS)
    assert faults == []
    return found["OrderPlaced"][option.partition("__")[0]].value


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("concurrency", "64", 64),
        ("timeout", "1.5", 1.5),
        ("timeout", "None", None),
        ("timeout", "NULL", None),
        ("on_success", "ReQueue", Action.REQUEUE),
        ("declare", "ALWAYS", "always"),
        ("queues", "orders, orders/priority", ["orders", "orders/priority"]),
        ("queues", '["a,b"]', ["a,b"]),
        ("queues", "5", ["5"]),
        ("retry", '{"delays": [0, 5]}', Policy((0.0, 5.0))),
        ("retry", "none", None),
        ("retry__delays", "0, 5", Policy((0.0, 5.0))),
        ("headers", '{"a": "b"}', {"a": "b"}),
        ("headers__a", "b", {"a": "b"}),
    ],
)
def test_options_are_parsed_against_their_type(
    monkeypatch: pytest.MonkeyPatch, option: str, text: str, value: object
) -> None:
    """An operator writes numbers, enums, none, lists and dicts without special syntax."""
    assert chosen(monkeypatch, option, text) == value


@pytest.mark.parametrize("name", ["ORDER_PLACED", "ORDERPLACED", "order_placed", "Order_Placed"])
def test_names_of_consumers_compare_loosely(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Case and underscores of a consumer's name do not matter; the origin is as it stands."""
    variable = f"SHOP_CONSUMERS__{name}__CONCURRENCY"
    set_all(monkeypatch, **{variable: "2"})

    assert load_options(Settings(), CONSUMERS) == (
        {"OrderPlaced": {"concurrency": Override(2, Source.ENVIRONMENT, variable)}},
        [],
    )


def test_the_origin_of_an_override(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables, `.env`, JSON and code are distinguished."""
    Path(".env").write_text("SHOP_CONSUMERS__CLEANUP__TIMEOUT=5\n")
    set_all(
        monkeypatch,
        SHOP_CONSUMERS__ORDER_PLACED='{"timeout": 3}',
        SHOP_CONSUMERS__ORDER_PLACED__CONCURRENCY="2",
    )
    settings = Settings(consumers={"order_placed": {"concurrency": 4}})

    found, faults = load_options(settings, CONSUMERS)

    assert faults == []
    assert found == {
        "OrderPlaced": {
            "concurrency": Override(
                4, Source.SETTINGS, "settings.consumers['order_placed']['concurrency']"
            ),
            "timeout": Override(3.0, Source.ENVIRONMENT, "SHOP_CONSUMERS__ORDER_PLACED"),
        },
        "Cleanup": {
            "timeout": Override(5.0, Source.ENVIRONMENT, "SHOP_CONSUMERS__CLEANUP__TIMEOUT")
        },
    }


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        (
            "ORDER_PLACD__CONCURRENCY",
            "1",
            ": no consumer of that name; did you mean SHOP_CONSUMERS__ORDER_PLACED__CONCURRENCY?",
        ),
        (
            "ORDER_PLACED__CONCURENCY",
            "1",
            ": no option of that name; did you mean SHOP_CONSUMERS__ORDER_PLACED__CONCURRENCY?",
        ),
        (
            "ORDER_PLACED__RETRY__DELAY",
            "1",
            ": no option of that name; did you mean SHOP_CONSUMERS__ORDER_PLACED__RETRY__DELAYS?",
        ),
        ("ORDER_PLACED__CONCURRENCY", "0", " is '0': should be greater than or equal to 1"),
        ("ORDER_PLACED__ON_SUCCESS", "nack", " is 'nack': should be 'ack' or 'requeue'"),
        (
            "ORDER_PLACED__RETRY__DELAYS",
            "1,x",
            " at [1] is 'x': should be a valid number, unable to parse string as a number",
        ),
        (
            "ORDER_PLACED__QUEUES",
            '["a',
            " is not valid JSON: unterminated string starting at (character 2)",
        ),
        (
            "ORDER_PLACED__AUTH_TOKEN",
            "hunter22",
            " is ***: should be a valid integer, unable to parse string as an integer",
        ),
    ],
)
def test_a_bad_option_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, fault: str
) -> None:
    """A fault of an option names the variable, what was found and what is right."""
    set_all(monkeypatch, **{f"SHOP_CONSUMERS__{name}": text})

    assert f"SHOP_CONSUMERS__{name}{fault}" in load_options(Settings(), CONSUMERS)[1]


def test_the_name_of_a_consumer_is_no_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer cannot be renamed by a variable that its name is part of."""
    set_all(monkeypatch, SHOP_CONSUMERS__CLEANUP__NAME="x")

    found, faults = load_options(Settings(), CONSUMERS)

    assert found.get("Cleanup", {}) == {}
    assert faults[0] == "SHOP_CONSUMERS__CLEANUP__NAME: only the class sets 'name'"


def test_two_spellings_of_one_option_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two variables for the same option are a fault, since either could be intended."""
    set_all(
        monkeypatch,
        SHOP_CONSUMERS__ORDER_PLACED__CONCURRENCY="1",
        SHOP_CONSUMERS__ORDERPLACED__CONCURRENCY="2",
    )

    (fault,) = load_options(Settings(), CONSUMERS)[1]

    assert fault.endswith("set the same option: keep one")


def test_faults_of_options_in_code_name_the_field() -> None:
    """A bad option given in code is called by its place in the settings."""
    settings = Settings(consumers={"cleanup": {"concurrency": 0}, "cleanip": {"timeout": 1}})

    assert load_options(settings, CONSUMERS)[1] == [
        "settings.consumers['cleanup']['concurrency'] is 0: should be greater than or equal to 1",
        (
            "settings.consumers['cleanip']['timeout']: no consumer of that name; did you mean"
            " SHOP_CONSUMERS__CLEANUP__TIMEOUT?"
        ),
    ]


def part() -> WorkerSettings:
    """Return the valid part of the settings."""
    found = valid_part(Settings)
    assert found is not None
    return found


def test_faults_of_options_are_found_beside_invalid_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Options are checked although other settings are invalid: all faults at once."""
    set_all(monkeypatch, SHOP_HTTP__PORT="x", SHOP_CONSUMERS__CLEANUP__CONCURRENCY="0")

    assert read_all()[0] is None
    assert load_options(part(), CONSUMERS)[1] == [
        "SHOP_CONSUMERS__CLEANUP__CONCURRENCY is '0': should be greater than or equal to 1"
    ]


def test_options_of_invalid_consumers_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `consumers` itself is invalid, there are no options to check."""
    set_all(monkeypatch, SHOP_CONSUMERS="{")

    assert load_options(part(), CONSUMERS) == ({}, [])


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        (
            {"ORDER_PLACED__RETRY__JITTER": "0.5"},
            (
                "SHOP_CONSUMERS__ORDER_PLACED__RETRY__DELAYS is not set: it is required and has no"
                " default"
            ),
        ),
        (
            {"ORDER_PLACED__RETRY__DELAYS": "[1"},
            (
                "SHOP_CONSUMERS__ORDER_PLACED__RETRY__DELAYS is not valid JSON: expecting ','"
                " delimiter (character 3)"
            ),
        ),
        (
            {"ORDER_PLACED__RETRY": '{"delays": [1, "x"]}'},
            (
                "SHOP_CONSUMERS__ORDER_PLACED__RETRY at delays[1] is 'x': should be a valid number,"
                " unable to parse string as a number"
            ),
        ),
        (
            {"ORDER_PLACED__RETRY": "none", "ORDER_PLACED__RETRY__DELAYS": "1"},
            (
                "SHOP_CONSUMERS__ORDER_PLACED__RETRY__DELAYS has no effect beside"
                " SHOP_CONSUMERS__ORDER_PLACED__RETRY: keep one"
            ),
        ),
    ],
)
def test_faults_inside_an_option(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], fault: str
) -> None:
    """A fault of a part of an option names the variable of that part."""
    set_all(monkeypatch, **{f"SHOP_CONSUMERS__{name}": text for name, text in variables.items()})

    assert fault in load_options(Settings(), CONSUMERS)[1]


OPTIONS = ["CONCURRENCY", "QUEUES", "RETRY__DELAYS", "ON_SUCCESS", "HEADERS", "TYPO"]


@given(
    st.dictionaries(
        st.sampled_from([f"{key}__{option}" for key in CONSUMERS for option in OPTIONS]),
        st.sampled_from(["1", "-1", "a,b", "[1", '["a"]', "{", '{"delays": [1]}', "none", "{}"]),
        min_size=1,
    )
)
def test_no_variable_of_an_option_is_lost(variables: dict[str, str]) -> None:
    """Each variable of an option either sets it, or is named in a fault."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_all(
            monkeypatch, **{f"SHOP_CONSUMERS__{name}": each for name, each in variables.items()}
        )
        found, faults = load_options(Settings(), CONSUMERS)

    origins = [each.origin for options in found.values() for each in options.values()]
    for name in variables:
        option = f"SHOP_CONSUMERS__{name}".upper()
        assert any(option in text.upper() for text in [*origins, *faults])
