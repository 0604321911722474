"""The data of an event, as `handle` takes it."""

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
def test_data_is_read_as_its_annotation(type_: Any, data: str, body: object) -> None:
    """Text and bytes come as they were sent, everything else is JSON."""
    assert reader(type_, False, {})(SSEEvent(data)) == body


def test_data_has_to_fit_the_constraints_of_its_type() -> None:
    """Text that is too long is no body."""
    read = reader(Annotated[str, Field(max_length=3)], False, {})

    with pytest.raises(InvalidBody, match="at most 3 characters"):
        read(SSEEvent("abcd"))
