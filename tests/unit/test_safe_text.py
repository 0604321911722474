"""Texts of others in logs and on terminals: no line is forged, nothing moves the cursor."""

import io
import json
import logging
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workerkit.logs import JSONFormatter, TextFormatter
from workerkit.safe_text import escape, escape_json, escape_lines, mask_passwords, one_line

FORGED = "2026-11-24T06:00:00.123Z INFO workerkit.amqp: handled"
NASTY = (
    f"a\n{FORGED}\r\n\x1b[31m\x9b2J\x7f\x00\b\u202e\u2066\u200f\u061c\u200b\ufeff\u2028\u2029\udc80"
)
# All that terminals and people are deceived with, often; and any text at all.
SIGNS = (
    "\n\r\t\x0b\x0c\x1b\x85\x9b\x7f\u200e\u202a\u202e\u2066\u2069\u200b\u2028\u2029\udc80 \"'=\\a2"
)
TEXTS = st.text(st.sampled_from(SIGNS)) | st.text() | st.just(NASTY)


class Failed(Exception):
    """An error whose text comes from outside."""


def record(message: str, error: str = "", stack: str = "", **fields: Any) -> logging.LogRecord:
    """A record of a library, with an exception where it has a text."""
    made = logging.makeLogRecord({"msg": message, "name": "aiohttp.server", **fields})
    if error:
        try:
            raise Failed(error)
        except Failed:
            made.exc_info = sys.exc_info()
    made.stack_info = stack or None
    return made


@given(TEXTS, TEXTS, TEXTS, TEXTS, TEXTS)
@example(NASTY, NASTY, NASTY, NASTY, NASTY)
def test_fp5_a_text_record_has_one_line_that_is_not_indented(
    message: str, field: str, error: str, stack: str, key: str
) -> None:
    """No text can forge a second record or send control characters to the terminal."""
    made = record(message, error, stack, reason=field, reasons=[field])
    vars(made).setdefault(key, field)

    lines = TextFormatter().format(made).split("\n")

    assert [line for line in lines[1:] if not line.startswith("  ")] == []
    assert [line for line in lines if not line.isprintable()] == []


@given(TEXTS, TEXTS)
def test_fp5_a_json_record_is_one_line_and_says_the_same(message: str, field: str) -> None:
    """JSON is escaped, not changed."""
    line = JSONFormatter().format(record(message, field, reason=field))

    assert line.isprintable()
    parsed = json.loads(line)
    assert (parsed["message"], parsed["reason"]) == (message, field)


def test_fp5_a_traceback_stays_readable() -> None:
    """Its lines stay lines, one step further in; those of a text with line breaks as well."""
    made = record("request failed\nsee below", "first\nsecond")

    lines = TextFormatter().format(made).split("\n")

    assert lines[0].endswith("aiohttp.server: request failed")
    assert lines[1:3] == ["  see below", "  Traceback (most recent call last):"]
    assert lines[3].startswith('    File "')
    assert lines[-2:] == ["  tests.unit.test_safe_text.Failed: first", "  second"]


@given(TEXTS)
def test_fp5_an_escaped_text_is_one_line(text: str) -> None:
    """It has no line break, nothing unprintable, and is itself where nothing was."""
    shown = escape(text)

    assert shown.isprintable()
    assert (shown == text) == text.isprintable()
    assert [each for each in escape_lines(text).split("\n")[1:] if each[:2] != "  "] == []


@given(TEXTS)
def test_fp5_escaped_json_means_the_same(text: str) -> None:
    """Only the way it is written changes, of characters beyond U+FFFF too."""
    for given_text in (text, text + "\U000e0001"):
        written = escape_json(json.dumps([given_text], ensure_ascii=False))

        assert written.isprintable()
        assert json.loads(written) == [given_text]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("amqp://u:hunter2@h/v", "amqp://u:***@h/v"),
        ("redis://:hunter2@h", "redis://:***@h"),
        ("at a://u:hunter2@h,b://v:hunter2@i.", "at a://u:***@h,b://v:***@i."),
        ("postgres://u:hun/ter2@hunter2@h/db", "postgres://u:***@h/db"),
        ("amqp://guest@h/v", "amqp://guest@h/v"),
        ("http://h:80/x and a@b", "http://h:80/x and a@b"),
    ],
)
def test_fp10_passwords_in_urls_are_masked(text: str, masked: str) -> None:
    """The user stays, the password does not, whatever signs it has."""
    assert mask_passwords(text) == masked


@given(st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1), TEXTS)
def test_fp10_no_password_is_left(password: str, around: str) -> None:
    """The password of a URL is masked wherever the URL stands in a text."""
    secret = f"<{password}>{len(around)}"

    assert secret not in one_line(f"{around} amqp://user:{secret}@host/ {around}")


@pytest.mark.parametrize("formatter", [TextFormatter, JSONFormatter])
def test_fp10_passwords_of_urls_stay_out_of_every_part_of_a_record(
    formatter: type[logging.Formatter],
) -> None:
    """Message, field, list, traceback and stack of any record."""
    url = "postgres://app:hunter2@db/shop"

    line = formatter().format(record(url, url, url, dsn=url, dsns=[url, {url: url}]))

    assert "hunter2" not in line
    assert line.count("app:***@db") == 7


@pytest.mark.parametrize("formatter", [TextFormatter, JSONFormatter])
def test_fp10_redact_gets_every_text_of_a_record(formatter: Any) -> None:
    """What the application wants hidden is hidden in message, fields and traceback."""
    card = "4111 1111"

    line = formatter(lambda text: text.replace(card, "<card>")).format(
        record(card, card, reason=card, reasons=[card])
    )

    assert card not in line
    assert line.count("<card>") == 4


@pytest.mark.parametrize("formatter", [TextFormatter, JSONFormatter])
def test_fp10_a_redact_that_fails_hides_the_text(formatter: Any) -> None:
    """The record appears with the reason instead of the texts."""

    def redact(text: str) -> str:
        raise ValueError(text)

    line = formatter(redact).format(record("4111 1111", "4111 1111", reason="4111 1111"))

    assert "4111" not in line
    assert line.count("<not shown: redact raised ValueError>") == 3


def test_fp5_a_handler_writes_what_no_encoding_has() -> None:
    """A lone surrogate, as of a file name that is not UTF-8, does not lose the record."""
    written = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    handler = logging.StreamHandler(written)
    handler.setFormatter(TextFormatter())

    handler.handle(record("a\udc80b", reason="\udcff"))

    written.seek(0)
    assert written.read().endswith(': a\\udc80b  reason="\\udcff"\n')
