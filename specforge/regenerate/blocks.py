"""The input in blocks of consecutive conversations, each with a journal of its own beside it.

A block is always the same conversations, so its journal holds whoever works on it, in however many shards; and no more
is in memory than the blocks that are under way, so the input may have any size.
"""

import json
from array import array
from collections.abc import Container, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from specforge.errors import UserError
from specforge.files import read_jsonl, write_jsonl
from specforge.journal import Journal
from specforge.regenerate.engine import Block, Record

BLOCK = 1024  # conversations


class Source:
    """Conversations of a file, the first `limit` or all, read a block at a time.

    Raises UserError where it is empty or an id comes twice.
    """

    def __init__(self, path: Path, limit: int | None = None):
        self.path = path
        self._starts: list[int] = []
        self.total = 0
        marks, offset = array("q"), 0
        for record, line in islice(_lines(path), limit):
            if self.total % BLOCK == 0:
                self._starts.append(offset)
            marks.append(hash(record["id"]))
            offset += len(line)
            self.total += 1
        if not self.total:
            raise UserError(f"{path} holds no conversations; check dataset and sample_size.")
        self._refuse_repeats(np.frombuffer(marks, dtype=np.int64))

    def __len__(self) -> int:
        """How many blocks."""
        return len(self._starts)

    def shard(self, number: int, count: int) -> range:
        """The blocks of shard `number` (from 0) of `count`: neighbours, as many as the others' but for one."""
        return range(number * len(self) // count, (number + 1) * len(self) // count)

    def size(self, blocks: range) -> int:
        """Conversations in those blocks."""
        return min(blocks.stop * BLOCK, self.total) - min(blocks.start * BLOCK, self.total)

    def records(self, block: int) -> Iterator[Record]:
        with self.path.open("rb") as file:
            file.seek(self._starts[block])
            for line in islice(file, self.size(range(block, block + 1))):
                yield json.loads(line)

    def _refuse_repeats(self, marks: np.ndarray) -> None:
        """Equal ids have equal marks, and other equal marks are rare: only where there are some, ids are compared."""
        marks = np.sort(marks)
        suspects = set(marks[1:][marks[1:] == marks[:-1]].tolist())
        seen: set[str] = set()
        for record in read_jsonl(self.path) if suspects else ():
            if hash(identity := record["id"]) in suspects:
                if identity in seen:
                    raise UserError(
                        f"{self.path} holds the id {identity!r} more than once; "
                        "delete the file and run prep_dataset again."
                    )
                seen.add(identity)


class Work:
    """What is said of a source so far, in a folder: finished rows in journals, failures that may pass beside them."""

    def __init__(self, source: Source, folder: Path):
        self.source, self.folder = source, folder

    def journal(self, block: int) -> Journal:
        return Journal(self._path("journal", block))

    def rows(self, block: int) -> Iterator[Record]:
        """What there is of the block, in the input's order."""
        failed = {row["id"]: row for row in self.failures(block)}
        with self.journal(block) as journal:
            for record in self.source.records(block):
                if record["id"] in journal:
                    yield journal[record["id"]]
                elif record["id"] in failed:
                    yield failed[record["id"]]

    def failures(self, block: int) -> Iterator[Record]:
        """Those that the next run tries again; some may have gone well since."""
        path = self._path("failed", block)
        return read_jsonl(path) if path.exists() else iter(())

    def note_failures(self, block: int, rows: list[Record]) -> None:
        """Replaces them; none leave no file."""
        if rows:
            write_jsonl(self._path("failed", block), rows)
        else:
            self._path("failed", block).unlink(missing_ok=True)

    def forget_failures(self, blocks: Iterable[int]) -> None:
        """Also those of the journals, so that the next run asks for all of them again."""
        for block in blocks:
            with self.journal(block) as journal:
                if any("error" in row for row in journal):
                    write_jsonl(journal.path, (row for row in journal if "error" not in row))

    def _path(self, kind: str, block: int) -> Path:
        return self.folder / f"{kind}-{block:06d}.jsonl"


class OpenBlock:
    """A block under way: its journal, and the ids that are still to come."""

    def __init__(self, work: Work, number: int):
        self.work, self.number = work, number
        self.journal = work.journal(number)
        self.failed: list[Record] = []
        self.pending = {record["id"] for record in work.source.records(number)} - self.journal.keys()

    def block(self) -> Block:
        return Block(self.work.source.records(self.number), _Except(self.pending))

    def keep(self, row: Record, transient: bool) -> None:
        """A row that may be another on the next run is no part of the journal."""
        if transient:
            self.failed.append(row)
        else:
            self.journal.append(row)
        self.pending.discard(row["id"])

    def close(self) -> None:
        self.work.note_failures(self.number, self.failed)
        self.journal.close()


class OpenBlocks:
    """The blocks under way. Each is opened when an engine asks for it and closed with its last row."""

    def __init__(self, work: Work, numbers: Iterable[int]):
        self._work, self._numbers = work, numbers
        self._of: dict[str, OpenBlock] = {}

    def __enter__(self) -> "OpenBlocks":
        return self

    def __exit__(self, *error: object) -> None:
        for block in set(self._of.values()):
            block.close()

    def __iter__(self) -> Iterator[Block]:
        for number in self._numbers:
            opened = OpenBlock(self._work, number)
            self._of |= dict.fromkeys(opened.pending, opened)
            yield opened.block()

    def keep(self, row: Record, transient: bool) -> None:
        opened = self._of.pop(row["id"])
        opened.keep(row, transient)
        if not opened.pending:
            opened.close()


class _Except(Container[str]):
    """All ids but those that are pending."""

    def __init__(self, pending: set[str]):
        self._pending = pending

    def __contains__(self, identity: object) -> bool:
        return identity not in self._pending


def _lines(path: Path) -> Iterator[tuple[Record, bytes]]:
    """Records with their bytes. Raises UserError naming file and line."""
    if not path.is_file():
        raise UserError(f"{path} is missing; run the rule that makes it.")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line), line
            except ValueError as error:
                raise UserError(
                    f"{path}, line {number} is not JSON ({error}); delete the file and run again."
                ) from None
