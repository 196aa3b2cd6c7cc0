"""Finished work that survives a kill: one row a line, appended, found again by its id."""

import json
import logging
import os
import time
from collections.abc import Iterator, KeysView
from pathlib import Path
from types import TracebackType

from specforge.errors import UserError
from specforge.files import lock

log = logging.getLogger("specforge")

SYNC_SECONDS = 10.0


class Journal:
    """An append-only JSON Lines file of rows with an `id`, each id once; only ids and offsets stay in memory.

    A row is whole once its line break is on disk: a line cut short by a kill is removed on opening. A
    flushed row survives the process; one that the machine's death may take is at most SYNC_SECONDS old.
    Raises UserError when another process has the journal open or a line in the middle is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            self._lock()
            self._offsets = self._load()
        except BaseException:
            self._file.close()
            raise
        self._synced = time.monotonic()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def __contains__(self, identity: object) -> bool:
        return identity in self._offsets

    def keys(self) -> KeysView[str]:
        return self._offsets.keys()

    def __getitem__(self, identity: str) -> dict:
        self._file.seek(self._offsets[identity])
        return json.loads(self._file.readline())

    def __iter__(self) -> Iterator[dict]:
        """The rows in the order in which they were finished."""
        for identity in list(self._offsets):
            yield self[identity]

    def append(self, row: dict) -> None:
        """Raises ValueError for an id that is already there: the caller would do the work twice."""
        if row["id"] in self:
            raise ValueError(f"{self.path} already holds the row {row['id']!r}")
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(line)
        self._file.flush()
        self._offsets[row["id"]] = offset
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self._sync()

    def close(self) -> None:
        """Idempotent; the rows are on disk afterwards."""
        if not self._file.closed:
            self._sync()
            self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _lock(self) -> None:
        try:
            lock(self._file, wait=False)
        except BlockingIOError:
            raise UserError(f"{self.path} is in use by another run; wait for it or stop it.") from None

    def _load(self) -> dict[str, int]:
        offsets, offset = {}, 0
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                log.warning("%s: line %d was cut short; its work is done again", self.path, number)
                self._file.truncate(offset)
                break
            try:
                offsets[json.loads(line)["id"]] = offset
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{self.path}, line {number} is damaged; delete the line or the file and run again."
                ) from None
            offset += len(line)
        return offsets
