"""The engine over HTTP: OpenAI-compatible servers, many conversations at once, each on one server."""

import asyncio
import logging
import random
from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import httpx

from specforge.config.steps import Regenerate
from specforge.errors import UserError
from specforge.files import digest
from specforge.regenerate.engine import Completion, Dialogue

log = logging.getLogger("specforge")

ATTEMPTS = 6
ANSWER_SECONDS = 1800.0
TOO_MANY_REQUESTS = 429
HERE = ("127.0.0.1", "localhost")

Record = dict[str, Any]


class FailedTurn(Exception):
    """This conversation cannot go on; others can."""


@dataclass
class Server:
    """One endpoint: its conversations at this moment, and whether it stopped answering for good."""

    url: str
    load: int = 0
    gone: bool = False


class HttpEngine:
    """A conversation stays on the server that has its prefix cached, and moves only when that one dies.

    `servers` are base URLs, with or without /v1. `model` is the name that the servers know the target by.
    """

    repeatable = False

    def __init__(
        self,
        servers: Sequence[str],
        model: str,
        settings: Regenerate,
        api_key: str | None = None,
        backoff: float = 0.5,
    ):
        self.servers = [Server(url.rstrip("/").removesuffix("/v1")) for url in servers]
        self.model, self.settings, self.backoff = model, settings, backoff
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def run(self, records: Iterable[Record], done: Container[str]) -> Generator[Record, None, None]:
        """See Engine. Each conversation is yielded as it finishes; the servers rest while the caller does."""
        waiting = (record for record in records if record["id"] not in done)
        running: set[asyncio.Task] = set()
        with asyncio.Runner() as runner:
            loop, client = runner.get_loop(), self._client()
            try:
                while True:
                    room = max(self._capacity() - len(running), 0)
                    running |= {loop.create_task(self._converse(client, r)) for r in islice(waiting, room)}
                    if not running:
                        return
                    finished, running = runner.run(_first(running))
                    # What is finished is kept, also when another one has to end the run.
                    for task in sorted(finished, key=lambda task: task.exception() is not None):
                        yield task.result()
            finally:
                runner.run(_abandon(running, client))

    def _client(self) -> httpx.AsyncClient:
        # A proxy of the environment is for the world outside, not for servers on this machine.
        direct = {f"all://{host}": None for host in HERE}
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=10.0, pool=None)
        return httpx.AsyncClient(headers=self._headers, timeout=timeout, limits=httpx.Limits(), mounts=direct)

    def _capacity(self) -> int:
        return self.settings.concurrency * sum(not server.gone for server in self.servers)

    @contextmanager
    def _seat(self) -> Iterator[Server]:
        """The least loaded server that still answers. Raises UserError when there is none."""
        server = min((s for s in self.servers if not s.gone), key=lambda s: s.load, default=None)
        if server is None:
            urls = ", ".join(server.url for server in self.servers)
            raise UserError(f"no server answers any more ({urls}); start them and run again to continue.")
        server.load += 1
        try:
            yield server
        finally:
            server.load -= 1

    async def _converse(self, client: httpx.AsyncClient, record: Record) -> Record:
        dialogue = Dialogue(record)
        while dialogue.due:
            with self._seat() as server:
                await self._continue(client, server, dialogue)
        return dialogue.row()

    async def _continue(self, client: httpx.AsyncClient, server: Server, dialogue: Dialogue) -> None:
        """Turn after turn on one server, to the end of the conversation or of the server."""
        try:
            while dialogue.due:
                dialogue.answer(await self._complete(client, server, dialogue))
        except FailedTurn as error:
            dialogue.fail(str(error))
        except httpx.TransportError as error:
            if not server.gone:
                log.warning("%s stopped answering (%s); its conversations move on", server.url, _name(error))
            server.gone = True

    async def _complete(self, client: httpx.AsyncClient, server: Server, dialogue: Dialogue) -> Completion:
        """One turn, tried again while the fault may pass. Raises FailedTurn or httpx.TransportError."""
        body = self._body(dialogue)
        for attempt in range(1, ATTEMPTS + 1):
            last = attempt == ATTEMPTS
            try:
                response = await client.post(f"{server.url}/v1/chat/completions", json=body)
            except httpx.ReadTimeout:
                # The server lives; it is this conversation that takes too long.
                raise FailedTurn(f"no answer within {ANSWER_SECONDS:.0f} s") from None
            except httpx.TransportError:
                if last or server.gone:
                    raise
            else:
                if response.is_success:
                    return _completion(response)
                passing = response.status_code == TOO_MANY_REQUESTS or response.is_server_error
                if last or not passing:
                    raise FailedTurn(_complaint(response))
            await asyncio.sleep(self.backoff * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
        raise AssertionError("the last attempt returns or raises")

    def _body(self, dialogue: Dialogue) -> dict[str, Any]:
        settings = self.settings
        seed = int(digest(settings.seed, dialogue.record["id"], len(dialogue.turns))[:8], 16) >> 1
        body = {
            "model": self.model,
            "messages": dialogue.messages(),
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
            "seed": seed,
        }
        return body | {"tools": dialogue.tools} if dialogue.tools else body


async def _first(running: set[asyncio.Task]) -> tuple[set[asyncio.Task], set[asyncio.Task]]:
    return await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)


async def _abandon(running: set[asyncio.Task], client: httpx.AsyncClient) -> None:
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await client.aclose()


def _completion(response: httpx.Response) -> Completion:
    try:
        content = response.json()
        choice, usage = content["choices"][0], content.get("usage") or {}
        text, reason = choice["message"].get("content") or "", choice.get("finish_reason") or "unknown"
    except (ValueError, LookupError, TypeError, AttributeError):
        raise FailedTurn(f"the answer is no chat completion: {response.text[:200]!r}") from None
    return Completion(text, reason, usage.get("completion_tokens") or 0)


def _complaint(response: httpx.Response) -> str:
    """The status and the server's own words, which servers put in different places."""
    try:
        content = response.json()
    except ValueError:
        content = None
    words = content if isinstance(content, dict) else {}
    error = words.get("error")
    said = error.get("message") if isinstance(error, dict) else error
    said = said or words.get("message") or words.get("detail") or response.text
    return f"HTTP {response.status_code}: {str(said)[:300] or response.reason_phrase}"


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
