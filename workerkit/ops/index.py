"""The page at the root of the ops server: what else there is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from aiohttp import web

from workerkit.http.page import index_page


@dataclass(frozen=True, slots=True)
class Link:
    """A page, with what it shows."""

    href: str
    text: str


def index(request: web.Request, status: Mapping[str, Any], links: Sequence[Link]) -> web.Response:
    """Respond with the links: as a page for browsers, and as JSON for everybody else.

    Args:
        status: The body of the readiness page.
    """
    headers = {"Cache-Control": "no-store", "Vary": "Accept"}
    if "text/html" not in ", ".join(request.headers.getall("Accept", [])):
        body = {"status": status["status"], "links": {each.href: each.text for each in links}}
        return web.json_response(body, headers=headers)
    rows = "".join(
        f'<tr><th scope="row"><a href="{escape(each.href)}">{escape(each.href)}</a></th>'
        f"<td>{escape(each.text)}</td></tr>\n"
        for each in links
    )
    reasons = "".join(f"<p>{escape(str(each))}</p>\n" for each in status["reasons"])
    kind = "bad" if status["reasons"] else "good"
    shown = f'<p class="{kind}"><b>{escape(str(status["status"]))}</b></p>\n{reasons}'
    body_, more = index_page(shown, f"<table>\n{rows}</table>")
    return web.Response(body=body_, headers={**headers, **more})
