"""The engine over HTTP: OpenAI-compatible servers, many conversations at once, each on one server."""

import asyncio
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

from specforge.config.steps import Regenerate
from specforge.regenerate.client import Client
from specforge.regenerate.engine import Block, Record
from specforge.regenerate.pool import Host, Pool
from specforge.regenerate.servers import LocalServer

ANSWER_SECONDS = 1800.0


class HttpEngine:
    """A conversation stays on the server that has its prefix cached, and moves only when that one dies or hangs.

    `servers` are ours, to be started again when they die, or base URLs, with or without /v1. `model` is the name
    that they know the target by, `opened` whether its prompts open a thought (see split_reasoning).
    """

    repeatable = False

    def __init__(
        self,
        servers: Sequence[str | LocalServer],
        model: str,
        settings: Regenerate,
        template_kwargs: dict[str, Any] | None = None,
        api_key: str | None = None,
        backoff: float = 0.5,
        patience: float = ANSWER_SECONDS,
        opened: bool | None = None,
    ):
        self.servers, self.settings = servers, settings
        self._client = lambda: Client(model, settings, template_kwargs or {}, api_key, backoff, patience, opened)

    def run(self, blocks: Iterable[Block]) -> Generator[Record, None, None]:
        """See Engine. Each conversation is yielded as it finishes; the servers rest while the caller does."""
        with asyncio.Runner() as runner:
            # Not runner.run: it registers a handler for Ctrl-C each time, which costs more than a request.
            call = runner.get_loop().run_until_complete
            pool = call(self._open(blocks))
            try:
                while rows := call(pool.rows()):
                    yield from rows
            finally:
                call(pool.close())

    async def _open(self, blocks: Iterable[Block]) -> Pool:
        hosts = [_host(server) for server in self.servers]
        return Pool(hosts, self._client(), self.settings, _missing(blocks))


def _missing(blocks: Iterable[Block]) -> Iterator[Record]:
    return (record for block in blocks for record in block.records if record["id"] not in block.done)


def _host(server: str | LocalServer) -> Host:
    if isinstance(server, LocalServer):
        return Host(server.url, server)
    return Host(server.rstrip("/").removesuffix("/v1"))
