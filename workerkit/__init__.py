"""Class-based consumers for RabbitMQ queues, wired by a container, kept alive by a Runner."""

from workerkit.amqp.consumer import AMQPConsumer
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.publisher import Publisher
from workerkit.amqp.queue import Binding, Exchange, Queue
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
    InvalidRequest,
    MessageTooLarge,
    PublishError,
    PublishOutcomeUnknown,
    PublishRefused,
    PublishTimeout,
    Reject,
    Retry,
    RunError,
    StartError,
    Unroutable,
    WorkerkitError,
)
from workerkit.http.parameters import Cookie, Header
from workerkit.http.view import HTTPView
from workerkit.observe import Settled
from workerkit.periodic import PeriodicTask
from workerkit.retry import RetryPolicy
from workerkit.runner import Runner
from workerkit.settings import WorkerSettings
from workerkit.version import __version__

__all__ = [
    "AMQPConsumer",
    "AMQPMessage",
    "Action",
    "Binding",
    "BrokerBlocked",
    "BrokerRefused",
    "ConfigurationError",
    "ConnectionLost",
    "Consumer",
    "Cookie",
    "DeclarationError",
    "Exchange",
    "HTTPView",
    "HandlerCancelled",
    "HandlerTimeout",
    "Header",
    "InvalidBody",
    "InvalidRequest",
    "MessageTooLarge",
    "PeriodicTask",
    "PublishError",
    "PublishOutcomeUnknown",
    "PublishRefused",
    "PublishTimeout",
    "Publisher",
    "Queue",
    "Reject",
    "Retry",
    "RetryPolicy",
    "RunError",
    "Runner",
    "Settled",
    "StartError",
    "Unroutable",
    "WorkerContainer",
    "WorkerSettings",
    "WorkerkitError",
    "__version__",
]
