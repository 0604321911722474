"""Problem details: the bodies of error responses and of failed requests (RFC 9457)."""

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, NotRequired

from typing_extensions import TypedDict

from workerkit.safe_text import escape_json

PROBLEM = "application/problem+json"


class Problem(TypedDict):
    """An error according to RFC 9457."""

    type: str
    title: str
    status: int
    detail: NotRequired[str]
    errors: NotRequired[list[dict[str, str]]]


def problem_details(
    status: int,
    detail: str = "",
    *,
    parts: Iterable[Mapping[str, str]] = (),
    request_id: str = "",
) -> bytes:
    """Encode a problem with the members `type`, `title`, `status`, and those that are not empty.

    Args:
        detail: Text for the other side, without secrets and without anything that it sent.
        parts: As in `InvalidRequest`: the member `errors`.
    """
    body: dict[str, Any] = {"type": "about:blank", "title": title_of(status), "status": status}
    if detail:
        body["detail"] = detail
    if errors := [dict(each) for each in parts]:
        body["errors"] = errors
    if request_id:
        body["request_id"] = request_id
    # Unlike `to_json` it accepts lone surrogates, and its output is safe to print on a terminal.
    return escape_json(json.dumps(body, separators=(",", ":"))).encode()


def title_of(status: int) -> str:
    """Return the name of a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
