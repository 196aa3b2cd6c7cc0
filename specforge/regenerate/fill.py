"""Has an engine say what is missing, and keeps each row the moment it is there."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from typing import NamedTuple

from specforge.progress import Progress
from specforge.regenerate.blocks import OpenBlocks, Work
from specforge.regenerate.engine import Engine


class State(NamedTuple):
    """Of some blocks: conversations in the journals, failures among those and beside them, what is still missing."""

    done: int
    failed: int
    passing: int
    unfinished: list[int]


def state(work: Work, blocks: range) -> State:
    """Reads the journals, one at a time. A failure that may pass counts as missing and as failed."""
    done = failed = passing = 0
    unfinished = []
    for block in blocks:
        with work.journal(block) as journal:
            done += len(journal)
            failed += sum("error" in row for row in journal)
            passing += sum(row["id"] not in journal for row in work.failures(block))
            if len(journal) < work.source.size(range(block, block + 1)):
                unfinished.append(block)
    return State(done, failed, passing, unfinished)


def fill(
    work: Work, blocks: range, engine: AbstractContextManager[Engine], allowed: float, label: str = "regenerate"
) -> int:
    """Completes the journals of `blocks`, with an engine only where something is missing; returns how many failed.

    Stops early once more than `allowed` have failed: the rest could not save the run.
    """
    before = state(work, blocks)
    failed = before.failed
    if failed > allowed or not before.unfinished:
        return failed
    progress = Progress(label, work.source.size(blocks), "conversations", done=before.done)
    tokens, started = 0, time.monotonic()
    with engine as running, OpenBlocks(work, before.unfinished) as opened, closing(running.run(opened)) as rows:
        for row in rows:
            failed += "error" in row
            opened.keep(row, transient="error" in row and not (running.repeatable or "lasting" in row))
            tokens += row.get("tokens", 0)
            progress.advance(1, f"{tokens / max(time.monotonic() - started, 1e-9):.0f} tokens/s, {failed} failed")
            if failed > allowed:
                break
    return failed


def failures(work: Work, blocks: range) -> Iterator[dict]:
    """The rows of conversations that failed, in the input's order."""
    return (row for block in blocks for row in work.rows(block) if "error" in row)
