"""Conversations to the cache's record batches, on as many processes as wanted: the same bytes whatever their number.

The records are taken in chunks of a fixed number, each is tokenized on its own, and the results come in the records'
order. Only a few chunks are held at a time.
"""

import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from queue import SimpleQueue

import msgspec

from specforge.data.tokenizing import Recipe, Record, Result, Tokenizing
from specforge.data.worker import receive, send, unpacked
from specforge.errors import UserError

CHUNK = 128  # conversations; never a function of the number of processes
AHEAD = 2  # chunks that wait for each process


def tokenize(records: Iterable[Record], work: Tokenizing, processes: int) -> Iterator[Result]:
    """Results in the order of `records`. Raises UserError when a process ends before its time."""
    source = iter(records)
    chunks = iter(lambda: list(islice(source, CHUNK)), [])
    if processes <= 1:
        yield from map(work, chunks)
        return
    with ExitStack() as stack:
        idle: SimpleQueue[Process] = SimpleQueue()
        for _ in range(processes):
            idle.put(stack.enter_context(Process(work.recipe)))
        pool = stack.enter_context(ThreadPoolExecutor(processes))
        waiting: deque[Future[Result]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(_ask, idle, chunk))
            if len(waiting) > AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _ask(idle: "SimpleQueue[Process]", chunk: list[Record]) -> Result:
    process = idle.get()
    try:
        return process.ask(chunk)
    finally:
        idle.put(process)


class Process:
    """A worker process; it ends with the block."""

    def __init__(self, recipe: Recipe):
        self._recipe = recipe

    def __enter__(self) -> "Process":
        words = [sys.executable, "-m", "specforge.data.worker"]
        self._child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._send(self._recipe)
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()  # it holds nothing that is not asked for again
        self._child.wait()
        self._child.stdout.close()

    def ask(self, chunk: list[Record]) -> Result:
        self._send(chunk)
        try:
            return unpacked(receive(self._child.stdout))
        except EOFError:
            raise self._ended() from None

    def _send(self, value: Recipe | list[Record]) -> None:
        try:
            send(self._child.stdin, msgspec.json.encode(value))
        except BrokenPipeError:
            raise self._ended() from None

    def _ended(self) -> UserError:
        return UserError(
            f"A process that tokenizes ended with status {self._child.wait()}; -9 is the system's, for want of memory: "
            "run with fewer --cores. Else its words are above."
        )
