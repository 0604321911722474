"""What a view requires of its clients: `auth = Bearer(...)`, and where a request has it."""

import re
from base64 import b64decode
from binascii import Error
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from aiohttp import hdrs, web

from workerkit.errors import InvalidRequest

Credentials: TypeAlias = tuple[str, ...]
"""What the client sent: a token, a key, or a user and a password."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749, section 3.3
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SCHEME_NAME = re.compile(r"[A-Za-z0-9._-]+")


class Principal:
    """A marker of a parameter that takes the principal: `Annotated[User, Principal]`.

    The principal is what the verifier returned for this request.
    """


class Auth:
    """Base class of the kinds of authentication: `Bearer`, `APIKey` and `Basic`.

    Args:
        verify: A function, `async` or not, that takes the credentials and returns the principal, or
            None if they are not valid. The container provides its other parameters for each call.
            One that is not `async` runs in a thread.
        setting: Instead of it, the name of a field of the settings with the valid secret, or with
            a list of them: a `SecretStr`.
        scopes: That the principal needs, all of them: its attribute `scopes` has those that it
            has.
        name: Of the security scheme in the OpenAPI document.

    Raises:
        ValueError: There is neither *verify* nor *setting*, or both; or another argument is
            invalid.

    Attributes:
        scheme: The Security Scheme Object of OpenAPI.
        arguments: The number of credentials that *verify* takes.
        subject: What a client has to send, in words.
    """

    arguments = 1

    def __init__(
        self,
        verify: Callable[..., Any] | None,
        setting: str | None,
        scopes: Iterable[str],
        name: str,
        scheme: Mapping[str, Any],
        subject: str,
    ) -> None:
        kind = type(self).__name__
        if (verify is None) == (setting is None):
            raise ValueError(f"{kind} needs either a function or setting='name of a setting'")
        if verify is not None and not callable(verify):
            raise ValueError(f"{kind}({verify!r}): write a function that takes the credentials")
        if isinstance(scopes, str):
            raise ValueError(f"scopes is {scopes!r}: write a list, such as [{scopes!r}]")
        scopes = tuple(scopes)
        if wrong := [each for each in scopes if not _SCOPE.fullmatch(each)]:
            raise ValueError(f"scope {wrong[0]!r} is invalid: write text without spaces and quotes")
        if scopes and verify is None:
            raise ValueError("scopes need a function that returns a principal with scopes")
        if not _SCHEME_NAME.fullmatch(name):
            raise ValueError(f"name {name!r} is invalid: write letters, digits, '.', '_' and '-'")
        self.verify = verify
        self.setting = setting
        self.scopes = scopes
        self.name = name
        self.scheme = dict(scheme)
        self.subject = subject

    def credentials(self, request: web.Request) -> Credentials | None:
        """Return what a request has; None if it has no such credentials.

        Raises:
            InvalidRequest: They are malformed.
        """
        raise NotImplementedError

    def challenge(self, realm: str, error: str = "") -> str:
        """Return the value of `WWW-Authenticate`.

        Args:
            error: The code of RFC 6750, section 3.1; empty if the request has no credentials.
        """
        raise NotImplementedError


class Bearer(Auth):
    """Requires a bearer token in the header `Authorization` (RFC 6750).

    ```python
    async def user_of(token: str, sessions: Sessions) -> User | None:
        return await sessions.user(token)


    class OrderView(HTTPView):
        routes = ["/orders"]
        auth = Bearer(user_of, scopes=["orders:read"])

        async def get(self, user: Annotated[User, Principal]) -> list[Order]: ...
    ```

    Args:
        verify: As for `Auth`; it takes the token.
        setting: As for `Auth`.
        scopes: As for `Auth`.
        name: Of the security scheme in the OpenAPI document.
        format: Of the token, for the document: `JWT`.
    """

    def __init__(
        self,
        verify: Callable[..., Any] | None = None,
        *,
        setting: str | None = None,
        scopes: Iterable[str] = (),
        name: str = "bearer",
        format: str | None = None,
    ) -> None:
        scheme = {"type": "http", "scheme": "bearer"}
        if format is not None:
            scheme["bearerFormat"] = format
        super().__init__(verify, setting, scopes, name, scheme, "a bearer token")

    def credentials(self, request: web.Request) -> Credentials | None:
        """Return the token."""
        if (token := _authorization(request, "bearer")) is None:
            return None
        return (token,) if _TOKEN.fullmatch(token) else ("",)

    def challenge(self, realm: str, error: str = "") -> str:
        """Return the challenge, with the scopes if the client lacks some."""
        parts = [f'realm="{realm}"']
        if error:
            parts.append(f'error="{error}"')
        if self.scopes and error != "invalid_token":
            parts.append(f'scope="{" ".join(self.scopes)}"')
        return f"Bearer {', '.join(parts)}"


class Basic(Auth):
    """Requires user and password in the header `Authorization` (RFC 7617).

    Args:
        verify: As for `Auth`; it takes user and password.
        scopes: As for `Auth`.
        name: Of the security scheme in the OpenAPI document.
    """

    arguments = 2

    def __init__(
        self, verify: Callable[..., Any], *, scopes: Iterable[str] = (), name: str = "basic"
    ) -> None:
        scheme = {"type": "http", "scheme": "basic"}
        super().__init__(verify, None, scopes, name, scheme, "a user and a password")

    def credentials(self, request: web.Request) -> Credentials | None:
        """Return user and password."""
        if (encoded := _authorization(request, "basic")) is None:
            return None
        try:
            user, colon, password = b64decode(encoded, validate=True).decode().partition(":")
        except (Error, ValueError):
            return ("", "")
        return (user, password) if colon else ("", "")

    def challenge(self, realm: str, error: str = "") -> str:
        """Return the challenge."""
        return f'Basic realm="{realm}", charset="UTF-8"'


class APIKey(Auth):
    """Requires a key in a header, in the query or in a cookie.

    Args:
        verify: As for `Auth`; it takes the key.
        setting: As for `Auth`.
        header: The name of the header; `X-API-Key` by default.
        query: The name of the query parameter, instead of a header. URLs are written into the logs
            of proxies, and keys in them as well.
        cookie: The name of the cookie, instead of a header.
        scopes: As for `Auth`.
        name: Of the security scheme in the OpenAPI document.
    """

    def __init__(
        self,
        verify: Callable[..., Any] | None = None,
        *,
        setting: str | None = None,
        header: str | None = None,
        query: str | None = None,
        cookie: str | None = None,
        scopes: Iterable[str] = (),
        name: str | None = None,
    ) -> None:
        named = {"header": header, "query": query, "cookie": cookie}
        given = [(place, key) for place, key in named.items() if key is not None]
        if len(given) > 1:
            raise ValueError("APIKey takes one of header, query and cookie")
        place, key = given[0] if given else ("header", "X-API-Key")
        if not _NAME.fullmatch(key):
            raise ValueError(f"{place} {key!r} is invalid: write the name of a {place}")
        self._in = place
        self._key = key
        name = name or (key if place == "header" else f"{key}-{place}")
        scheme = {"type": "apiKey", "in": place, "name": key}
        super().__init__(verify, setting, scopes, name, scheme, f"the {place} {key}")

    def credentials(self, request: web.Request) -> Credentials | None:
        """Return the key."""
        if self._in == "cookie":
            key = request.cookies.get(self._key)
            return None if key is None else (key,)
        values = request.query if self._in == "query" else request.headers
        found = values.getall(self._key, [])
        if len(found) > 1:
            raise InvalidRequest(400, f"{self._in} {self._key} is sent more than once")
        return (found[0],) if found else None

    def challenge(self, realm: str, error: str = "") -> str:
        """Return the challenge. There is no registered scheme; this name is in common use."""
        return f'ApiKey realm="{realm}"'


def _authorization(request: web.Request, scheme: str) -> str | None:
    """Return the credentials in `Authorization`; None if it is missing or of another scheme."""
    found = request.headers.getall(hdrs.AUTHORIZATION, [])
    if len(found) > 1:
        raise InvalidRequest(400, "header Authorization is sent more than once")
    name, _, rest = found[0].partition(" ") if found else ("", "", "")
    return rest.strip(" ") if name.lower() == scheme else None


def auth_by_verb(view: type, verbs: Iterable[str]) -> dict[str, Auth | None]:
    """Return what each verb of a view requires, for each that the attribute `auth` covers.

    Raises:
        ValueError: The class attribute `auth` is invalid.
    """
    found: object = getattr(view, "auth", None)
    verbs = list(verbs)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        return dict.fromkeys(verbs, _checked(found))
    if wrong := [each for each in found if str(each).upper() not in verbs]:
        raise ValueError(f"auth has {wrong[0]!r}, but the view handles {', '.join(verbs)}")
    by_verb = {str(verb).upper(): _checked(each) for verb, each in found.items()}
    # Of a view with its own `head`, too: its headers tell much of what `get` returns.
    if hdrs.METH_HEAD in verbs and hdrs.METH_GET in by_verb:
        by_verb.setdefault(hdrs.METH_HEAD, by_verb[hdrs.METH_GET])
    return by_verb


def _checked(found: object) -> Auth | None:
    if found is None or isinstance(found, Auth):
        return found
    # The value itself may be a secret.
    kind = found.__name__ if isinstance(found, type) else f"a {type(found).__name__}"
    raise ValueError(f"auth is {kind}: write Bearer(...), APIKey(...) or Basic(...), or None")
