"""Finding the dead-letter queue that packages, URLs and options name."""

from pathlib import Path
from secrets import token_hex

import pytest

from tests.command import write_package
from workerkit.cli.dead_letters.target import DeadLetterQueue, Target, find
from workerkit.errors import StartError

CONSUMER = """
    from workerkit import AMQPConsumer

    class {name}(AMQPConsumer):
        queues = ["{queue}"]
        connection = "{connection}"
        vhost = {vhost!r}

        async def handle(self, body: bytes) -> None: ...
"""
ORDERS = CONSUMER.format(name="Orders", queue="orders", connection="Other", vhost="shop")
MIRROR = CONSUMER.format(name="Mirror", queue="orders", connection="default", vhost=None)
PAYMENTS = CONSUMER.format(name="Payments", queue="payments", connection="default", vhost=None)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with two consumers, in the current directory; the name is new each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("WORKERKIT_AMQP__OTHER__URL", "amqp://other/own")
    return write_package(tmp_path, f"shop_{token_hex(4)}", orders=ORDERS, payments=PAYMENTS)


def named(url: str | None, package: str | None = None, queue: str | None = None) -> Target:
    """Return a command line with these arguments."""
    return Target(package, queue, url)


def place(found: DeadLetterQueue) -> tuple[str, str]:
    """Connection and virtual host."""
    return found.connection, found.broker.vhost_name(found.vhost)


@pytest.mark.parametrize("queue", ["orders", "orders.dlq"])
def test_the_connection_of_the_consumer(package: str, queue: str) -> None:
    """The consumer determines connection and virtual host; `.dlq` may be part of the name."""
    found = find(Target(package, queue))

    assert (found.source, found.name) == ("orders", "orders.dlq")
    assert place(found) == ("other", "shop")
    assert str(found) == "queue 'orders.dlq' on amqp://other:5672/shop"


def test_a_queue_without_consumer(package: str) -> None:
    """It is an error that lists the queues that are read; with a connection it is used anyway."""
    with pytest.raises(StartError) as raised:
        find(Target(package, "order"))

    assert str(raised.value) == (
        f"no consumer of {package} reads queue 'order', only orders, payments; "
        "did you mean 'orders'? To use the queue anyway, add --connection"
    )
    assert place(find(Target(package, "nobody", connection="default"))) == ("default", "/")


def test_an_unknown_consumer(package: str) -> None:
    """It may have had this name when the messages failed: they are searched, with a note."""
    found = find(Target(package, "orders"), ["Order", "payments"])

    assert found.source == "orders"
    assert found.note == f"{package} has no consumer Order; did you mean 'Orders'?"
    assert find(Target(package, "orders"), ["Nobody", "Other"]).note == (
        f"{package} has no consumer Nobody or Other, only Orders, Payments"
    )
    assert find(Target(package, "orders"), ["ORDERS"]).note == ""
    assert find(Target("amqp://host", "orders"), ["Order"]).note == ""


def test_options_override_the_consumer(package: str) -> None:
    """Options on the command line override the consumer's; other connections are ignored."""
    assert place(find(Target(package, "orders", vhost="else"))) == ("other", "else")
    assert place(find(Target(package, "orders", connection="OTHER"))) == ("other", "shop")
    assert place(find(Target(package, "payments", connection="other"))) == ("other", "own")
    assert place(find(Target(package, "orders", connection="default"))) == ("default", "/")


def test_a_url() -> None:
    """It determines everything except a virtual host that is given as an option."""
    assert place(find(Target("amqp://host/shop", "orders"))) == ("default", "shop")
    assert place(find(Target("amqp://host/shop", "orders", vhost="else"))) == ("default", "else")


def test_a_queue_that_is_read_in_two_places(package: str, tmp_path: Path) -> None:
    """An option has to select one of them."""
    both = write_package(tmp_path, f"{package}_both", orders=ORDERS, mirror=MIRROR)

    with pytest.raises(StartError) as raised:
        find(Target(both, "orders"))

    assert str(raised.value) == (
        "queue 'orders' is read by Mirror on connection 'default', virtual host '/' and Orders "
        "on connection 'other', virtual host 'shop': choose with --connection and --vhost"
    )
    assert place(find(Target(both, "orders", connection="default"))) == ("default", "/")


URL = "amqp://u:secret@host/shop"
EXPECTED = "expected PACKAGE QUEUE, or --url URL QUEUE"


@pytest.mark.parametrize(
    ("names", "url", "expected"),
    [
        (["shop", "orders"], None, ("shop", "orders")),
        (["orders", None], URL, (URL, "orders")),
        ([URL, "orders"], None, (URL, "orders")),
        (["orders"], URL, (URL, "orders")),
    ],
)
def test_names_on_the_command_line(
    names: list[str | None], url: str | None, expected: tuple[str, str]
) -> None:
    """A package or a URL and a queue, or a queue alone where the URL is an option."""
    assert named(url, *names).names() == expected


@pytest.mark.parametrize(
    ("names", "url", "fault"),
    [
        ([], None, f"{EXPECTED}; found nothing"),
        (["orders"], None, f"{EXPECTED}; found 'orders'"),
        ([URL], None, f"{EXPECTED}; found a URL"),
        ([], URL, f"{EXPECTED}; found --url"),
        (["shop", "orders"], URL, f"{EXPECTED}; found --url and 'shop' and 'orders'"),
        (["orders"], "shop", "--url is wrong: should start with amqp:// or amqps://"),
        (["orders"], "http://host", "the URL is wrong: should start with amqp:// or amqps://"),
    ],
)
def test_too_few_or_too_many_names(names: list[str], url: str | None, fault: str) -> None:
    """The error states what was found and what is correct, without the password."""
    with pytest.raises(StartError) as raised:
        named(url, *names).names()

    assert str(raised.value) == fault


@pytest.mark.parametrize(
    ("target", "queue", "options", "fault"),
    [
        ("http://host/", "orders", {}, "should start with amqp:// or amqps://"),
        ("amqp://host/", "orders", {"connection": "other"}, "no connection 'other', only default"),
        ("amqp://host/", "or\nders", {}, "cannot be the name of a queue"),
        ("amqp://host/", "", {}, "the name of the queue is empty"),
        ("amqp://host/", "q" * 252, {}, "cannot be the name of a queue"),
        ("no_such_package", "orders", {}, "cannot import no_such_package"),
    ],
)
def test_invalid_targets(target: str, queue: str, options: dict[str, str], fault: str) -> None:
    """One sentence describes the problem, before any connection."""
    with pytest.raises(StartError) as raised:
        find(Target(target, queue, **options))

    assert fault in str(raised.value)
