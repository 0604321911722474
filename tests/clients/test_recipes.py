"""The recipes of docs/how-to that need another framework: FastAPI, Django."""

import json
import re
import sqlite3
import sys
from pathlib import Path
from signal import SIGTERM

import aiohttp

from tests.clients.application import ROOT
from tests.clients.broker_process import BrokerProcess
from tests.command import process, running
from tests.ports import free_port
from tests.publishing import publishing
from tests.waiting import eventually
from workerkit import Unroutable

_SETTINGS = """
SECRET_KEY = "of a test"
INSTALLED_APPS = ["project"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.db"}}
USE_TZ = True
"""
_MODELS = """
from django.db import models

class Booking(models.Model):
    order_id = models.IntegerField(unique=True)

    class Meta:
        app_label = "project"
        db_table = "bookings"
"""


def write_files(page: str, directory: Path) -> None:
    """Write the blocks of a page that begin with the name of a file."""
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text()
    for name, block in re.findall(
        r"^```py(?:thon)?\n# (\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    ):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)


async def test_consumers_run_inside_fastapi(own_broker: BrokerProcess, tmp_path: Path) -> None:
    """A request publishes an order, which the consumer in the same process books."""
    write_files("fastapi", tmp_path)
    (tmp_path / "shop" / "__init__.py").touch()
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "shop.api:app", "--port", str(port)]

    async with process(
        *command,
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
        PYTHONUNBUFFERED="1",
        WORKERKIT_AMQP__DEFAULT__URL=own_broker.url,
    ) as application:
        await application.says("Application startup complete")
        async with aiohttp.ClientSession() as session:
            address = f"http://127.0.0.1:{port}/orders"
            async with session.post(address, json={"id": 7}) as response:
                assert response.status == 202, await response.text()
                assert (await response.json())["message_id"]
        await application.says("booked 7")
        application.send(SIGTERM)
        code = await application.ended()

    assert (code in (0, -SIGTERM), application.out.count("booked 7")) == (True, 1)


async def test_a_consumer_uses_the_orm_of_django(own_broker: BrokerProcess, tmp_path: Path) -> None:
    """A message that comes twice is booked once, in threads with connections of their own."""
    write_files("django", tmp_path)
    for name, text in {"__init__": "", "settings": _SETTINGS, "models": _MODELS}.items():
        path = tmp_path / "project" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("CREATE TABLE bookings (id INTEGER PRIMARY KEY, order_id INTEGER UNIQUE)")
    database.close()

    def booked() -> list[int]:
        with sqlite3.connect(tmp_path / "shop.db") as database:
            rows = database.execute("SELECT order_id FROM bookings ORDER BY order_id").fetchall()
        database.close()
        return [number for (number,) in rows]

    async with (
        running("shop", cwd=tmp_path, WORKERKIT_AMQP__DEFAULT__URL=own_broker.url) as application,
        publishing(own_broker.url) as publisher,
    ):

        async def published() -> bool:
            try:
                await publisher.publish(json.loads('{"id": 1}'), "orders")
            except Unroutable:
                return False
            return True

        await eventually(published, what="the queue")
        for number in (1, 2, 3):
            await publisher.publish({"id": number}, "orders")
        await eventually(lambda: booked() == [1, 2, 3], what=repr(application))
        application.send(SIGTERM)
        assert await application.ended() == 0, repr(application)
