"""Class-based consumers for RabbitMQ queues, event streams, HTTP requests and periodic tasks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workerkit.amqp.consumer import AMQPConsumer
    from workerkit.amqp.destination import Destination
    from workerkit.amqp.message import AMQPMessage
    from workerkit.amqp.publisher import Publisher
    from workerkit.amqp.queue import Binding, Exchange, Queue
    from workerkit.codec import CloudEvent, Codec
    from workerkit.config.connections import AMQPSettings, SSESettings
    from workerkit.config.settings import WorkerSettings
    from workerkit.consumer import Consumer
    from workerkit.container import WorkerContainer
    from workerkit.delivery import Action
    from workerkit.errors import (
        BrokerBlocked,
        BrokerRefused,
        ConfigurationError,
        ConnectionLost,
        DeclarationError,
        HandlerCancelled,
        HandlerTimeout,
        InvalidBody,
        InvalidReply,
        InvalidRequest,
        MessageTooLarge,
        PublishError,
        PublishOutcomeUnknown,
        PublishRefused,
        PublishTimeout,
        Reject,
        ReplyLost,
        RequestError,
        RequestExpired,
        RequestFailed,
        RequestTimeout,
        Retry,
        RunError,
        StartError,
        StreamRefused,
        UnknownMessageType,
        Unroutable,
        WorkerkitError,
    )
    from workerkit.http.auth import APIKey, Basic, Bearer, Principal
    from workerkit.http.form import Form
    from workerkit.http.parameters import Cookie, Header
    from workerkit.http.upload import UploadFile
    from workerkit.http.view import HTTPView
    from workerkit.interceptor import Call, Interceptor
    from workerkit.observe import Settled
    from workerkit.periodic.consumer import PeriodicTask
    from workerkit.periodic.singleton import Run
    from workerkit.retry import RetryPolicy
    from workerkit.runner import Runner
    from workerkit.simple_transport import (
        SimpleConsumer,
        SimpleDelivery,
        SimpleOptions,
        SimpleTransport,
    )
    from workerkit.sse.consumer import SSEConsumer
    from workerkit.sse.cursor import CursorStore
    from workerkit.sse.event import SSEEvent
    from workerkit.version import __version__

__all__ = [
    "AMQPConsumer",
    "AMQPMessage",
    "AMQPSettings",
    "APIKey",
    "Action",
    "Basic",
    "Bearer",
    "Binding",
    "BrokerBlocked",
    "BrokerRefused",
    "Call",
    "CloudEvent",
    "Codec",
    "ConfigurationError",
    "ConnectionLost",
    "Consumer",
    "Cookie",
    "CursorStore",
    "DeclarationError",
    "Destination",
    "Exchange",
    "Form",
    "HTTPView",
    "HandlerCancelled",
    "HandlerTimeout",
    "Header",
    "Interceptor",
    "InvalidBody",
    "InvalidReply",
    "InvalidRequest",
    "MessageTooLarge",
    "PeriodicTask",
    "Principal",
    "PublishError",
    "PublishOutcomeUnknown",
    "PublishRefused",
    "PublishTimeout",
    "Publisher",
    "Queue",
    "Reject",
    "ReplyLost",
    "RequestError",
    "RequestExpired",
    "RequestFailed",
    "RequestTimeout",
    "Retry",
    "RetryPolicy",
    "Run",
    "RunError",
    "Runner",
    "SSEConsumer",
    "SSEEvent",
    "SSESettings",
    "Settled",
    "SimpleConsumer",
    "SimpleDelivery",
    "SimpleOptions",
    "SimpleTransport",
    "StartError",
    "StreamRefused",
    "UnknownMessageType",
    "Unroutable",
    "UploadFile",
    "WorkerContainer",
    "WorkerSettings",
    "WorkerkitError",
    "__version__",
]

# Each name is imported at its first use, so that `workerkit probe`, which runs every few seconds,
# does not import everything. The modules are those of the imports above.
_NAMES = {
    "amqp.consumer": "AMQPConsumer",
    "amqp.destination": "Destination",
    "amqp.message": "AMQPMessage",
    "amqp.publisher": "Publisher",
    "amqp.queue": "Binding Exchange Queue",
    "codec": "CloudEvent Codec",
    "config.connections": "AMQPSettings SSESettings",
    "consumer": "Consumer",
    "container": "WorkerContainer",
    "delivery": "Action",
    "errors": (
        "BrokerBlocked BrokerRefused ConfigurationError ConnectionLost DeclarationError"
        " HandlerCancelled HandlerTimeout InvalidBody InvalidReply InvalidRequest MessageTooLarge"
        " PublishError PublishOutcomeUnknown PublishRefused PublishTimeout Reject ReplyLost"
        " RequestError RequestExpired RequestFailed RequestTimeout Retry RunError StartError"
        " StreamRefused UnknownMessageType Unroutable WorkerkitError"
    ),
    "http.auth": "APIKey Basic Bearer Principal",
    "http.form": "Form",
    "http.parameters": "Cookie Header",
    "http.upload": "UploadFile",
    "http.view": "HTTPView",
    "interceptor": "Call Interceptor",
    "observe": "Settled",
    "periodic.consumer": "PeriodicTask",
    "retry": "RetryPolicy",
    "runner": "Runner",
    "simple_transport": "SimpleConsumer SimpleDelivery SimpleOptions SimpleTransport",
    "config.settings": "WorkerSettings",
    "periodic.singleton": "Run",
    "sse.consumer": "SSEConsumer",
    "sse.cursor": "CursorStore",
    "sse.event": "SSEEvent",
    "version": "__version__",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


if not TYPE_CHECKING:  # A type checker would then accept any name.

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
