"""Run the service, all that it needs, and simulated customers: `make demo`. Ctrl-C stops it.

It leaves nothing behind. `SHOP_DATABASE_URL` names another database than a temporary file.
"""

import asyncio
import http.client
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from itertools import count
from tempfile import TemporaryDirectory
from typing import Any

import workerkit.testing

from shop.container import Container
from shop.orders import Order

ITEMS = ("tea", "coffee", "sugar", "a cup", "a spoon")
PAUSE = 0.6
# Later ones than those of an earlier demo with the same database.
IDS = count(int(time.time()) * 1000)

Customer = Callable[[Order], Awaitable[object]]


def main() -> None:
    """Run until Ctrl-C."""
    print("Each line with `handled` is an order or a notification. Ctrl-C stops it.", flush=True)
    # INFO is enough for all others.
    logging.getLogger("workerkit.observe").setLevel(logging.DEBUG)
    with TemporaryDirectory() as directory, suppress(KeyboardInterrupt), surroundings():
        database = f"sqlite:///{directory}/orders.db"
        os.environ.setdefault("SHOP_DATABASE_URL", database)
        workerkit.Runner(Container(), packages=["shop"]).run()


@contextmanager
def surroundings() -> Iterator[None]:
    """Run what the service needs, and its customers, in another thread inside the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    stack = AsyncExitStack()

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    try:
        run(surround(stack))
        yield
    finally:
        run(stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def surround(stack: AsyncExitStack) -> None:
    """Start everything, and name it in the settings; *stack* stops it."""
    customers: list[Customer] = []
    ops = free_port()
    os.environ |= {
        "SHOP_LOG__FORMAT": "text",
        "SHOP_OPS__PORT": str(ops),
        "SHOP_SHUTDOWN_GRACE": "5",
    }
    # with amqp
    broker = await stack.enter_async_context(workerkit.testing.embedded_broker())
    os.environ["SHOP_AMQP__DEFAULT__URL"] = broker.url
    print("To place an order by a message:")
    print(f"""  workerkit publish {broker.url} orders '{{"id": 1, "item": "tea"}}'""", flush=True)
    settings = {"amqp": {"default": {"url": broker.url}}}
    publisher = workerkit.Publisher()
    publisher.open(workerkit.WorkerSettings.model_validate(settings))
    stack.push_async_callback(publisher.close)
    customers.append(lambda order: publisher.publish(order, "orders"))
    # end
    # with http
    listener = listen()
    port = listener.getsockname()[1]
    # The worker takes the socket, so no other process can take the port.
    os.environ["SHOP_HTTP__PORT"] = str(port)
    os.environ["SHOP_HTTP__FDS"] = str(listener.detach())
    print(f"The page is at http://127.0.0.1:{port}/", flush=True)
    customers.append(
        lambda order: asyncio.to_thread(
            request, port, "PUT", f"/orders/{order.id}", order.model_dump_json()
        )
    )
    # end
    # with http and sse
    os.environ["SHOP_SSE__SHOP__URL"] = f"http://127.0.0.1:{port}"
    # end
    # with sse without http
    if "SHOP_SSE__SHOP__URL" not in os.environ:
        # Another service that streams orders.
        server = await stack.enter_async_context(workerkit.testing.sse_server())
        os.environ["SHOP_SSE__SHOP__URL"] = server.url
        customers.append(lambda order: server.send(order, name="booked"))
    # end
    buying = asyncio.create_task(buy(customers, ops))
    stack.push_async_callback(asyncio.wait, [buying])
    stack.callback(buying.cancel)


async def buy(customers: list[Customer], ops: int) -> None:
    """Let the customers place orders, one after the other, when the service is ready."""
    status = 0
    while status != 200:
        await asyncio.sleep(PAUSE)
        status = await asyncio.to_thread(request, ops, "GET", "/health/ready")
    print("ready", flush=True)
    while customers:
        for customer in customers:
            order = Order(id=next(IDS), item=random.choice(ITEMS), quantity=random.randint(1, 9))
            with suppress(workerkit.PublishError):
                await customer(order)
            await asyncio.sleep(PAUSE)


def request(port: int, method: str, path: str, body: str | None = None) -> int:
    """Return the status of a response of the service, or 0 if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


# with http
def listen() -> socket.socket:
    """Listen on port 8080, or on a free port if another process uses that one."""
    try:
        return socket.create_server(("127.0.0.1", 8080))
    except OSError:
        return socket.create_server(("127.0.0.1", 0))


# end
def free_port() -> int:
    """Return a port that no other process uses at the moment."""
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        port: int = candidate.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
