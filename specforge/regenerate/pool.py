"""Who talks to whom: conversations on servers, and servers that die, come back, or do not."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from specforge.config.steps import Regenerate
from specforge.errors import UserError
from specforge.regenerate.client import Client, FailedTurn, ServerTrouble
from specforge.regenerate.engine import Dialogue, Record
from specforge.regenerate.servers import POLL_SECONDS, START_SECONDS, LocalServer, answers

log = logging.getLogger("specforge")

MOVES = 3  # of one conversation: it may be what the servers die of
STRIKES = 3  # conversations in a row that a server leaves without an answer
RESTARTS = 3  # in a row, without an answer between them
PROBE_SECONDS = 5.0


@dataclass
class Host:
    """A server, ours if it has a process, with its conversations at this moment and its record."""

    endpoint: str
    local: LocalServer | None = None
    load: int = 0
    gone: bool = False
    strikes: int = 0
    restarts: int = 0
    returning: bool = False

    @property
    def url(self) -> str:
        return self.local.url if self.local else self.endpoint

    def left(self, url: str) -> bool:
        """Whether it no longer answers at `url`: after a restart it has another."""
        return self.gone or self.url != url or (self.local is not None and self.local.dead)


class Talk(NamedTuple):
    """A conversation without a server, how often it moved, and the server that it left."""

    dialogue: Dialogue
    moves: int = 0
    left: Host | None = None


class Pool:
    """Keeps every server busy with `concurrency` conversations, each of which stays where its prefix is cached.

    A conversation moves only when its server dies, hangs or has nothing but faults for it, and not back while there is
    another. Used inside one event loop.
    """

    def __init__(self, hosts: list[Host], client: Client, settings: Regenerate, waiting: Iterator[Record]):
        self.hosts, self.client, self.settings, self._waiting = hosts, client, settings, waiting
        self._moved: deque[Talk] = deque()
        self._stays: set[asyncio.Task] = set()
        self._returns: set[asyncio.Task] = set()
        self._rows: list[Record] = []
        self._defect: BaseException | None = None
        self._wake = asyncio.Event()

    async def rows(self) -> list[Record]:
        """The rows that are finished, as soon as there are any; none at the end of all conversations.

        Raises UserError when no server answers any more and none is on its way back.
        """
        while True:
            self._seat()
            if self._rows:
                await asyncio.sleep(0)  # what was just seated is asked for before the caller gets busy with the rows
                rows, self._rows = self._rows, []
                return rows
            if self._defect:
                raise self._defect
            if not self._stays:
                if not self._any_left():
                    return []
                if not any(host.returning or not host.gone for host in self.hosts):
                    raise _none_left(self.hosts)
            self._wake.clear()
            await self._wake.wait()

    async def close(self) -> None:
        for task in (tasks := [*self._stays, *self._returns]):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.client.close()

    def _seat(self) -> None:
        while seat := self._free():
            host, talk = seat
            host.load += 1
            task = asyncio.create_task(self._stay(host, talk))
            self._stays.add(task)
            task.add_done_callback(self._leave)

    def _free(self) -> tuple[Host, Talk] | None:
        """The host with the most room, and who goes there."""
        room = [host for host in self.hosts if not host.gone and host.load < self.settings.concurrency]
        for host in sorted(room, key=lambda host: host.load):
            if talk := self._next(host):
                return host, talk
        return None

    def _next(self, host: Host) -> Talk | None:
        for place, talk in enumerate(self._moved):
            if talk.left is not host or not self._others(host):
                del self._moved[place]
                return talk
        return self._new()

    def _new(self) -> Talk | None:
        record = next(self._waiting, None)
        return None if record is None else Talk(Dialogue(record, self.settings.keep_truncated))

    def _any_left(self) -> bool:
        if not self._moved and (talk := self._new()):
            self._moved.append(talk)
        return bool(self._moved)

    def _leave(self, task: asyncio.Task) -> None:
        self._stays.discard(task)
        if not task.cancelled() and task.exception():
            self._defect = task.exception()
        self._wake.set()

    async def _stay(self, host: Host, talk: Talk) -> None:
        """Turn after turn on one server, to the end of the conversation or of the server."""
        url, dialogue = host.url, talk.dialogue
        try:
            while dialogue.due:
                completion = await self.client.complete(url, dialogue, lambda: host.left(url))
                host.strikes = host.restarts = 0
                dialogue.answer(completion)
        except FailedTurn as failure:
            (dialogue.refuse if failure.refused else dialogue.fail)(str(failure))
        except ServerTrouble as trouble:
            if trouble.kind == "lost":
                self._lose(host, url, str(trouble))
            elif trouble.kind != "busy":
                self._strike(host, url, str(trouble))
            if talk.moves < MOVES and (trouble.kind == "lost" or host.returning or self._others(host)):
                self._moved.append(Talk(dialogue, talk.moves + 1, host))
                return
            dialogue.fail(str(trouble))
        finally:
            host.load -= 1
        self._rows.append(dialogue.row())

    def _others(self, host: Host) -> bool:
        return any(other is not host and not other.gone for other in self.hosts)

    def _strike(self, host: Host, url: str, cause: str) -> None:
        host.strikes += 1
        if host.strikes >= STRIKES:
            self._lose(host, url, cause)

    def _lose(self, host: Host, url: str, cause: str) -> None:
        if host.gone or host.url != url:
            return
        log.warning("%s does not answer any more (%s); its conversations move on", url, cause)
        host.gone, host.returning = True, host.local is not None
        task = asyncio.create_task(self._return(host))
        self._returns.add(task)
        task.add_done_callback(self._returns.discard)

    async def _return(self, host: Host) -> None:
        """A server of ours is started again; another's is asked now and then whether somebody did that."""
        back = await (self._restarted(host, host.local) if host.local else self._seen(host))
        host.gone, host.returning, host.strikes = not back, False, 0
        if back:
            log.info("%s answers again", host.url)
        self._wake.set()

    async def _restarted(self, host: Host, server: LocalServer) -> bool:
        while host.restarts < RESTARTS:
            host.restarts += 1
            await asyncio.to_thread(server.restart)
            try:
                async with asyncio.timeout(START_SECONDS):
                    while not await asyncio.to_thread(server.healthy):
                        await asyncio.sleep(POLL_SECONDS)
                return True
            except UserError as error:
                log.warning("%s", error)
            except TimeoutError:
                log.warning("%s was not ready after %.0f s", server.url, START_SECONDS)
        log.warning("the server that writes to %s died %d times in a row and is left out", server.log, RESTARTS)
        return False

    async def _seen(self, host: Host) -> bool:
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            if await asyncio.to_thread(answers, host.url):
                return True


def _none_left(hosts: list[Host]) -> UserError:
    urls = ", ".join(host.url for host in hosts)
    logs = ", ".join(str(host.local.log) for host in hosts if host.local)
    way_out = f"their last words are in {logs}; mend that" if logs else "start them"
    return UserError(f"no server answers any more ({urls}); {way_out} and run again to continue.")
