"""The base class of periodic tasks, and its options."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from workerkit.codec import BUILT_IN, Codecs
from workerkit.consumer import Consumer
from workerkit.delivery import Delivery
from workerkit.options import Concurrency, Options, Seconds, only_with
from workerkit.periodic.schedule import (
    check_crontab_line,
    check_time_zone,
)
from workerkit.periodic.singleton import (
    SingletonOptions,
    with_run,
)
from workerkit.retry import Retries, RetryPolicy
from workerkit.signature import Arguments, Resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodicOptions(SingletonOptions):
    """The options of a `PeriodicTask`.

    Attributes:
        every: Seconds from the start of one run to the start of the next. The first run is at the
            start of the process. A run that is due while the previous one is in progress is
            skipped, and later runs are not delayed.
        cron: Instead of `every`, the five fields of a crontab line, with the rules of Debian's
            cron(8).
        timezone: The time zone of `cron`, including daylight saving time.
        retry: The retry policy after a failed run. No other run starts before the last retry.
        jitter: The largest random delay of a run in seconds, so that several processes do not run
            the task at the same time.
    """

    concurrency: Concurrency = 1
    timeout: Seconds | None = None
    retry: Retries = None
    every: Seconds | None = None
    cron: Annotated[str, AfterValidator(check_crontab_line)] | None = None
    timezone: Annotated[str, AfterValidator(check_time_zone)] = field(
        default="UTC", metadata=only_with("cron", "only cron has a time zone")
    )
    jitter: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @property
    def schedule(self) -> str:
        """Return the schedule for display."""
        return f"cron {self.cron}" if self.cron else f"every {self.every:g} s"


class PeriodicTask(Consumer, abstract=True):
    """Runs `handle` at regular times; all of its parameters come from the container.

    ```python
    class Cleanup(PeriodicTask):
        every = 60.0

        async def handle(self) -> None: ...
    ```

    A run that raises is logged and counted, and the next run starts as scheduled. Runs do not
    overlap unless `concurrency` is higher than 1.

    Every process with this class runs the task. With `singleton = True` one of them does, and the
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
        cls,
        options: Options | None,
        delivery: type[Delivery] | None,
        resolve: Resolve,
        codecs: Codecs = BUILT_IN,
    ) -> Mapping[str, Arguments]:
        """Read the parameters of `handle`; one of type `Run` receives the run."""
        is_singleton = options is None or bool(periodic_options(options).singleton)
        return super().signatures(options, delivery, with_run(resolve, is_singleton), codecs)


def periodic_options(options: Options) -> PeriodicOptions:
    """Return *options* as those of a periodic task."""
    assert isinstance(options, PeriodicOptions)
    return options
