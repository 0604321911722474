"""Answers to what is no HTTP request, or is one that aiohttp does not read."""

import logging
import re

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMethod, ContentEncodingError, LineTooLong

from workerkit.http.problem import problem
from workerkit.http.raw_request import ACCEPTED, UNSUPPORTED
from workerkit.http.request import identify

log = logging.getLogger(__name__)

# aiohttp's error quotes the line in which the parser stopped.
_REQUEST_LINE = re.compile(r"\n  b['\"][!#$%&'*+.^_`|~0-9A-Za-z-]+ \S+ HTTP/1\.[01]")


def answer_malformed(request: web.BaseRequest, error: BaseException | None) -> web.Response:
    """Answer it, and close the connection. Anybody on the network may send it: it is no ERROR.

    Args:
        error: What the parser raised.
    """
    identify(request)
    extra = {"client": request.remote, "error": type(error).__name__}
    if isinstance(error, ContentEncodingError) and "install" in error.message:
        log.info("unsupported content coding", extra=extra)
        response = problem(415, UNSUPPORTED, headers=ACCEPTED)
    elif isinstance(error, ContentEncodingError):
        log.info("the body cannot be read", extra=extra)
        response = problem(400, "the body does not match its Content-Encoding")
    elif isinstance(error, BadHttpMethod) and _REQUEST_LINE.search(error.message):
        log.info("unknown method", extra=extra)
        response = problem(501, "this method is not known")
    else:
        log.info("no HTTP request", extra=extra)
        too_long = isinstance(error, LineTooLong)
        text = "a line of its head is too long" if too_long else "this is no HTTP request"
        response = problem(400, text)
    response.force_close()
    return response
