"""Verify the credentials of requests before their bodies are read."""

import hmac
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import NoneType
from typing import Any, get_origin, get_type_hints

from aiohttp import hdrs, web
from pydantic import SecretStr

from workerkit.config.settings import WorkerSettings
from workerkit.describe import describe_class
from workerkit.errors import DeclarationError, HandlerTimeout, InvalidRequest
from workerkit.http.auth import Auth, Credentials
from workerkit.http.json_shape import bare_type
from workerkit.signature import ArgumentSource, Resolve, Unresolved, provided, shown_type
from workerkit.tasks import guard, with_deadline
from workerkit.threads import Threads

PRINCIPAL: "web.RequestKey[object]" = web.RequestKey("principal", object)
"""Where a request keeps what the verifier returned."""

THREADS = 32
_REALM = re.compile(r"[A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True, eq=False)
class Verifier:
    """The function that verifies credentials.

    Attributes:
        sources: Of its parameters after the credentials.
        returns: The type of the principal; `bool` for a function that returns no principal.
    """

    function: Callable[..., Any]
    sources: dict[str, ArgumentSource]
    returns: Any

    @property
    def is_async(self) -> bool:
        """Whether a call returns an awaitable."""
        return inspect.iscoroutinefunction(_routine(self.function))


@dataclass(frozen=True, slots=True, eq=False)
class Requirement:
    """What a client has to send to a verb of a view.

    Attributes:
        verifier: None if the settings have the valid secrets.
    """

    auth: Auth
    verifier: Verifier | None

    def faults(self, settings: WorkerSettings) -> Iterator[str]:
        """Yield what is wrong with the secrets in the settings."""
        if (name := self.auth.setting) is None:
            return
        variable = f"{settings.model_config.get('env_prefix', '')}{name}".upper()
        kind = type(settings).__qualname__
        if name not in type(settings).model_fields:
            yield f"auth uses the setting {name!r}, which {kind} does not have"
        elif not (found := _secrets(getattr(settings, name))):
            yield f"auth uses {variable}, which is not set, or not a text or a list of texts"
        elif not all(found):
            yield f"auth uses {variable}, which is or contains an empty text"


@dataclass(frozen=True, slots=True)
class PrincipalParameter:
    """A parameter that takes the principal.

    Attributes:
        argument: The name of the method's parameter.
        default: For verbs that require nothing.
    """

    argument: str
    default: Any

    def read(self, request: web.Request) -> Any:
        """Return the principal of a request."""
        return request.get(PRINCIPAL, self.default)


def requirement(auth: Auth, resolve: Resolve) -> Requirement:
    """Return a requirement, after a check of the verifier.

    Raises:
        DeclarationError: With all faults of the verifier.
    """
    if auth.verify is None:
        return Requirement(auth, None)
    where = describe_class(auth.verify)
    try:
        types_ = get_type_hints(_routine(auth.verify), include_extras=True)
        parameters = list(inspect.signature(auth.verify).parameters.values())
    except Exception as error:
        # An annotation that is a string may be any expression.
        raise DeclarationError(f"{where}: its annotations cannot be read: {error}") from error
    taking, others = parameters[: auth.arguments], parameters[auth.arguments :]
    faults = []
    if len(taking) < auth.arguments or any(each.kind not in _POSITIONAL for each in taking):
        count = "first parameter" if auth.arguments == 1 else "first two parameters"
        faults.append(f"{where}: verifies {auth.subject}: its {count} takes it, by position")
    sources: dict[str, ArgumentSource] = {}
    for parameter in others:
        try:
            if parameter.kind not in _NAMED:
                raise Unresolved("cannot be filled; name each parameter instead")
            sources[parameter.name] = resolve(parameter, types_.get(parameter.name, Any))
        except Unresolved as error:
            faults.append(f"{where}: parameter {parameter.name!r} {error}")
    returns = bare_type(types_.get("return", Any))
    if returns is NoneType:
        faults.append(f"{where}: returns None, which refuses every request: return the principal")
    elif auth.scopes and not _may_have_scopes(returns):
        text = "and the view requires scopes: add an attribute `scopes`, a list of texts"
        faults.append(f"{where}: returns {shown_type(returns)}, {text}")
    if faults:
        raise DeclarationError(*faults)
    return Requirement(auth, Verifier(auth.verify, sources, returns))


def principal_fault(wanted: Any, found: Requirement | None) -> str:
    """Return why a parameter cannot take the principal; empty if it can.

    Args:
        wanted: The type of the parameter.
        found: What its verb requires.
    """
    right = "write `auth = Bearer(...)`, or give the parameter a default"
    if found is None:
        return f"takes the principal, and nothing verifies the client: {right}"
    if found.verifier is None:
        return "takes the principal, and a secret in the settings has none; verify with a function"
    given, wanted = found.verifier.returns, bare_type(wanted)
    if Any in (given, wanted) or given == wanted:
        return ""
    if isinstance(given, type) and isinstance(wanted, type) and issubclass(given, wanted):
        return ""
    where = describe_class(found.verifier.function)
    return f"is of type {shown_type(wanted)}, and {where} returns {shown_type(given)}"


class Authenticator:
    """Verifies the credentials of the requests for one verb of a view.

    Args:
        view: The name of the view.
        realm: For the challenge.
        timeout: Seconds for one call of the verifier; None for no limit.
    """

    def __init__(
        self,
        required: Requirement,
        view: str,
        realm: str,
        timeout: float | None,
        settings: WorkerSettings,
    ) -> None:
        self._auth = required.auth
        self._verifier = required.verifier
        self._name = view
        self._realm = "".join(_REALM.findall(realm))
        self._timeout = timeout
        setting = required.auth.setting
        found = () if setting is None else _secrets(getattr(settings, setting))
        self._secrets = [each.encode() for each in found]
        self._threads: Threads | None = None
        if self._verifier is not None and not self._verifier.is_async:
            self._threads = Threads(f"{view}-auth", THREADS, timeout)

    async def check(self, request: web.Request) -> None:
        """Verify a request, and store its principal in it.

        Raises:
            InvalidRequest: It has no credentials, or invalid ones (401), or lacks scopes (403).
            Exception: The verifier raised it, or took too long.
        """
        auth = self._auth
        if (credentials := auth.credentials(request)) is None:
            raise self._refusal(401, f"{auth.subject} is required", "")
        if not any(credentials):
            raise self._refusal(401, f"{auth.subject} is not valid", "invalid_token")
        try:
            principal = await self._verify(credentials)
        except web.HTTPUnauthorized as error:
            error.headers.setdefault(
                hdrs.WWW_AUTHENTICATE, auth.challenge(self._realm, "invalid_token")
            )
            raise
        if principal is None or principal is False:
            raise self._refusal(401, f"{auth.subject} is not valid", "invalid_token")
        if auth.scopes:
            self._check_scopes(getattr(principal, "scopes", None), principal)
        request[PRINCIPAL] = principal

    def close(self) -> None:
        """Let idle threads end."""
        if self._threads is not None:
            self._threads.close()

    async def _verify(self, credentials: Credentials) -> object:
        if self._verifier is None:
            given = credentials[0].encode(errors="surrogateescape")
            # Each is compared, so the time does not depend on which one matches.
            matches = [hmac.compare_digest(given, each) for each in self._secrets]
            return any(matches)
        call = guard(self._call(self._verifier, credentials))
        if self._timeout is None or self._threads is not None:
            return await call
        text = f"{self._name}: the verifier took longer than {self._timeout:g} s"
        return await with_deadline(self._timeout, call, HandlerTimeout(text))

    async def _call(self, verifier: Verifier, credentials: Credentials) -> object:
        async with provided(verifier.sources) as more:
            if self._threads is not None:
                return await self._threads.call(verifier.function, *credentials, **more)
            return await verifier.function(*credentials, **more)

    def _check_scopes(self, found: object, principal: object) -> None:
        if isinstance(found, str) or not isinstance(found, Collection):
            kind = type(principal).__qualname__
            raise TypeError(f"{self._name}: the principal, a {kind}, has no list `scopes`")
        if missing := [each for each in self._auth.scopes if each not in found]:
            raise self._refusal(403, f"scope {missing[0]} is required", "insufficient_scope")

    def _refusal(self, status: int, text: str, error: str) -> InvalidRequest:
        headers = {str(hdrs.WWW_AUTHENTICATE): self._auth.challenge(self._realm, error)}
        return InvalidRequest(status, text, headers=headers)


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _routine(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that a call runs, which has the annotations."""
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    is_routine = inspect.isroutine(function)
    return function if is_routine else inspect.unwrap(type(function).__call__)


def _may_have_scopes(type_: Any) -> bool:
    type_ = get_origin(type_) or type_
    if not isinstance(type_, type) or hasattr(type_, "scopes"):
        return True
    records = ("__dataclass_fields__", "__pydantic_fields__", "__struct_fields__")
    fields = [getattr(type_, each) for each in records if hasattr(type_, each)]
    # Any other class may set the attribute when it is created.
    is_open = not fields and type_.__module__ != "builtins"
    return is_open or any("scopes" in each for each in fields)


def _secrets(found: object) -> Sequence[str]:
    """Return the secrets in a setting; none if it has another type."""
    items = [found] if isinstance(found, str | SecretStr) else found
    if not isinstance(items, Iterable):
        return ()
    texts = [e.get_secret_value() if isinstance(e, SecretStr) else e for e in items]
    return texts if all(isinstance(each, str) for each in texts) else ()
