"""Field tables: encoding and decoding are inverse, and invalid tables raise one error."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import decode as pamqp_decode
from pamqp import encode as pamqp_encode

from workerkit.amqp.table import MalformedTable, decode, encode, merge

texts = st.text(st.characters(codec="utf-8"), max_size=40)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
    st.binary(max_size=30),
    st.decimals(min_value=-1000, max_value=1000, places=2),
    st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)).map(  # noqa: DTZ001
        lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
    ),
)
keys = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda text: len(text.encode()) < 120
)
tables = st.recursive(
    st.dictionaries(keys, scalars, max_size=4),
    lambda inner: st.dictionaries(
        keys, st.one_of(inner, st.lists(scalars, max_size=3)), max_size=3
    ),
    max_leaves=8,
)


@given(tables)
def test_encoded_values_can_be_decoded(headers: dict[str, Any]) -> None:
    """Every value that can be a header is decoded to the same value."""
    assert decode(encode(headers)) == headers


@given(st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    """Bytes that are not a table raise MalformedTable and no other error."""
    try:
        decode(raw)
        merge(raw, {"a": 1})
    except MalformedTable:
        pass


@given(tables, tables)
def test_merge_replaces_entries(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Changed entries are replaced, all others are kept."""
    assert decode(merge(encode(old), new)) == {**old, **new}


def test_merge_keeps_the_bytes_of_other_entries() -> None:
    """An entry with a type that workerkit never writes is unchanged after a merge."""
    original = pamqp_encode.field_table({"narrow": 1.5, "table": {"deep": [1, "two"]}})

    merged = merge(original, {"added": "x"})

    assert original[4:] in merged
    assert pamqp_decode.field_table(merged)[1]["narrow"] == 1.5


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=5),
        st.one_of(
            st.booleans(), st.integers(-(2**31), 2**31), st.text("xyz"), st.just(Decimal("1.5"))
        ),
    )
)
def test_pamqp_decodes_the_same(headers: dict[str, Any]) -> None:
    """Another implementation decodes the bytes to the same values."""
    assert pamqp_decode.field_table(encode(headers))[1] == headers


def test_nesting_is_limited() -> None:
    """A sender cannot make the interpreter run out of stack."""
    raw = b""
    for _ in range(10_000):
        raw = b"A" + len(raw).to_bytes(4, "big") + raw
    entry = b"\x01a" + raw

    with pytest.raises(MalformedTable):
        decode(len(entry).to_bytes(4, "big") + entry)


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"a": object()}, "a header cannot be a object"),
        ({"a": 2**63}, "header 'a' is a number out of range"),
        ({"a" * 256: 1}, "has a name longer than 255 bytes"),
        ({"a": Decimal("NaN")}, "a header cannot be NaN"),
    ],
)
def test_values_that_cannot_be_headers(headers: dict[str, Any], error: str) -> None:
    """A value for which AMQP has no type is refused, with the name of the header."""
    with pytest.raises((TypeError, ValueError), match=error):
        encode(headers)
