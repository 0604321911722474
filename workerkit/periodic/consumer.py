"""What a user's class declares about the clock."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from workerkit.consumer import Consumer
from workerkit.delivery import Delivery
from workerkit.options import Concurrency, Options, Seconds, only_with
from workerkit.periodic.schedule import (
    crontab_line,
    known_zone,
)
from workerkit.periodic.singleton import (
    SingletonOptions,
    resolving_run,
)
from workerkit.retry import Retries, RetryPolicy
from workerkit.signature import Arguments, Resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodicOptions(SingletonOptions):
    """The options of a `PeriodicTask`.

    Attributes:
        every: Seconds from the start of one call to the start of the next, the first one at the
            start of the process. Calls stay on this grid; one that falls into a call that still
            runs is left out.
        cron: Instead, the five fields of a crontab line, by the rules of Debian's cron(8).
        timezone: Of `cron`, daylight saving time included.
        retry: Calls again after a call that failed; nothing else is called meanwhile.
        jitter: At most so many seconds later, drawn anew for each call, so that the processes of a
            fleet do not all call at once.
    """

    concurrency: Concurrency = 1
    timeout: Seconds | None = None
    retry: Retries = None
    every: Seconds | None = None
    cron: Annotated[str, AfterValidator(crontab_line)] | None = None
    timezone: Annotated[str, AfterValidator(known_zone)] = field(
        default="UTC", metadata=only_with("cron", "only cron has a time zone")
    )
    jitter: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @property
    def schedule(self) -> str:
        """When it runs, for people."""
        return f"cron {self.cron}" if self.cron else f"every {self.every:g} s"


class PeriodicTask(Consumer, abstract=True):
    """Runs `handle` by the clock; all of its parameters come from the container.

    ```python
    class Cleanup(PeriodicTask):
        every = 60.0

        async def handle(self) -> None: ...
    ```

    A call that raises is logged and counted, and the next one comes all the same. Calls do not
    overlap unless `concurrency` is higher than 1.

    Every process that has the class runs it. With `singleton = True` one of them does, and the
    others wait to take over; `handle` may then have a parameter of type `Run`.
    """

    options: ClassVar[type[Options]] = PeriodicOptions
    retry: ClassVar[RetryPolicy | None]
    every: ClassVar[float | None]
    cron: ClassVar[str | None]
    timezone: ClassVar[str]
    jitter: ClassVar[float]
    singleton: ClassVar[bool | str]
    connection: ClassVar[str]
    vhost: ClassVar[str | None]

    @classmethod
    def signatures(
        cls, options: Options | None, delivery: type[Delivery] | None, resolve: Resolve
    ) -> Mapping[str, Arguments]:
        """Read `handle`, in which a parameter of type `Run` is the run."""
        is_singleton = options is None or bool(periodic_options(options).singleton)
        return super().signatures(options, delivery, resolving_run(resolve, is_singleton))


def periodic_options(options: Options) -> PeriodicOptions:
    """Return *options* as those of a periodic task."""
    assert isinstance(options, PeriodicOptions)
    return options
