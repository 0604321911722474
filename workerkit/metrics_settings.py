"""What operators can set about metrics."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _ascending(bounds: Sequence[float]) -> Sequence[float]:
    if any(one >= other for one, other in pairwise(bounds)):
        raise PydanticCustomError("buckets", "should be in ascending order, each once")
    return bounds


Bound = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Buckets = Annotated[tuple[Bound, ...], Field(min_length=1), AfterValidator(_ascending)]

# A handler takes a fraction of a millisecond, or as long as its timeout of five minutes.
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class MetricsSettings(BaseModel):
    """What is counted, and what it is called.

    Attributes:
        enabled: Without it nothing is counted, and there is no page.
        path: Of the page on the ops server.
        prefix: What all names begin with; an underscore follows it.
        buckets: Upper bounds, in seconds, of the histograms of handlers, publishes and requests.
        age: Measure how old deliveries are when they are settled, where they have a timestamp. It
            is off because a message's properties have to be decoded for it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    enabled: bool = True
    path: Annotated[str, Field(pattern=r"^/[\w./-]+$")] = "/metrics"
    prefix: Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")] = "workerkit"
    buckets: Buckets = _SECONDS
    age: bool = False
