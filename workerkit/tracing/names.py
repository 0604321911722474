"""All names in spans: those of OpenTelemetry's semantic conventions, and our own.

The conventions for messaging are in development status: a new version may rename attributes. So
no other module contains such a name, and a test compares this table with the package
`opentelemetry-semantic-conventions` of the version below.
"""

VERSION = "1.44.0"
"""The version of the semantic conventions."""

SCHEMA = f"https://opentelemetry.io/schemas/{VERSION}"

# Attributes of messaging: development status.
SYSTEM = "messaging.system"
OPERATION_TYPE = "messaging.operation.type"
OPERATION_NAME = "messaging.operation.name"
DESTINATION = "messaging.destination.name"
TEMPLATE = "messaging.destination.template"
TEMPORARY = "messaging.destination.temporary"
ROUTING_KEY = "messaging.rabbitmq.destination.routing_key"
MESSAGE_ID = "messaging.message.id"
CONVERSATION_ID = "messaging.message.conversation_id"
BODY_SIZE = "messaging.message.body.size"
BATCH_SIZE = "messaging.batch.message_count"

# Stable attributes.
ERROR_TYPE = "error.type"
EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"
EXCEPTION_STACKTRACE = "exception.stacktrace"
HTTP_METHOD = "http.request.method"
HTTP_METHOD_ORIGINAL = "http.request.method_original"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
URL = "url.full"
URL_PATH = "url.path"
URL_SCHEME = "url.scheme"
CLIENT_ADDRESS = "client.address"
USER_AGENT = "user_agent.original"

# The values of messaging.operation.type.
SEND = "send"
PROCESS = "process"
SETTLE = "settle"

# The names of operations.
PUBLISH = "publish"
REPLY = "reply"

EXCEPTION = "exception"
"""The name of the event that records an exception."""

DEFAULT_EXCHANGE = "amq.default"

# Our own attributes, for which there is no convention.
OWN = "workerkit."
CONSUMER = f"{OWN}consumer"
ATTEMPT = f"{OWN}attempt"
OUTCOME = f"{OWN}outcome"
DELAY = f"{OWN}retry.delay"
SCHEDULED = f"{OWN}scheduled"
"""When a periodic task was due, in ISO 8601."""
