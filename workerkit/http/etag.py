"""`ETag` of returned values, and 304 for clients that have them already (RFC 9110, section 13)."""

import re
from hashlib import blake2b

from aiohttp import hdrs, web

from workerkit.delivery import Outcome
from workerkit.http.response import outcome_response

_DIGEST = 16
# RFC 9110, section 8.8.3. The prefix of weak ones is ignored, as section 13.1.2 requires.
_ENTITY_TAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')


def response_with_etag(
    outcome: Outcome, status: int, request: web.BaseRequest
) -> tuple[web.StreamResponse, Outcome]:
    """Create the response to a `GET` or `HEAD` as `outcome_response`, with an `ETag`.

    The tag is strong: a digest of the encoded body. The view is called for each request, so a 304
    saves the transfer, not the call.
    """
    response, outcome = outcome_response(outcome, status, request)
    is_own = outcome.error is None and response is not outcome.value
    if is_own and response.status == 200 and type(body := getattr(response, "body", None)) is bytes:
        tag = f'"{blake2b(body, digest_size=_DIGEST).hexdigest()}"'
        if is_known(tag, request):
            response = web.Response(status=304)
        response.headers[hdrs.ETAG] = tag
    return response, outcome


def is_known(tag: str, request: web.BaseRequest) -> bool:
    """Return whether the client has the representation with this tag."""
    for line in request.headers.getall(hdrs.IF_NONE_MATCH, ()):
        if line.strip() == "*" or tag in _ENTITY_TAG.findall(line):
            return True
    return False
