"""Warn about options of a consumer that have a side effect."""

from collections.abc import Iterator

from workerkit.amqp.consumer import AMQPOptions


def side_effects(
    options: AMQPOptions, consumer_timeout: float
) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the message and the fields of a log record for each option that has a side effect."""
    if options.batch and options.full_batch < options.batch_size:
        yield (
            "batch size is limited to the prefetch",
            {"batch_size": options.batch_size, "prefetch": options.full_batch},
        )
    tries = 1 if options.retry is None else options.retry.most_in_place
    if options.timeout is None or options.timeout * tries > consumer_timeout:
        yield (
            "timeout is longer than the broker waits for an acknowledgement",
            {
                "timeout": options.timeout,
                "tries_in_place": tries,
                "consumer_timeout": consumer_timeout,
            },
        )
