"""Which exchange sends which message where."""

from typing import Any

from pamqp.commands import Exchange, Queue

from tests.contract.client import Channel, refused, table
from tests.contract.environment import Environment, Row


async def _bound(env: Environment, kind: str, *bindings: Any) -> Channel:
    """An exchange `e`, and for each binding, a key or a table of headers, a queue by its number."""
    channel = await env.channel()
    await channel.exchange("e", kind)
    for number, binding in enumerate(bindings):
        await channel.declare(str(number))
        headers = binding if isinstance(binding, dict) else {}
        await channel.bind(str(number), "e", "" if headers else binding or "", **headers)
    return channel


async def _reached(channel: Channel, queues: int, key: str = "", **headers: Any) -> list[int]:
    """Which of the numbered queues a message reaches; a queue twice if it gets it twice."""
    channel.publish(key, b"x", exchange="e", headers=table(headers))
    return [n for n in range(queues) for _ in await channel.drain(str(n))]


async def direct_compares_the_key(env: Environment) -> object:
    """A direct exchange sends to every queue bound with exactly that key."""
    channel = await _bound(env, "direct", "a", "a", "b", "", "a.*")
    return {key: await _reached(channel, 5, key) for key in ("a", "b", "", "A", "a.x")}


async def a_queue_gets_a_message_once(env: Environment) -> object:
    """Several bindings that match are one copy in the queue."""
    channel = await _bound(env, "topic", "#")
    await channel.bind("0", "e", "a.*")
    await channel.bind("0", "e", "a.b")
    return await _reached(channel, 1, "a.b")


async def fanout_ignores_the_key(env: Environment) -> object:
    """A fanout exchange sends to every queue."""
    channel = await _bound(env, "fanout", "a", "")
    return await _reached(channel, 2, "c")


async def topic_words(env: Environment) -> object:
    """`*` is exactly one word, `#` any number of them, and an empty word is a word."""
    patterns = ("#", "*", "a.*", "a.#", "#.b", "a.#.b", "*.*", "#.#", "*.#", "a..b", "")
    channel = await _bound(env, "topic", *patterns)
    keys = ("", "a", "b", "a.b", "a.x.b", "a..b", "a.", ".", "A.b", "a.x.y.b", "*", "#")
    return {
        key: " ".join(patterns[n] or "''" for n in await _reached(channel, len(patterns), key))
        for key in keys
    }


async def headers_all_is_the_default(env: Environment) -> object:
    """All pairs must match; other headers are ignored; `x-match` may be absent."""
    channel = await _bound(env, "headers", {"x-match": "all", "a": 1, "b": "2"}, {"a": 1}, {})
    return {
        "both": await _reached(channel, 3, a=1, b="2"),
        "both and more": await _reached(channel, 3, a=1, b="2", c=3),
        "one": await _reached(channel, 3, a=1),
        "other type": await _reached(channel, 3, a="1"),
        "none": await _reached(channel, 3),
    }


async def headers_any_is_one_of_them(env: Environment) -> object:
    """One pair is enough, but none is not."""
    channel = await _bound(env, "headers", {"x-match": "any", "a": 1, "b": 2}, {"x-match": "any"})
    return {
        "first": await _reached(channel, 2, a=1),
        "second": await _reached(channel, 2, b=2),
        "wrong": await _reached(channel, 2, a=2),
        "none": await _reached(channel, 2),
    }


async def headers_that_begin_with_x(env: Environment) -> object:
    """They are ignored, unless it is `all-with-x` or `any-with-x`."""
    channel = await _bound(
        env,
        "headers",
        {"x-match": "all", "x-a": 1, "b": 2},
        {"x-match": "all-with-x", "x-a": 1, "b": 2},
        {"x-match": "any", "x-a": 1, "b": 2},
        {"x-match": "any-with-x", "x-a": 1, "b": 2},
    )
    return {
        "x": await _reached(channel, 4, x_a=1),
        "b": await _reached(channel, 4, b=2),
        "both": await _reached(channel, 4, b=2, x_a=1),
    }


async def headers_without_a_value(env: Environment) -> object:
    """A pair without a value matches any value of that header."""
    channel = await _bound(env, "headers", {"x-match": "all", "a": None})
    return await _reached(channel, 1, a="anything"), await _reached(channel, 1, b=1)


async def headers_with_numbers(env: Environment) -> object:
    """Numbers are compared by value, a boolean is none; since 4.0 an integer is never a float."""
    channel = await _bound(env, "headers", {"a": 5}, {"a": 70000}, {"a": True})
    return [
        await _reached(channel, 3, a=5),
        await _reached(channel, 3, a=70000),
        await _reached(channel, 3, a=True),
        await _reached(channel, 3, a=1),
        await _reached(channel, 3, a=5.0),
    ]


async def headers_with_a_wrong_match_are_406(env: Environment) -> object:
    """`x-match` has four values."""
    channel = await _bound(env, "headers")
    await channel.declare("q")
    return await refused(channel.bind("q", "e", x_match="some"))


async def exchange_to_exchange(env: Environment) -> object:
    """An exchange bound to another gets what matches, with the original key and exchange."""
    channel = await _bound(env, "topic", "a.*")
    await channel.exchange("source", "topic")
    await channel.chain("e", "source", "#.b")
    channel.publish("a.b", b"through", exchange="source")
    channel.publish("a.c", b"stopped", exchange="source")
    message = await channel.take("0")
    method = message.method
    return message.body, method.exchange, method.routing_key, await channel.drain("0")


async def a_cycle_of_exchanges_ends(env: Environment) -> object:
    """Exchanges bound in a cycle deliver once."""
    channel = await _bound(env, "fanout", "")
    await channel.exchange("f", "fanout")
    await channel.chain("f", "e")
    await channel.chain("e", "f")
    await channel.bind("0", "f")
    return await _reached(channel, 1)


async def an_unbound_exchange_gets_nothing(env: Environment) -> object:
    """After exchange.unbind, no message is routed."""
    channel = await _bound(env, "fanout", "")
    await channel.exchange("source", "fanout")
    await channel.chain("e", "source")
    await channel.call(Exchange.Unbind(0, "e", "source", ""))
    channel.publish("", b"x", exchange="source")
    return await channel.drain("0")


async def an_alternate_exchange_takes_what_matches_nothing(env: Environment) -> object:
    """Only messages without a matching binding go to the alternate exchange, or to the next one."""
    channel = await env.channel()
    await channel.exchange("first", "direct", alternate_exchange="second")
    await channel.exchange("second", "direct", alternate_exchange="last")
    await channel.exchange("last", "fanout")
    for exchange, queue in (("first", "1"), ("second", "2"), ("last", "3")):
        await channel.declare(queue)
        await channel.bind(queue, exchange, queue)
    for key in ("1", "2", "other"):
        channel.publish(key, key.encode(), exchange="first", mandatory=True)
    return [await channel.drain(queue) for queue in "123"], channel.waiting()


async def a_missing_alternate_exchange_is_ignored(env: Environment) -> object:
    """A message without a matching queue, and with a missing alternate exchange, is unroutable."""
    channel = await env.channel()
    await channel.exchange("e", "direct", alternate_exchange="nowhere")
    channel.publish("k", b"x", exchange="e", mandatory=True)
    return (await channel.message()).method.reply_code


async def the_default_exchange_knows_every_queue(env: Environment) -> object:
    """A message to the default exchange reaches the queue named by the key, until it is gone."""
    channel = await env.channel()
    await channel.declare("q")
    channel.publish("q", b"x", mandatory=True)
    message = await channel.take("q")
    return message.body, message.method.exchange, message.method.routing_key


async def bindings_are_idempotent(env: Environment) -> object:
    """The same binding twice is one; unbinding what is not bound does no harm."""
    channel = await _bound(env, "direct", "a")
    await channel.bind("0", "e", "a")
    twice = await _reached(channel, 1, "a")
    await channel.unbind("0", "e", "never")
    await channel.unbind("0", "e", "a")
    return twice, await _reached(channel, 1, "a")


async def bindings_differ_by_arguments(env: Environment) -> object:
    """One key with two tables is two bindings, and each has to be removed."""
    channel = await _bound(env, "direct", "a")
    await channel.bind("0", "e", "a", x=1)
    await channel.unbind("0", "e", "a")
    left = await _reached(channel, 1, "a")
    await channel.unbind("0", "e", "a", x=1)
    return left, await _reached(channel, 1, "a")


async def binding_what_is_missing_is_404(env: Environment) -> object:
    """Queue and exchange must exist; the exchange is looked at first."""
    channel = await env.channel()
    await channel.declare("q")
    await channel.exchange("e")
    results = []
    for queue, exchange in (("q", "nowhere"), ("nothing", "e"), ("nothing", "nowhere")):
        channel = await channel.client.channel()
        results.append(await refused(channel.bind(queue, exchange)))
    channel = await channel.client.channel()
    return [*results, await refused(channel.chain("e", "nowhere"))]


async def unbinding_what_is_missing_is_no_error(env: Environment) -> object:
    """A queue or exchange that is not there has no bindings, which is the requested state."""
    channel = await env.channel()
    await channel.declare("q")
    return await refused(channel.unbind("q", "nowhere")), await refused(channel.unbind("p", "e"))


async def a_deleted_queue_loses_its_bindings(env: Environment) -> object:
    """A queue declared again under its name is bound to nothing."""
    channel = await _bound(env, "fanout", "")
    await channel.call(Queue.Delete(0, "0"))
    await channel.declare("0")
    return await _reached(channel, 1)


ROWS = [
    Row(direct_compares_the_key, {"a": [0, 1], "b": [2], "": [3], "A": [], "a.x": []}),
    Row(a_queue_gets_a_message_once, [0]),
    Row(fanout_ignores_the_key, [0, 1]),
    Row(
        topic_words,
        {
            "": "# #.# ''",
            "a": "# * a.# #.# *.#",
            "b": "# * #.b #.# *.#",
            "a.b": "# a.* a.# #.b a.#.b *.* #.# *.#",
            "a.x.b": "# a.# #.b a.#.b #.# *.#",
            "a..b": "# a.# #.b a.#.b #.# *.# a..b",
            "a.": "# a.* a.# *.* #.# *.#",
            ".": "# *.* #.# *.#",
            "A.b": "# #.b *.* #.# *.#",
            "a.x.y.b": "# a.# #.b a.#.b #.# *.#",
            "*": "# * #.# *.#",
            "#": "# * #.# *.#",
        },
    ),
    Row(
        headers_all_is_the_default,
        {
            "both": [0, 1, 2],
            "both and more": [0, 1, 2],
            "one": [1, 2],
            "other type": [2],
            "none": [2],
        },
    ),
    Row(headers_any_is_one_of_them, {"first": [0], "second": [0], "wrong": [], "none": []}),
    Row(headers_that_begin_with_x, {"x": [3], "b": [0, 2, 3], "both": [0, 1, 2, 3]}),
    Row(headers_without_a_value, ([0], [])),
    Row(headers_with_numbers, [[0], [1], [2], [], [0]], {"4.0": [[0], [1], [2], [], []]}),
    Row(
        headers_with_a_wrong_match_are_406,
        (
            'channel 406: PRECONDITION_FAILED - Invalid x-match field value <<"some">>; '
            "expected all, any, all-with-x, or any-with-x"
        ),
    ),
    Row(exchange_to_exchange, (b"through", "source", "a.b", [])),
    Row(a_cycle_of_exchanges_ends, [0]),
    Row(an_unbound_exchange_gets_nothing, []),
    Row(an_alternate_exchange_takes_what_matches_nothing, ([[b"1"], [b"2"], [b"other"]], [])),
    Row(a_missing_alternate_exchange_is_ignored, 312),
    Row(the_default_exchange_knows_every_queue, (b"x", "", "q")),
    Row(bindings_are_idempotent, ([0], [])),
    Row(bindings_differ_by_arguments, ([0], [])),
    Row(
        binding_what_is_missing_is_404,
        [
            "channel 404: NOT_FOUND - no exchange 'nowhere' in vhost 'V'",
            "channel 404: NOT_FOUND - no queue 'nothing' in vhost 'V'",
            "channel 404: NOT_FOUND - no exchange 'nowhere' in vhost 'V'",
            "channel 404: NOT_FOUND - no exchange 'nowhere' in vhost 'V'",
        ],
    ),
    Row(unbinding_what_is_missing_is_no_error, (None, None)),
    Row(a_deleted_queue_loses_its_bindings, []),
]
