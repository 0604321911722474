"""Every metric that workerkit has: the table of docs/metrics.md."""

from workerkit.counts import Metric

DELIVERIES = Metric(
    "deliveries_total",
    "counter",
    ("consumer", "source", "outcome"),
    "Deliveries settled; outcome is ack, requeue, reject, dead_letter, retry, or lost where the"
    " connection was gone before",
)
HANDLER_SECONDS = Metric(
    "handler_seconds",
    "histogram",
    ("consumer", "source"),
    "From the start of handling a delivery, or its batch, to the decision",
)
DELIVERY_AGE = Metric(
    "delivery_age_seconds",
    "histogram",
    ("consumer", "source"),
    "From the timestamp of a delivery, whole seconds on AMQP, to its settlement; only with"
    " METRICS__AGE",
)
IN_FLIGHT = Metric("in_flight", "gauge", ("consumer",), "Calls of handle that run")
RETRIES = Metric(
    "retries_total",
    "counter",
    ("consumer", "source", "error"),
    "Deliveries to be tried again; error is the class raised, empty where the handler decided",
)
DEAD_LETTERS = Metric(
    "dead_letters_total",
    "counter",
    ("consumer", "source", "error"),
    "Deliveries moved to the dead letters; error as for retries",
)
CONSUMER_STATE = Metric(
    "consumer_state",
    "gauge",
    ("consumer", "state"),
    "1 for the state a consumer is in (starting, waiting, ready, ended, stopping), else 0",
)
LEADER = Metric(
    "periodic_leader",
    "gauge",
    ("consumer",),
    "1 where this process runs a task with singleton, 0 where another one does or none",
)
LAST_EVENT_AGE = Metric(
    "last_event_age_seconds",
    "gauge",
    ("consumer", "source"),
    "Since the last event of a stream; absent before the first",
)
READY = Metric("ready", "gauge", (), "1 where /health/ready says 200, else 0")
PUBLISHES = Metric(
    "publishes_total",
    "counter",
    ("connection", "outcome"),
    "Publishes by handlers; outcome is confirmed, unroutable, refused, too_large, timeout,"
    " blocked or unknown",
)
PUBLISH_SECONDS = Metric(
    "publish_seconds", "histogram", ("connection",), "From the call of publish to its end"
)
CONNECTIONS = Metric(
    "connections_total",
    "counter",
    ("connection", "role"),
    "Connections made, to brokers and to servers of event streams; all after the first are "
    "reconnections",
)
CONNECTION_FAILURES = Metric(
    "connection_failures_total",
    "counter",
    ("connection", "role"),
    "Attempts to connect that failed",
)
CONNECTION_LOSSES = Metric(
    "connection_losses_total", "counter", ("connection", "role"), "Connections lost"
)
HTTP_SECONDS = Metric(
    "http_request_seconds",
    "histogram",
    ("route", "method", "status"),
    "From a request to the answer; route is the template, such as /orders/{order_id}, and empty "
    "where there is no view",
)
HTTP_REQUEST_SIZE = Metric(
    "http_request_size_bytes",
    "histogram",
    ("route", "method", "status"),
    "Bodies of requests; without those that nobody counted",
)
HTTP_RESPONSE_SIZE = Metric(
    "http_response_size_bytes",
    "histogram",
    ("route", "method", "status"),
    "Bodies of answers; without streams",
)
LOOP_LAG = Metric(
    "loop_lag_seconds",
    "histogram",
    (),
    "How much too late the event loop came to a timer, looked at twice a second",
)

METRICS = (
    DELIVERIES,
    HANDLER_SECONDS,
    DELIVERY_AGE,
    IN_FLIGHT,
    RETRIES,
    DEAD_LETTERS,
    CONSUMER_STATE,
    LEADER,
    LAST_EVENT_AGE,
    READY,
    PUBLISHES,
    PUBLISH_SECONDS,
    CONNECTIONS,
    CONNECTION_FAILURES,
    CONNECTION_LOSSES,
    HTTP_SECONDS,
    HTTP_REQUEST_SIZE,
    HTTP_RESPONSE_SIZE,
    LOOP_LAG,
)
