"""How records look, and which ones appear."""

import io
import json
import logging
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerkit.config.sections import LogSettings
from workerkit.logs import LIBRARIES, JSONFormatter, TextFormatter, configure, quiet_libraries
from workerkit.safe_text import excerpt


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Restore the configuration of logging."""
    loggers = [logging.getLogger(name) for name in ("", *LIBRARIES)]
    levels = [logger.level for logger in loggers]
    handlers = list(loggers[0].handlers)
    for logger in loggers[1:]:
        logger.setLevel(logging.NOTSET)
    yield
    logging.captureWarnings(False)
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def record(message: str = "connected", **fields: Any) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"msg": message, "name": "workerkit.amqp", "levelname": "INFO", **fields}
    )
    made.created = 1_795_500_000.123
    return made


def test_text_is_for_people() -> None:
    """A text record has time, level, logger and message, then the fields."""
    line = TextFormatter().format(record(queue="orders", seconds=0.5))

    assert line == (
        "2026-11-24T06:00:00.123Z INFO workerkit.amqp: connected  queue=orders seconds=0.5"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("two words", '"two words"'),
        ("", '""'),
        ('a"b', r'"a\"b"'),
        ("a=b", '"a=b"'),
        ("a\nb", r'"a\nb"'),
        ("ä", "ä"),
        (None, "None"),
        (["orders", "orders.dlq"], '"orders, orders.dlq"'),
        (("orders",), "orders"),
        ([1, "a"], "\"[1, 'a']\""),
        (0.000035, "0.000035"),
        (-0.00001, "-0.00001"),
        (0.5, "0.5"),
        (1e-12, "1e-12"),
        (float("nan"), "nan"),
        (Unprintable(), "__could_not_encode__"),
    ],
)
def test_text_quotes_only_what_needs_it(value: object, text: str) -> None:
    """A value is quoted when it could be misread without."""
    line = TextFormatter().format(record(value=value))

    assert line.split("  ")[1] == f"value={text}"


def test_text_without_fields_has_no_trailing_space() -> None:
    """Nothing follows the message where there is no field."""
    assert TextFormatter().format(record()).endswith("amqp: connected")


def test_text_puts_the_exception_below() -> None:
    """The traceback follows the line."""
    try:
        raise KeyError("order")
    except KeyError:
        lines = TextFormatter().format(record(exc_info=sys.exc_info())).splitlines()

    assert lines[0].endswith("amqp: connected")
    assert lines[1] == "  Traceback (most recent call last):"
    assert lines[-1] == "  KeyError: 'order'"


def test_text_puts_a_stack_below() -> None:
    """The field `stack` has a line for each frame, to be read."""
    lines = TextFormatter().format(record(task="x", stack="  File 1\n    call()\n")).split("\n")

    assert lines[0].endswith("amqp: connected  task=x")
    assert lines[1:] == ["    File 1", "      call()"]


def test_json_has_the_documented_keys() -> None:
    """A JSON record is one object of timestamp, level, logger, message and the fields."""
    line = json.loads(JSONFormatter().format(record(queue="orders", attempt=2)))

    assert line == {
        "timestamp": "2026-11-24T06:00:00.123Z",
        "level": "INFO",
        "logger": "workerkit.amqp",
        "message": "connected",
        "queue": "orders",
        "attempt": 2,
    }


def test_json_has_an_exception_only_where_there_is_one() -> None:
    """`exception` holds the traceback, and is absent without one."""
    try:
        raise KeyError("order")
    except KeyError:
        raised = json.loads(JSONFormatter().format(record(exc_info=sys.exc_info())))
    silent = json.loads(JSONFormatter().format(record(exc_info=(None, None, None))))

    assert raised["exception"].endswith("KeyError: 'order'")
    assert "exception" not in silent


def test_json_makes_text_of_what_it_cannot_hold() -> None:
    """Any value can be a field, and the line stays valid JSON."""
    cycle: list[Any] = []
    cycle.append(cycle)
    fields: dict[str, Any] = {
        "inf": float("inf"),
        "raw": b"x",
        "kind": KeyError,
        "names": {1: ("a", {2}, "ü\udc80")},
        "bad": Unprintable(),
        "cycle": cycle,
    }

    line = json.loads(JSONFormatter().format(record(**fields)), parse_constant=pytest.fail)

    assert [line["inf"], line["raw"]] == ["inf", "b'x'"]
    assert line["names"] == {"1": ["a", "{2}", "ü\udc80"]}
    assert line["bad"] == "__could_not_encode__"


def test_a_field_does_not_hide_a_key() -> None:
    """A field that is called like one of our keys is kept beside it."""
    line = json.loads(JSONFormatter().format(record(level="high", exception="none")))

    assert (line["level"], line["level_"]) == ("INFO", "high")
    assert (line.get("exception"), line["exception_"]) == (None, "none")


def test_json_is_chosen_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal the records are JSON."""
    configure(LogSettings())
    logging.getLogger("shop").info("started", extra={"port": 1})

    assert json.loads(capsys.readouterr().err)["port"] == 1


def test_text_is_chosen_for_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the records are text."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    configure(LogSettings())
    logging.getLogger("shop").info("started")

    assert terminal.getvalue().endswith("INFO shop: started\n")


@pytest.mark.parametrize(("form", "start"), [("text", "20"), ("json", "{")])
def test_the_format_can_be_chosen(
    capsys: pytest.CaptureFixture[str], form: Any, start: str
) -> None:
    """The setting wins over the terminal."""
    configure(LogSettings(format=form))
    logging.getLogger("shop").warning("late")

    assert capsys.readouterr().err.startswith(start)


def test_the_level_is_the_lowest_that_appears(capsys: pytest.CaptureFixture[str]) -> None:
    """Records below the level are not written."""
    configure(LogSettings(level="WARN"))
    logging.getLogger("shop").info("started")

    assert capsys.readouterr().err == ""


def test_a_second_call_replaces_only_our_handler(capsys: pytest.CaptureFixture[str]) -> None:
    """A record appears once however often we configure, and foreign handlers stay."""
    foreign = logging.NullHandler()
    logging.getLogger().addHandler(foreign)

    configure(LogSettings(format="json"))
    configure(LogSettings(format="text"))
    logging.getLogger("shop").info("started")

    written = capsys.readouterr().err
    assert written.count("started") == 1
    assert written.startswith("20")
    assert foreign in logging.getLogger().handlers


WARNING = """
import warnings
from workerkit.logs import configure
from workerkit.config.sections import LogSettings
configure(LogSettings(format={format!r}))
warnings.warn("from outside: \\u202e\\x9b31m\\nforged", RuntimeWarning)
"""


@pytest.mark.parametrize("format", ["json", "text"])
def test_fp5_a_warning_of_python_is_a_record(format: str) -> None:
    """Libraries quote what came from outside in their warnings, such as a header of a request."""
    command = [sys.executable, "-c", WARNING.format(format=format)]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stderr

    lines = [line for line in written.splitlines() if not line.startswith("  ")]
    assert len(lines) == 1
    assert "WARNING" in lines[0]
    assert "py.warnings" in lines[0]
    assert written.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ["aio_pika", "aiormq.connection", "aiohttp_sse_client.client"])
def test_the_libraries_say_nothing(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Errors of aio_pika and aiormq do not appear, not even at the lowest level."""
    configure(LogSettings(level="NOTSET"))
    logging.getLogger(name).error("connection lost")

    assert capsys.readouterr().err == ""


def test_a_level_of_the_user_stays() -> None:
    """Who configures the loggers of the libraries gets what he configured."""
    logging.getLogger("aiormq").setLevel(logging.DEBUG)

    quiet_libraries()

    assert logging.getLogger("aiormq").level == logging.DEBUG
    assert logging.getLogger("aio_pika").level == logging.CRITICAL


HUGE = "x" * 10_000_000 + "THE END"


def failed(text: str) -> dict[str, Any]:
    """What a record has of an exception with this text."""
    try:
        raise ValueError(text)
    except ValueError as error:
        return {"exc_info": (type(error), error, error.__traceback__)}


@pytest.mark.parametrize("formatter", [TextFormatter(), JSONFormatter()], ids=["text", "json"])
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(failed(HUGE), id="exception"),
        pytest.param({"reason": HUGE}, id="field"),
        pytest.param({"msg": HUGE}, id="message"),
        pytest.param({"stack_info": HUGE}, id="stack"),
        pytest.param({"exc_text": HUGE}, id="text of an exception"),
        pytest.param({"reasons": [HUGE, "b"]}, id="list"),
        pytest.param({"reasons": ["some text"] * 1_000_000}, id="long list"),
        pytest.param({"reasons": [""] * 1_000_000}, id="long list of nothing"),
        pytest.param({"numbers": list(range(1_000_000))}, id="numbers"),
        pytest.param({"reasons": {"a": {"b": HUGE}}}, id="nested"),
        pytest.param({"reasons": {HUGE: 1}}, id="key"),
        pytest.param({"reasons": dict.fromkeys(map(str, range(1_000_000)))}, id="mapping"),
        pytest.param({"body": HUGE.encode()}, id="bytes"),
        pytest.param({"number": 10**1_000_000}, id="integer"),
    ],
)
def test_fr21_no_text_in_a_record_is_longer_than_64_kib(
    formatter: logging.Formatter, fields: dict[str, Any]
) -> None:
    """A longer text is truncated in the middle, with the number of characters left out."""
    line = formatter.format(record(**fields))

    assert len(line) < 70_000
    assert "left out" in line or "number" in fields
    if isinstance(formatter, JSONFormatter):
        assert json.loads(line)["level"] == "INFO"


def test_fr21_a_cut_exception_keeps_what_tells_most() -> None:
    """Its beginning with the place, the end of its text, and the number of missing characters."""
    line = TextFormatter().format(record(**failed(HUGE)))

    assert "Traceback (most recent call last)" in line
    assert "raise ValueError(text)" in line
    assert line.endswith("THE END")
    found = re.search(r"x \.\.\. (\d+) characters left out \.\.\. x", line)
    assert found is not None
    whole = "".join(traceback.format_exception(failed(HUGE)["exc_info"][1])).rstrip()
    cut = "\n".join(each.removeprefix("  ") for each in line.splitlines()[1:])
    note = len(found[0]) - 2
    assert len(whole) == len(cut) - note + int(found[1])


@given(st.text(), st.integers(0, 60))
def test_fr21_an_excerpt_has_both_ends(text: str, longest: int) -> None:
    """It is the text, or a beginning, a note and an end of it, within the limit."""
    shown = excerpt(text, longest)

    if len(text.encode(errors="replace")) <= longest:
        assert shown == text
        return
    note = r"(.*?) \.\.\. (\d+) characters left out \.\.\. (.*)"
    found = re.fullmatch(note, shown, re.DOTALL)
    assert found is not None
    start, number, end = found.groups()
    assert len((start + end).encode()) <= longest
    assert len(start) + int(number) + len(end) == len(text)
