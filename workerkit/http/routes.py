"""The routes of views in an application of aiohttp."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from workerkit.consumer import Consumer
from workerkit.delivery import Action
from workerkit.endpoint import Endpoint
from workerkit.http.receiver import RequestReceiver
from workerkit.http.signature import RequestSignature
from workerkit.http.verifier import Authenticator
from workerkit.http.view import HTTPOptions, has_etag, statuses, without_names
from workerkit.transport import Context, Declared


@dataclass(frozen=True, slots=True)
class _View:
    """A view with an endpoint for each of its methods."""

    declared: Declared
    endpoints: Mapping[str, Endpoint]

    @property
    def first(self) -> Endpoint:
        """The endpoint of its first method."""
        return next(iter(self.endpoints.values()))


class Routes:
    """The routes of some views, each with an endpoint and a receiver for each method."""

    def __init__(self) -> None:
        self._created: list[_View] = []
        self._views: list[_View] = []
        self._receivers: list[RequestReceiver] = []
        self._authenticators: list[Authenticator] = []

    @property
    def declared(self) -> list[Declared]:
        """The views whose routes were added."""
        return [view.declared for view in self._views]

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [view.first.name for view in self._views]

    def endpoint(self, declared: Declared, consumer: Consumer) -> Endpoint:
        """Return the endpoint of a view's first method; those of the others are kept here."""
        endpoints = {
            name: Endpoint(
                consumer,
                declared.options,
                signature,
                on_success=Action.ACK,
                on_exception=Action.REJECT,
                on_invalid=Action.REJECT,
                method=name,
                inherits=True,
            )
            for name, signature in declared.signatures.items()
        }
        self._created.append(_View(declared, endpoints))
        return self._created[-1].first

    def add(
        self, application: web.Application, endpoints: Collection[Endpoint], context: Context
    ) -> None:
        """Add the routes of views to an application.

        Args:
            endpoints: What `endpoint` has returned for them.
        """
        self._views = [view for view in self._created if view.first in endpoints]
        taken = {claim for view in self._views for claim in _claims(view)}
        for view in self._views:
            for name, endpoint in view.endpoints.items():
                signature = view.declared.signatures[name]
                assert isinstance(signature, RequestSignature)
                receivers = self._create_receivers(view, endpoint, signature, context)
                self._receivers += receivers.values()
                for route in http_options(view.declared.options).routes:
                    resource = application.router.add_resource(route)
                    for verb, receiver in receivers.items():
                        call = receiver.respond_to_form if receiver.takes_form else receiver.respond
                        respond = partial(call, resource.canonical)
                        resource.add_route(verb, respond)
                        # GET handles HEAD as well, unless a view has a method for HEAD.
                        if verb == "GET" and ("HEAD", without_names(route)) not in taken:
                            resource.add_route("HEAD", respond)

    def running(self, name: str) -> int:
        """Return the number of requests that a view handles."""
        return sum(each.running for each in self._receivers if each.name == name)

    def busy(self) -> list[str]:
        """Return the names of the views that handle requests."""
        return list(dict.fromkeys(each.name for each in self._receivers if each.running))

    def close(self) -> None:
        """Stop timers and threads, after the last request."""
        for view in self._created:
            for endpoint in view.endpoints.values():
                endpoint.close()
        for authenticator in self._authenticators:
            authenticator.close()
        self._created, self._receivers, self._authenticators = [], [], []

    def _create_receivers(
        self, view: _View, endpoint: Endpoint, signature: RequestSignature, context: Context
    ) -> dict[str, RequestReceiver]:
        """Return the receiver of each verb of a method."""
        declared, settings = view.declared, context.settings
        options = http_options(declared.options)
        status = statuses(declared.consumer, declared.signatures)
        package = declared.consumer.__module__.partition(".")[0]
        found = {}
        for verb in signature.verbs:
            authenticator = None
            if (required := signature.required.get(verb)) is not None:
                authenticator = Authenticator(
                    required, options.name, package, options.timeout, settings
                )
                self._authenticators.append(authenticator)
            found[verb] = RequestReceiver(
                endpoint,
                signature,
                status[verb],
                options.max_body,
                context,
                authenticator,
                etag=has_etag(declared.consumer, verb),
            )
        return found


def http_options(options: object) -> HTTPOptions:
    """Return the options of a view, as such."""
    assert isinstance(options, HTTPOptions)
    return options


def _claims(view: _View) -> Iterator[tuple[str, str]]:
    for signature in view.declared.signatures.values():
        assert isinstance(signature, RequestSignature)
        for route in http_options(view.declared.options).routes:
            yield from ((verb, without_names(route)) for verb in signature.verbs)
