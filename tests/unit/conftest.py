"""Unit tests need no RabbitMQ, so that `make unit` runs anywhere."""

import pytest

_ELSEWHERE = "tests/unit runs without RabbitMQ: put this test into tests/contract or tests/faults"


@pytest.fixture(scope="session")
def rabbit() -> None:
    """Fail a test that asks for the shared node."""
    pytest.fail(_ELSEWHERE, pytrace=False)


@pytest.fixture
def broker() -> None:
    """Fail a test that asks for a node of its own."""
    pytest.fail(_ELSEWHERE, pytrace=False)
