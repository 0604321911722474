"""`HTTPView`, the base class of views, and its options."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import isroutine
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from workerkit.codec import BUILT_IN, Codecs
from workerkit.consumer import Consumer
from workerkit.delivery import Delivery
from workerkit.describe import describe_class
from workerkit.errors import DeclarationError
from workerkit.http.auth import Auth, auth_by_verb
from workerkit.http.signature import RequestSignature
from workerkit.http.verifier import Requirement, requirement
from workerkit.options import NOT_SET, Concurrency, Options, Seconds
from workerkit.signature import Arguments, Resolve

VERBS = ("get", "post", "put", "patch", "delete", "head", "options")
THREADS = 32
"""Concurrent calls of methods that are not `async`; `async` methods have no limit."""

_NAME = re.compile(r"\{(\w+)(?::(?:[^{}]|\{[^{}]*\})*)?\}")


def _reject_text(found: object) -> object:
    if isinstance(found, str):
        raise ValueError(f"write a list, such as [{found!r}]")
    return found


def _check_methods(methods: tuple[str, ...]) -> tuple[str, ...]:
    methods = tuple(dict.fromkeys(each.upper() for each in methods))
    for each in methods:
        if each.lower() not in VERBS:
            raise ValueError(f"{each!r} is not one of {', '.join(VERBS).upper()}")
    return methods


Routes = Annotated[tuple[str, ...], BeforeValidator(_reject_text), Field(min_length=1)]
Methods = Annotated[
    tuple[str, ...],
    BeforeValidator(_reject_text),
    AfterValidator(_check_methods),
    Field(min_length=1),
]

Requirements = Sequence[str | Mapping[str, Sequence[str]]]
"""Alternatives, one of which a client has to satisfy: the name of a security scheme, or a mapping
of schemes that are required together, with their scopes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPOptions(Options):
    """The options of an `HTTPView`.

    Attributes:
        timeout: Seconds for one call, without reading the request and sending the response; a
            call that takes longer is answered with 504.
        routes: Paths, with parameters in braces: `/orders/{order_id}`, or with a regular
            expression `{order_id:[0-9]+}`.
        methods: The HTTP methods that `handle` handles; only `GET` by default.
        max_body: Bytes of a request's body; None for the limit in the settings.
    """

    concurrency: Concurrency = field(default=THREADS, repr=False, metadata=NOT_SET)
    paused: bool = field(default=False, repr=False, metadata=NOT_SET)
    timeout: Seconds | None = 60.0
    routes: Routes
    methods: Methods | None = None
    max_body: Annotated[int, Field(gt=0)] | None = None


class HTTPView(Consumer, abstract=True):
    """Base class of views, which answer the requests for one or more routes.

    ```python
    class OrderView(HTTPView):
        routes = ["/orders/{order_id}"]

        async def get(self, order_id: int, verbose: bool = False) -> Order: ...
    ```

    Either `handle` handles the `methods`, or there is a method for each verb: `get`, `post`, `put`,
    `patch`, `delete`, `head`, `options`. The returned value becomes the response: JSON, 204 for
    None, another status with `return body, 202`; a `web.StreamResponse` is the response itself.

    Attributes:
        routes: Paths, such as `/orders/{order_id}`.
        methods: The HTTP methods that `handle` handles; only `GET` by default.
        status: Of a response that does not set one, 200 by default; a dict if it depends on the
            verb: `{"post": 201}`.
        max_body: Bytes of a request's body.
        security: Names of security schemes in the settings, one of which a client needs, for the
            OpenAPI document: `["api_key"]`, with scopes `[{"oauth": ["orders:read"]}]`, a dict if
            it depends on the verb `{"post": ["api_key"]}`; `[]` for none. It has to be enforced by
            a middleware; `auth` enforces and describes at once.
        auth: What a client needs, verified before the body is read: `Bearer(...)`, `APIKey(...)` or
            `Basic(...)`; None for nothing; a dict if it depends on the verb: `{"post": ...}`.
        etag: Whether a returned value gets an `ETag`, and a client that has it a 304.
    """

    options: ClassVar[Any] = HTTPOptions
    routes: ClassVar[Sequence[str]]
    methods: ClassVar[Sequence[str]]
    status: ClassVar[int | Mapping[str, int]] = 200
    max_body: ClassVar[int | None]
    security: ClassVar[Requirements | Mapping[str, Requirements] | None] = None
    auth: ClassVar[Auth | Mapping[str, Auth | None] | None] = None
    etag: ClassVar[bool] = False

    @classmethod
    def signatures(
        cls,
        options: Options | None,
        delivery: type[Delivery] | None,
        resolve: Resolve,
        codecs: Codecs = BUILT_IN,
    ) -> Mapping[str, Arguments]:
        """Return the signature of `handle`, or of the method for each verb."""
        own = options if isinstance(options, HTTPOptions) else None
        names = path_names(own.routes if own is not None else ())
        verbs = _methods(cls, own)
        found: dict[str, Arguments] = {}
        faults: list[str] = []
        required = _requirements(cls, verbs, resolve)
        for name, answers in verbs.items():
            own_required = {verb: required[verb] for verb in answers if verb in required}
            try:
                found[name] = RequestSignature(cls, name, answers, names, resolve, own_required)
            except DeclarationError as error:
                faults += error.faults
        if faults:
            raise DeclarationError(*faults)
        return found

    @classmethod
    def claims(cls, options: Options) -> Iterable[str]:
        """Yield each verb of each route, without the names of path parameters."""
        own = options if isinstance(options, HTTPOptions) else None
        for answers in _methods(cls, own).values():
            for route in own.routes if own is not None else ():
                yield from (f"{verb} {without_names(route)}" for verb in answers)


def statuses(view: type, signatures: Mapping[str, Arguments]) -> dict[str, int]:
    """Return the status, for each verb of a view, of a response that does not set one.

    Args:
        signatures: Of the methods of the view.

    Raises:
        ValueError: The class attribute `status` is invalid.
    """
    verbs = verbs_of(signatures)
    found: object = getattr(view, "status", 200)
    by_verb = dict.fromkeys(verbs, found)
    if isinstance(found, Mapping):
        if wrong := [each for each in found if str(each).upper() not in verbs]:
            raise ValueError(f"status has {wrong[0]!r}, but the view handles {', '.join(verbs)}")
        by_verb = {**dict.fromkeys(verbs, 200), **{str(k).upper(): v for k, v in found.items()}}
    return {verb: _check_status(status) for verb, status in by_verb.items()}


def has_etag(view: type, verb: str) -> bool:
    """Return whether values that a view returns for a verb get an `ETag`."""
    return bool(getattr(view, "etag", False)) and verb in ("GET", "HEAD")


def verbs_of(signatures: Mapping[str, Arguments]) -> list[str]:
    """Return the verbs that the methods of a view handle."""
    methods = [each for each in signatures.values() if isinstance(each, RequestSignature)]
    return [verb for method in methods for verb in method.verbs]


def security_requirements(
    view: type, verbs: Iterable[str]
) -> dict[str, list[dict[str, list[str]]]]:
    """Return the OpenAPI security requirements of each verb for which `security` has some.

    Raises:
        ValueError: The class attribute `security` is invalid.
    """
    found: object = getattr(view, "security", None)
    verbs = list(verbs)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        required = _as_requirements(found)
        return dict.fromkeys(verbs, required)
    if wrong := [each for each in found if str(each).upper() not in verbs]:
        raise ValueError(f"security has {wrong[0]!r}, but the view handles {', '.join(verbs)}")
    return {str(verb).upper(): _as_requirements(each) for verb, each in found.items()}


def _as_requirements(found: object) -> list[dict[str, list[str]]]:
    if isinstance(found, Sequence) and not isinstance(found, str):
        mappings = [{each: []} if isinstance(each, str) else each for each in found]
        if all(isinstance(each, Mapping) for each in mappings):
            return [{name: list(scopes) for name, scopes in each.items()} for each in mappings]
    raise ValueError(f"security is {found!r}: write a list of names, such as ['api_key']")


def _requirements(
    view: type, methods: Mapping[str, Sequence[str]], resolve: Resolve
) -> dict[str, Requirement]:
    """Return what each verb of a view requires of its clients; nothing for most.

    Raises:
        DeclarationError: The class attribute `auth` or its verifier is invalid.
    """
    verbs = [verb for answers in methods.values() for verb in answers]
    try:
        found = auth_by_verb(view, verbs)
    except ValueError as error:
        raise DeclarationError(f"{describe_class(view)}: {error}") from error
    made = {auth: requirement(auth, resolve) for auth in found.values() if auth is not None}
    return {verb: made[auth] for verb, auth in found.items() if auth is not None}


def path_names(routes: Sequence[str]) -> dict[str, bool]:
    """Return the names of path parameters, each with whether every route has it."""
    each = [set(_NAME.findall(route)) for route in routes]
    return {name: all(name in names for names in each) for name in sorted(set().union(*each))}


def path_patterns(route: str) -> dict[str, str]:
    """Return the path parameters of a route with their regular expressions, "" for any text."""
    return {
        found[1]: found[0].removeprefix("{" + found[1]).removesuffix("}").removeprefix(":")
        for found in _NAME.finditer(route)
    }


def without_names(route: str) -> str:
    """Return a route without the names of its parameters, which do not distinguish routes."""
    return _NAME.sub(lambda found: "{" + found[0][len(found[1]) + 1 :], route)


def _check_status(status: object) -> int:
    if not isinstance(status, int) or status not in range(200, 400):
        raise ValueError(f"status is {status!r}: write 200 to 399")
    return status


def _methods(cls: Any, options: HTTPOptions | None) -> dict[str, tuple[str, ...]]:
    """Return the methods of a view by name, each with the verbs that it handles."""
    # The attribute `options` may be the method for the verb, or the class of the options.
    verbs = [name for name in VERBS if isroutine(getattr(cls, name, None))]
    if callable(getattr(cls, "handle", None)):
        if verbs:
            raise DeclarationError(
                f"{describe_class(cls)}: has both handle and {verbs[0]}; keep one form"
            )
        return {"handle": (options.methods if options else None) or ("GET",)}
    if not verbs:
        raise DeclarationError(
            f"{describe_class(cls)}: needs a method `handle`, or one for a verb: {', '.join(VERBS)}"
        )
    return {name: (name.upper(),) for name in verbs}
