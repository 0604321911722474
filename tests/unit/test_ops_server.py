"""Health pages: when a process is ready for work, and what they report."""

from workerkit.health import Health, Part, Readiness
from workerkit.ops.server import live, ready, startup


def running(*consumers: str) -> tuple[Readiness, list[Part]]:
    """A process that has begun, whose consumers are ready."""
    parts = [Part() for _ in consumers]
    for part in parts:
        part.ready()
    health = [Health(name, [part]) for name, part in zip(consumers, parts, strict=True)]
    return Readiness(health, started=True), parts


def test_a_process_whose_consumers_are_ready_is_ready() -> None:
    """Nothing stands against it."""
    readiness, _ = running("Orders", "Audit")

    assert ready(readiness) == (
        200,
        {
            "status": "ready",
            "reasons": [],
            "consumers": {
                "Orders": {"state": "ready", "reason": ""},
                "Audit": {"state": "ready", "reason": ""},
            },
        },
    )


def test_a_consumer_that_waits_is_named_with_its_reason() -> None:
    """One is enough; the page lists the others as well."""
    readiness, [part, _] = running("Orders", "Audit")

    part.waiting("queue 'orders' is missing")

    status, body = ready(readiness)
    assert status == 503
    assert body["reasons"] == ["Orders: queue 'orders' is missing"]
    assert body["consumers"]["Orders"] == {
        "state": "waiting",
        "reason": "queue 'orders' is missing",
    }


def test_a_process_that_has_not_begun_is_not_ready() -> None:
    """Not even where it has no consumer yet that could say so."""
    assert ready(Readiness())[0] == 503
    assert Readiness().obstacles() == ["starting"]


def test_a_process_that_drains_is_not_ready() -> None:
    """Though its consumers were, a moment ago."""
    readiness, _ = running("Orders")

    readiness.draining = True

    assert readiness.obstacles() == ["stopping"]


def test_a_process_that_is_about_to_end_is_not_ready() -> None:
    """Something of it has failed."""
    readiness, _ = running("Orders")

    readiness.crashed = True

    assert readiness.obstacles() == ["a task failed"]


def test_a_broker_that_blocks_publishers_is_named_by_its_connection() -> None:
    """Consumers are well, and yet what they would publish goes nowhere."""
    readiness, _ = running("Orders")

    readiness.blocked = lambda: ["default"]

    assert readiness.obstacles() == ["connection default: the broker blocks publishers"]


def test_startup_looks_back() -> None:
    """Once every consumer was ready, startup is complete, whatever happens later."""
    readiness, [part] = running("Orders")

    part.waiting("the connection is lost")

    assert startup(readiness)[0] == 200
    assert ready(readiness)[0] == 503


def test_startup_waits_for_every_consumer() -> None:
    """One that never was ready holds it."""
    part = Part()
    part.ready()
    readiness = Readiness([Health("Orders", [part]), Health("Audit", [Part()])], started=True)

    status, body = startup(readiness)

    assert (status, body["status"]) == (503, "starting")
    assert body["reasons"] == ["Audit: starting"]


def test_liveness_knows_nothing_else() -> None:
    """Whoever gets an answer knows that the loop turns."""
    assert live() == (200, {"status": "alive"})
