"""Decoding of the data of an event to what `handle` takes."""

from typing import Annotated, Any, NewType

import pytest
from pydantic import Field

from workerkit import InvalidBody, SSEEvent
from workerkit.sse.event_types import reader

Line = NewType("Line", str)


@pytest.mark.parametrize(
    ("type_", "data", "body"),
    [
        (str, "é", "é"),
        (bytes, "é", "é".encode()),
        (Line, "null", "null"),
        (str | None, "", ""),
        (Annotated[str, Field(max_length=3)], "abc", "abc"),
        (Annotated[bytes, "raw"], "é", "é".encode()),
        (int, "3", 3),
    ],
)
def test_data_is_decoded_by_its_annotation(type_: Any, data: str, body: object) -> None:
    """Text and bytes are unchanged, everything else is JSON."""
    assert reader(type_, False, {})(SSEEvent(data)) == body


def test_constraints_of_a_type_are_checked() -> None:
    """Text that is too long is invalid."""
    read = reader(Annotated[str, Field(max_length=3)], False, {})

    with pytest.raises(InvalidBody, match="at most 3 characters"):
        read(SSEEvent("abcd"))
