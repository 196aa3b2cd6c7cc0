"""Sorts raw rows into usable records and rejections, and counts both."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from specforge.data.raw_files import RawRow
from specforge.data.records import Limits, Record, conversation_key, parse_row
from specforge.data.rejected import RejectedRow
from specforge.progress import Progress

log = logging.getLogger("specforge")

RAW_CHARS = 500
CONTENT_ID = re.compile(r"[0-9a-f]{24}")


class Usable(NamedTuple):
    """A record and where it came from: the number of its row, counted from 1, and its line."""

    row: int
    line: int
    record: Record


class Reader:
    """Duplicates are found exactly: a row costs some 200 bytes of memory, or half where its id is made from it.

    Each row that is not usable goes to `reject` as an object with `row`, `line`, `reason`, `detail` and `raw`.
    """

    def __init__(self, limits: Limits, sample_size: int | None, reject: Callable[[dict], object]):
        self.limits, self.sample_size, self._write = limits, sample_size, reject
        self.read = self.kept = 0
        self.rejected: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.first_rejection = ""
        self._ids: set[bytes] = set()
        self._conversations: set[bytes] = set()

    def usable(self, rows: Iterable[RawRow]) -> Iterator[Usable]:
        """Streams the records, at most `sample_size`."""
        progress = Progress("prep_dataset", self.sample_size, "conversations") if self.sample_size else None
        for row in rows:
            self.read += 1
            try:
                record = self._accept(row)
            except RejectedRow as rejection:
                self._reject(self.read, row.line, rejection, row.value)
                continue
            self.kept += 1
            if progress:
                progress.advance(note=f"{self.rejected.total()} rejected")
            yield Usable(self.read, row.line, record)
            if self.kept == self.sample_size:
                return
        if self.sample_size:
            log.warning("prep_dataset: sample_size is %d, but only %d are usable", self.sample_size, self.kept)
            self.notes["fewer_than_sample_size"] = self.sample_size - self.kept

    def withdraw(self, usable: Usable, rejection: RejectedRow) -> None:
        """Rejects a row that was usable by itself."""
        self.kept -= 1
        self._reject(usable.row, usable.line, rejection, usable.record.plain())

    def verdict(self, dataset: str, max_share: float) -> str | None:
        """What is wrong with the data set as a whole, up to the way out; None when it will do."""
        if not self.read:
            return f"dataset {dataset!r} holds no rows; name one that does"
        count = self.rejected.total()
        if self.kept and count <= max_share * self.read:
            return None
        limit = f"more than prepare.max_rejected_share, {max_share:g}" if self.kept else "so none is left"
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.rejected.most_common(5))
        return (
            f"dataset {dataset!r}: {count} of {self.read} rows are unusable ({reasons}; first, "
            f"{self.first_rejection}), {limit}"
        )

    def _accept(self, row: RawRow) -> Record:
        if row.error:
            raise RejectedRow("unreadable", row.error)
        try:
            record, notes = parse_row(row.value, self.limits)
            key = bytes.fromhex(conversation_key(record))
        except RecursionError:
            raise RejectedRow("unreadable", "it is nested too deeply.") from None
        identity = _id_digest(record.id)
        if key in self._conversations:
            raise RejectedRow("duplicate_conversation", "an earlier row holds the same conversation.")
        if identity in self._ids:
            raise RejectedRow("duplicate_id", f"an earlier row has the id {record.id!r:.80}.")
        self._conversations.add(key)
        self._ids.add(key if identity == key else identity)
        self.notes.update(notes)
        return record

    def _reject(self, row: int, line: int, rejection: RejectedRow, raw: object) -> None:
        self.rejected[rejection.reason] += 1
        self.first_rejection = self.first_rejection or f"line {line}: {rejection.detail.rstrip('.')}"
        place = {"row": row, "line": line}
        self._write({**place, "reason": rejection.reason, "detail": rejection.detail, "raw": _excerpt(raw)})


def _id_digest(identity: str) -> bytes:
    """12 bytes; of an id made from the content those of the conversation's own key."""
    if CONTENT_ID.fullmatch(identity):
        return bytes.fromhex(identity)
    return hashlib.sha256(identity.encode()).digest()[:12]


def _excerpt(value: object) -> str:
    if isinstance(value, str):
        return value[:RAW_CHARS]
    try:
        return json.dumps(value, default=str)[:RAW_CHARS]
    except (RecursionError, TypeError):  # TypeError: keys that are no text
        return f"{type(value).__name__} that cannot be shown"
