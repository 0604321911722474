"""Measurements of the tests on a cluster."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figures:
    """The result of one fault.

    Attributes:
        fault: What was done to the cluster.
        way: How the worker reaches it: a list of hosts, or a balancer.
        version: Of RabbitMQ.
        confirmed: Messages that the broker had confirmed.
        lost: Those of them that were neither handled nor dead-lettered.
        twice: Times that a message was handled again.
        pause: The longest time in which nothing was handled, in seconds.
        unconfirmed: The longest time in which no node confirmed a message of any client, in
            seconds: the cluster itself stood still.
        stuck: Queues of retries that stood still in the end, until they got another leader.
    """

    fault: str
    way: str
    version: tuple[int, ...]
    confirmed: int
    lost: int
    twice: int
    pause: float
    unconfirmed: float
    stuck: Sequence[str] = ()

    def __str__(self) -> str:
        version = ".".join(map(str, self.version))
        return (
            f"| {self.fault} | {self.way} | {version} | {self.confirmed} | {self.lost}"
            f" | {self.twice} | {self.pause:.1f} s | {self.unconfirmed:.1f} s"
            f" | {', '.join(self.stuck) or '-'} |"
        )


FIGURES: list[Figures] = []
"""Of this session, in the order of the tests."""
_FILE = "CLUSTER_FIGURES"


def record(figures: Figures) -> None:
    """Keep a result for the table, and append it to the file in `CLUSTER_FIGURES`, if set."""
    FIGURES.append(figures)
    if name := os.environ.get(_FILE):
        with Path(name).open("a") as file:
            file.write(f"{figures}\n")


def table(figures: Sequence[Figures]) -> str:
    """Return the results as a Markdown table."""
    heads = (
        "fault",
        "way",
        "RabbitMQ",
        "confirmed",
        "lost",
        "handled twice",
        "nothing handled for",
        "nothing confirmed for",
        "stuck",
    )
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *map(str, figures)])
