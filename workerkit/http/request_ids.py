"""The id under which a request stands in the log and in its answer."""

import re
from itertools import count
from secrets import token_hex

from aiohttp import web
from multidict import istr

from workerkit.logs import request_id

REQUEST_ID = istr("X-Request-ID")

# A client may choose it, and it stands in logs.
_SOUND = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")
# One for the process and one for the request: uuid4() would take ten times as long.
_START = token_hex(6)
_NUMBERS = count(1)


def identify(request: web.BaseRequest) -> str:
    """Give a request the id that its client sent, or a new one, for the rest of its task."""
    given = request.headers.get(REQUEST_ID)
    if given is None or not _SOUND.fullmatch(given):
        given = f"{_START}-{next(_NUMBERS):x}"
    request_id.set(given)
    return given
