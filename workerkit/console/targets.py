"""Processes at known addresses, over HTTP: for workers without RabbitMQ, and for `--processes`."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar
from pydantic import ValidationError
from pydantic_core import from_json

from workerkit.console.access import BEHALF
from workerkit.console.model import Command, CommandReport, CommandResult, Operator
from workerkit.console.reports import ProcessReport
from workerkit.console.sources import Answers
from workerkit.describe import describe_error
from workerkit.safe_text import one_line, without_credentials

_REPORT_DEADLINE = 1.0
_COMMAND_DEADLINE = 5.0
_LARGEST = 5 * 1024 * 1024
_OK = 200
_DENIED = (401, 403)


class Targets:
    """The source of the processes at some addresses.

    Args:
        urls: Returns the addresses of their ops ports; called each time.
        token: Sent to each of them; None for none.
    """

    def __init__(self, urls: Callable[[], Sequence[str]], token: str | None = None) -> None:
        self._urls = urls
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._client: ClientSession | None = None
        # The process that an address had last.
        self._known: dict[str, str] = {}

    async def reports(self) -> Answers:
        """Return the reports of all processes that answer within a second."""
        urls = list(dict.fromkeys(self._urls()))
        self._known = {url: known for url, known in self._known.items() if url in urls}
        found = await asyncio.gather(*map(self._report, urls))
        reports = [each for each in found if isinstance(each, ProcessReport)]
        problems = [each for each in found if isinstance(each, str)]
        answering = {each.id for each in reports}
        silent = [each for each in self._known.values() if each not in answering]
        return Answers(reports, silent, problems)

    async def execute(self, command: Command, operator: Operator) -> Sequence[CommandResult]:
        """Have a command executed by those of the processes that it is for."""
        if any(url not in self._known for url in self._urls()):
            await self.reports()
        # Two addresses may be those of the same process.
        wanted = {
            process: url
            for url, process in self._known.items()
            if command.processes is None or process in command.processes
        }
        return await asyncio.gather(
            *(self._execute(url, process, command, operator) for process, url in wanted.items())
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _report(self, url: str) -> ProcessReport | str:
        """Return the report of the process at an address, or what is wrong."""
        try:
            status, body = await self._request(
                "GET", f"{url}/api/v1/process", _REPORT_DEADLINE, self._headers
            )
            if status != _OK:
                return f"{_shown(url)}: {_refusal(status, body)}"
            report = ProcessReport.model_validate(from_json(body))
        except ValidationError:
            return f"{_shown(url)}: the answer is no report of a process"
        except (ClientError, TimeoutError, ValueError) as error:
            return f"{_shown(url)}: {_reason(error, _REPORT_DEADLINE)}"
        self._known[url] = report.id
        return report

    async def _execute(
        self, url: str, process: str, command: Command, operator: Operator
    ) -> CommandResult:
        body = command.model_copy(update={"processes": [process]}).model_dump_json()
        headers = {**self._headers, "Content-Type": "application/json"}
        if self._headers:
            headers[BEHALF] = json.dumps(operator.model_dump())
        try:
            status, answer = await self._request(
                "POST", f"{url}/api/v1/commands", _COMMAND_DEADLINE, headers, body
            )
            if status == _OK:
                results = CommandReport.model_validate_json(answer).results
                return next(each for each in results if each.process == process)
            text = _refusal(status, answer)
        except (ValidationError, StopIteration):
            text = "the answer is not about this process"
        except (ClientError, TimeoutError, ValueError) as error:
            text = _reason(error, _COMMAND_DEADLINE)
            return CommandResult(process=process, ok=False, answered=False, text=text)
        return CommandResult(process=process, ok=False, text=f"{_shown(url)}: {text}")

    async def _request(
        self,
        method: str,
        url: str,
        deadline: float,
        headers: Mapping[str, str],
        body: str | None = None,
    ) -> tuple[int, bytes]:
        """Return status and body.

        Raises:
            ClientError, TimeoutError: There was no answer.
            ValueError: The body is too large, or the URL is none.
        """
        if self._client is None:
            self._client = ClientSession(trust_env=False, cookie_jar=DummyCookieJar())
        async with self._client.request(
            method,
            url,
            data=body,
            headers=headers,
            allow_redirects=False,
            timeout=ClientTimeout(total=deadline),
        ) as response:
            read = bytearray()
            async for part in response.content.iter_any():
                read += part
                if len(read) > _LARGEST:
                    raise ValueError(f"the answer has more than {_LARGEST} bytes")
            return response.status, bytes(read)


def _shown(url: str) -> str:
    return without_credentials(url)


def _refusal(status: int, body: bytes) -> str:
    """Return what an error response says."""
    detail = ""
    try:
        problem: Any = from_json(body)
        if isinstance(problem, dict):
            detail = one_line(str(problem.get("detail") or problem.get("title") or "")[:200])
    except ValueError:
        pass  # Not a workerkit, or a proxy in between: the status says it.
    hint = "; set the token of the workers in OPS__TOKEN" if status in _DENIED else ""
    return f"status {status}{': ' if detail else ''}{detail}{hint}"


def _reason(error: Exception, deadline: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {deadline:g} s"
    return one_line(without_credentials(describe_error(error))[:300])
