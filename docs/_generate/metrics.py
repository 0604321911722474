"""The table of the metrics."""

from docs._generate.markdown import code, table
from workerkit.ops.counting import METRICS

PREFIX = "workerkit_"


def metrics() -> str:
    """Return a table of all metrics."""
    return table(
        ("metric", "type", "labels", "meaning"),
        [
            (code(PREFIX + each.name), each.kind, ", ".join(map(code, each.labels)), each.text)
            for each in METRICS
        ],
    )
