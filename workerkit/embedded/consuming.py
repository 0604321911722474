"""The methods basic.* for consumers: subscribe, get, acknowledge and reject."""

from secrets import token_urlsafe

from pamqp.commands import Basic

from workerkit.embedded import methods
from workerkit.embedded.arguments import integer_fault
from workerkit.embedded.channel import Channel
from workerkit.embedded.counting import Settlement
from workerkit.embedded.declaring import usable_queue
from workerkit.embedded.errors import Refusal
from workerkit.embedded.methods import Reply, arguments
from workerkit.embedded.queue import Consumer, Queue
from workerkit.embedded.vhost import REPLY_TO


def set_prefetch(channel: Channel, method: Basic.Qos) -> None:
    """Handle basic.qos: for later consumers, or (global) for the whole channel."""
    if method.prefetch_size:
        raise Refusal("NOT_IMPLEMENTED", f"prefetch_size!=0 ({method.prefetch_size})")
    if method.global_ and channel.vhost.behaviour.global_prefetch:
        channel.prefetch_total = method.prefetch_count
    else:
        channel.prefetch = method.prefetch_count
        channel.prefetch_total = 0  # As in RabbitMQ 3.10, one replaces the other.
    channel.send(methods.QOS_OK)
    channel.pump()


def consume(channel: Channel, method: Basic.Consume) -> None:
    """Handle basic.consume; send the reply here, because it must precede the first delivery."""
    tag = method.consumer_tag or f"amq.ctag-{token_urlsafe(16)}"
    if tag in channel.consumers or tag == channel.reply_tag:
        raise Refusal("NOT_ALLOWED", f"attempt to reuse consumer tag '{tag}'")
    if method.queue == REPLY_TO:
        _consume_replies(channel, method, tag)
        queue = None
    else:
        queue = usable_queue(channel, method.queue)
        consumer = _new_consumer(channel, queue, method, tag)
        channel.consumers[tag] = consumer
        queue.subscribe(consumer)
    if not method.nowait:
        channel.send(methods.consume_ok(tag))
    if queue is not None:
        queue.pump()


def cancel(channel: Channel, method: Basic.Cancel) -> Reply:
    """Handle basic.cancel; unacknowledged messages stay with the channel."""
    tag = method.consumer_tag or ""
    if tag == channel.reply_tag:
        channel.cancel_replies()
    consumer = channel.consumers.pop(tag, None)
    if consumer is not None:
        consumer.queue.unsubscribe(consumer)
    return methods.cancel_ok(tag)


def get(channel: Channel, method: Basic.Get) -> Reply | None:
    """Handle basic.get."""
    copy = usable_queue(channel, method.queue).get()
    if copy is None:
        return methods.GET_EMPTY
    channel.deliver_get(copy, acknowledges=not method.no_ack)
    return None


def ack(channel: Channel, method: Basic.Ack) -> None:
    """Handle basic.ack."""
    channel.settle(method.delivery_tag, Settlement.ACK, multiple=method.multiple)


def nack(channel: Channel, method: Basic.Nack) -> None:
    """Handle basic.nack."""
    settlement = Settlement.REQUEUE if method.requeue else Settlement.REJECT
    channel.settle(method.delivery_tag, settlement, multiple=method.multiple)


def reject(channel: Channel, method: Basic.Reject) -> None:
    """Handle basic.reject."""
    settlement = Settlement.RETURN if method.requeue else Settlement.REJECT
    channel.settle(method.delivery_tag or 0, settlement, multiple=False)


def recover(channel: Channel, method: Basic.Recover) -> Reply:
    """Handle basic.recover."""
    recover_async(channel, method)
    return methods.RECOVER_OK


def recover_async(channel: Channel, method: Basic.Recover | Basic.RecoverAsync) -> None:
    """Handle basic.recover-async: basic.recover without a reply."""
    if not method.requeue:
        raise Refusal("NOT_IMPLEMENTED", "requeue=false")
    channel.recover(Settlement.REQUEUE)


def _consume_replies(channel: Channel, method: Basic.Consume, tag: str) -> None:
    if channel.reply_tag is not None:
        raise Refusal("PRECONDITION_FAILED", "reply consumer already set")
    if not method.no_ack:
        raise Refusal("PRECONDITION_FAILED", "reply consumer cannot acknowledge")
    channel.consume_replies(tag)


def _new_consumer(channel: Channel, queue: Queue, method: Basic.Consume, tag: str) -> Consumer:
    if channel.prefetch_total and queue.arguments.quorum:
        raise Refusal("NOT_IMPLEMENTED", f"{queue.label} does not support global qos")
    priority = arguments(method).get("x-priority")
    if priority is not None and (fault := integer_fault(priority)):
        text = f"invalid arg 'x-priority' for {queue.label}: {fault}"
        raise Refusal("PRECONDITION_FAILED", text)
    refused = method.exclusive and (queue.consumers or queue.arguments.single_active_consumer)
    if refused or queue.in_exclusive_use:
        raise Refusal("ACCESS_REFUSED", f"{queue.label} in exclusive use")
    return Consumer(
        channel,
        queue,
        tag,
        acknowledges=not method.no_ack,
        exclusive=method.exclusive,
        prefetch=channel.prefetch,
        priority=priority.value if priority else 0,
    )
