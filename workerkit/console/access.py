"""Who may use the console: tokens, proxies, roles, and protection from other sites and guessing."""

import hmac
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import IPv6Address, ip_address
from time import monotonic
from typing import Any

from aiohttp import hdrs, web
from yarl import URL

from workerkit.config.sections import OpsSettings
from workerkit.console.model import Operator, Role
from workerkit.http.problem import problem
from workerkit.ops.debug_pages import is_local, is_loopback, names_loopback

log = logging.getLogger("workerkit.audit")

OPERATOR: "web.RequestKey[Operator]" = web.RequestKey("operator", Operator)
"""Where a request keeps who sent it."""

API = "/api/"

_ROLES: Sequence[Role] = ("view", "operate", "admin")
_JSON = "application/json"
_LONGEST_USER = 100

MOST_FAILURES = 10
"""Wrong tokens of one address within `LOCKED_SECONDS`, after which it is locked out."""

LOCKED_SECONDS = 60.0
_MOST_ADDRESSES = 1000

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Denied(Exception):
    """A request that gets an error.

    Args:
        status: Of the response.
        text: For the client.
        headers: Of the response.
    """

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


class Access:
    """Decides who a client of the API is, and what it may do.

    * On a port that is bound to loopback addresses only, a client on this machine needs no token
      unless one is set. Its role is admin.
    * Otherwise a client needs a token, or has to come through a proxy that authenticates users.
    * Pages of other sites may not use the API: browsers send `Origin` and `Sec-Fetch-Site`, and a
      name in `Host` that is not that of this machine is refused (DNS rebinding).

    Args:
        settings: Those of the port.
        name: Returns the environment variable of a field of the section, for texts.
    """

    def __init__(self, settings: OpsSettings, name: Callable[[str], str]) -> None:
        self._mode = settings.console
        self._proxy = settings.proxy
        self._name = name
        secrets = (settings.view_token, settings.operate_token, settings.token)
        self._tokens: dict[Role, bytes] = {
            role: secret.get_secret_value().encode()
            for role, secret in zip(_ROLES, secrets, strict=True)
            if secret is not None
        }
        self._only_local = False
        self._lockout = Lockout()

    def enable(self, addresses: Sequence[Any]) -> None:
        """Note where the port listens.

        Args:
            addresses: Of its sockets, as `getsockname` returns them.
        """
        self._only_local = bool(addresses) and all(is_loopback(each[0]) for each in addresses)

    def middleware(self, role_of: Callable[[web.Request], Role | None]) -> Any:
        """Return a middleware that answers requests to the API which are not allowed.

        Args:
            role_of: Returns the role that a request needs; None for what everybody may get.
        """

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not request.path.startswith(API):
                return await handler(request)
            try:
                if (role := role_of(request)) is not None:
                    request[OPERATOR] = self.operator(request, role)
            except Denied as error:
                return _protected(problem(error.status, str(error), headers=error.headers))
            return _protected(await handler(request))

        return check

    def operator(self, request: web.Request, role: Role) -> Operator:
        """Return who sent a request.

        Args:
            role: That the request needs.

        Raises:
            Denied: The client may not send it.
        """
        self._check_site(request)
        address = self._address(request)
        self._lockout.check(address)
        found = self._authenticated(request, address)
        if self._mode == "read" and role != "view":
            raise Denied(403, f"the console is read-only: set {self._name('console')}=operate")
        if _ROLES.index(found.role) < _ROLES.index(role):
            raise Denied(403, f"this needs the role {role}; yours is {found.role}")
        return found

    def _check_site(self, request: web.Request) -> None:
        """Refuse requests that a page of another site has sent, or that are for another host."""
        hosts = request.headers.getall(hdrs.HOST, [])
        if len(hosts) != 1 or (self._only_local and not names_loopback(hosts)):
            raise Denied(421, "the Host header does not name this machine")
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise Denied(403, "requests from other sites are not allowed")
        for origin in request.headers.getall(hdrs.ORIGIN, []):
            # Only the host and the port: a proxy may use TLS, and this server does not.
            if _authority(origin) != hosts[0].lower():
                raise Denied(403, "requests from other sites are not allowed")
        if request.method == hdrs.METH_POST and request.content_type != _JSON:
            raise Denied(415, f"the content type should be {_JSON}")

    def _authenticated(self, request: web.Request, address: str) -> Operator:
        if self._comes_through_proxy(request):
            user = "".join(filter(str.isprintable, request.headers.get(self._proxy.user, "")))
            if user:
                sent = request.headers.get(self._proxy.role, "view").lower()
                role = next((each for each in _ROLES if each == sent), None)
                if role is None:
                    raise Denied(403, f"{self._proxy.role} should be view, operate or admin")
                return Operator(user=user[:_LONGEST_USER], role=role, address=address)
        kind, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if kind.lower() == "bearer" and self._tokens:
            if (role := self._role_of_token(token.strip())) is None:
                self._lockout.failed(address)
                raise _unauthorized("the token is wrong", "invalid_token")
            return Operator(user=f"{role} token", role=role, address=address)
        if self._tokens or self._proxy.addresses:
            raise _unauthorized("a token is needed")
        if not self._only_local:
            raise Denied(403, f"other machines can reach this port: set {self._name('token')}")
        if not is_local(request):
            raise Denied(
                403,
                f"the request came through a proxy: set {self._name('token')},"
                f" or {self._name('proxy')}__ADDRESSES",
            )
        return Operator(user="local", role="admin", address=address)

    def _role_of_token(self, given: str) -> Role | None:
        """Return the role of a token. Each one is compared, in constant time."""
        encoded = given.encode(errors="surrogateescape")
        matches = [
            role for role, each in self._tokens.items() if hmac.compare_digest(encoded, each)
        ]
        return matches[-1] if matches else None

    def _comes_through_proxy(self, request: web.Request) -> bool:
        try:
            peer = ip_address((request.remote or "").partition("%")[0])
        except ValueError:
            return False
        mapped = peer.ipv4_mapped if isinstance(peer, IPv6Address) else None
        return any((mapped or peer) in network for network in self._proxy.addresses)

    def _address(self, request: web.Request) -> str:
        """Return where a request comes from: a trusted proxy tells the address of its client."""
        if self._comes_through_proxy(request):
            forwarded = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
            if forwarded and forwarded.isascii() and forwarded.isprintable():
                return forwarded[:_LONGEST_USER]
        return request.remote or ""


class Lockout:
    """Locks out addresses that guess tokens."""

    def __init__(self) -> None:
        # Address: failures since the first one, and when it is forgotten. The oldest comes first.
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Check that an address is not locked out.

        Raises:
            Denied: It is.
        """
        count, until = self._failures.get(_network(address), (0, 0.0))
        left = until - monotonic()
        if count >= MOST_FAILURES and left > 0:
            seconds = str(int(left) + 1)
            headers = {"Retry-After": seconds}
            raise Denied(429, f"too many wrong tokens: try again in {seconds} s", headers)

    def failed(self, address: str) -> None:
        """Note a wrong token."""
        key, now = _network(address), monotonic()
        count, until = self._failures.pop(key, (0, 0.0))
        count = count + 1 if until > now else 1
        self._failures[key] = count, now + LOCKED_SECONDS
        if len(self._failures) > _MOST_ADDRESSES:
            self._failures.popitem(last=False)
        if count == MOST_FAILURES:
            log.warning("console: address locked out", extra={"address": address})


def _network(address: str) -> str:
    """Return what one client has: an IPv4 address, or the first half of an IPv6 address."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, IPv6Address) and found.ipv4_mapped is None:
        return str(IPv6Address(int(found) >> 64 << 64))
    return address


def _authority(origin: str) -> str:
    """Return host and port of an origin as `Host` has them; empty if it is none."""
    try:
        url = URL(origin)
    except ValueError:
        return ""
    if url.scheme not in ("http", "https"):
        return ""
    return url.authority.lower()


def _unauthorized(text: str, error: str = "") -> Denied:
    detail = f', error="{error}"' if error else ""
    return Denied(401, text, {"WWW-Authenticate": f'Bearer realm="workerkit"{detail}'})


def _protected(response: web.StreamResponse) -> web.StreamResponse:
    """Add the headers that every response of the API has."""
    if not response.prepared:
        response.headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
    return response
