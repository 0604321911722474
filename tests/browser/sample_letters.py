"""Sample dead letters for the console's page, as the API has them."""

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from workerkit.console.dead_letters.model import (
    BodyAsModel,
    DeleteRequest,
    Job,
    Letter,
    LetterDetail,
    LetterGroup,
    LetterGroups,
    LetterPage,
    LetterQueue,
    LetterSelection,
    QueueRef,
    ReplayRequest,
)

KINDS = (
    ("payments.captured", "PaymentCaptured", "Timeout", "no answer within 5 s", "pay.py:88", 214),
    ("payments.captured", "PaymentCaptured", "KeyError", "'currency'", "pay.py:31", 23),
    ("mail.outgoing", "EmailQueued", "SMTPDataError", "(550, 'no such user')", "mail.py:41", 68),
    ("orders.placed", "OrderPlaced", "InvalidBody", "lines.0.amount: too small", "", 7),
)


def json_of(value: Any, status: int = 200) -> web.Response:
    """Return a response with a model, or a list of models."""
    plain = [each.model_dump(mode="json") for each in value] if isinstance(value, list) else value
    if isinstance(plain, BaseModel):
        plain = plain.model_dump(mode="json")
    return web.json_response(plain, status=status)


def responding(create: Callable[[Any], Any]) -> Callable[[web.Request], Any]:
    """Return a handler that responds with what is created from the query."""

    async def respond(request: web.Request) -> web.Response:
        return json_of(create(request.query))

    return respond


class SampleLetters:
    """Dead letters of some queues, and jobs that end at once.

    Attributes:
        letters: By queue, the oldest first.
    """

    def __init__(self) -> None:
        self.letters: dict[str, list[Letter]] = {}
        self.jobs: list[Job] = []
        now = datetime.now(UTC)
        for queue, consumer, error, reason, place, count in KINDS:
            for number in range(count):
                at = now - timedelta(minutes=(count - number) * 3)
                body = json.dumps({"id": number, "amount": number * 7, "note": "<b>hi</b>"})
                found = self.letters.setdefault(queue, [])
                found.append(
                    Letter(
                        key=f"{queue}-{error}-{number}",
                        position=len(found),
                        group=f"{consumer}-{error}",
                        message_id=f"msg-{random.randrange(10**8):08d}",
                        consumer=consumer,
                        error=error,
                        reason=reason,
                        place=place,
                        attempt=5,
                        failed_at=at,
                        first_failed_at=at - timedelta(minutes=2),
                        size=len(body),
                        content_type="application/json",
                        exchange="shop",
                        routing_key=queue,
                        excerpt=body,
                    )
                )

    def count(self, queue: str) -> int:
        """Return the number of dead letters of a queue."""
        return len(self.letters.get(queue, ()))

    def add_routes(self, application: web.Application) -> None:
        """Add the API."""
        get, post = application.router.add_get, application.router.add_post
        root = "/api/v1/dead-letters"
        get(root, responding(lambda query: self._queues()))
        get(f"{root}/page", responding(self._page))
        get(f"{root}/groups", responding(self._groups))
        get(f"{root}/letter", responding(self._letter))
        get("/api/v1/jobs", responding(lambda query: self.jobs))

        async def start(request: web.Request) -> web.Response:
            model = ReplayRequest if request.path.endswith("replay") else DeleteRequest
            given = model.model_validate_json(await request.read())
            return json_of(self._start(given), 202)

        post(f"{root}/replay", start)
        post(f"{root}/delete", start)

    def _queues(self) -> list[LetterQueue]:
        return [
            LetterQueue(
                queue=queue,
                connection="default",
                vhost="/",
                name=f"{queue}.dead",
                consumers=sorted({each.consumer or "" for each in letters}),
                count=len(letters),
            )
            for queue, letters in self.letters.items()
        ]

    def _matching(self, query: Any) -> list[Letter]:
        found = self.letters.get(query["queue"], [])
        for name in ("group", "consumer", "error", "message_id"):
            if query.get(name):
                found = [each for each in found if getattr(each, name) == query[name]]
        if query.get("text"):
            found = [each for each in found if query["text"].lower() in (each.reason or "").lower()]
        return found

    def _page(self, query: Any) -> LetterPage:
        position, limit = int(query.get("position", 0)), int(query.get("limit", 50))
        found = [each for each in self._matching(query) if each.position >= position]
        after = found[limit].position if len(found) > limit else None
        count = self.count(query["queue"])
        return LetterPage(letters=found[:limit], next=after, scanned=count, count=count)

    def _groups(self, query: Any) -> LetterGroups:
        groups: dict[str, list[Letter]] = {}
        for each in self._matching(query):
            groups.setdefault(each.group, []).append(each)
        now = datetime.now(UTC)
        made = [
            LetterGroup(
                id=id_,
                consumer=letters[0].consumer,
                error=letters[0].error,
                place=letters[0].place,
                reason=letters[-1].reason,
                count=len(letters),
                first=letters[0].failed_at,
                last=letters[-1].failed_at,
                counts=[random.randrange(9) for _ in range(24)],
            )
            for id_, letters in groups.items()
        ]
        count = self.count(query["queue"])
        start = now - timedelta(hours=24)
        return LetterGroups(groups=made, start=start, interval=3600.0, scanned=count, count=count)

    def _letter(self, query: Any) -> LetterDetail:
        found = next(each for each in self.letters[query["queue"]] if each.key == query["key"])
        return LetterDetail(
            **found.model_dump(),
            headers={"x-error": found.error, "traceparent": "00-4bf92f-00f067-01"},
            properties={"delivery_mode": 2},
            traceback=f'Traceback (most recent call last):\n  File "pay.py"\n{found.error}',
            text=found.excerpt,
            pretty=json.dumps(json.loads(found.excerpt), indent=2),
            hex=found.excerpt.encode().hex(" "),
            model=BodyAsModel(type="Payment", value=found.excerpt),
        )

    def _start(self, given: ReplayRequest | DeleteRequest) -> Job:
        found = self._selected(given.queue, given.selection)
        gone = {each.key for each in found}
        letters = self.letters[given.queue.queue]
        letters[:] = [each for each in letters if each.key not in gone]
        now = datetime.now(UTC)
        job = Job(
            id=f"job-{len(self.jobs) + 1}",
            kind="replay" if isinstance(given, ReplayRequest) else "delete",
            queue=given.queue,
            state="done",
            text=f"{len(found)} messages",
            total=len(found),
            done=len(found),
            started=now,
            ended=now,
            user="loopback",
        )
        self.jobs.insert(0, job)
        return job

    def _selected(self, queue: QueueRef, selection: LetterSelection) -> list[Letter]:
        if selection.keys is not None:
            return [each for each in self.letters[queue.queue] if each.key in selection.keys]
        conditions = selection.filter.model_dump(exclude_none=True) if selection.filter else {}
        return self._matching({"queue": queue.queue, **conditions})
