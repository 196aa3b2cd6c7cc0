"""prep_dataset: raw conversations from any source to checked training and test files."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from specforge.config.steps import Prepare
from specforge.data.records import RejectedRow, conversation_key, parse_row
from specforge.data.sources import RawRow, read_source
from specforge.data.split import Split
from specforge.errors import UserError
from specforge.files import atomic_path, read_jsonl, sha256_file, write_json, write_jsonl
from specforge.progress import Progress

log = logging.getLogger("specforge")

RAW_CHARS = 500


def prep_dataset(
    *,
    dataset: str,
    sample_size: int | None,
    split_eval: bool,
    seed: int,
    settings: dict[str, Any],
    train: str,
    test: str | None,
    rejected: str,
    summary: str,
) -> dict[str, Any]:
    """Writes the first `sample_size` usable conversations as native JSON Lines; returns the summary.

    Every row read is either kept or in `rejected` with its reason. Raises UserError, after `rejected` is
    written, when too many rows are unusable, and when a side of the split is empty.
    """
    prepare = Prepare(**settings)
    if split_eval and test is None:
        raise ValueError("split_eval needs a test path")
    reader = Reader(prepare.max_turns, sample_size)
    split = Split(prepare.test_share if split_eval else 0.0, seed)
    rows = read_source(dataset, sample_size, seed)
    Path(train).parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=Path(train).parent) as folder:
        kept = Path(folder) / "kept.jsonl"
        with atomic_path(Path(rejected)) as partial, partial.open("w", encoding="utf-8") as file:
            write_jsonl(kept, _noted(reader.usable(rows, lambda row: file.write(json.dumps(row) + "\n")), split))
        split.settle()
        reader.check(dataset, rejected, prepare.max_rejected_share)
        counts = {"train": write_jsonl(Path(train), (r for r in read_jsonl(kept) if not split.is_test(r)))}
        if split_eval:
            counts["test"] = write_jsonl(Path(test), filter(split.is_test, read_jsonl(kept)))
    _check_sides(counts, reader.kept, prepare.test_share)
    result = {
        "dataset": dataset,
        "read": reader.read,
        "kept": reader.kept,
        "train": counts["train"],
        "test": counts.get("test", 0),
        "rejected": reader.rejected.total(),
        "rejected_by_reason": dict(sorted(reader.rejected.items())),
        "notes": dict(reader.notes + Counter(test_conversations_moved_to_train=split.moved)),
        "sha256": {
            "train": sha256_file(Path(train)),
            "test": sha256_file(Path(test)) if split_eval else None,
        },
    }
    write_json(Path(summary), result)
    log.info("prep_dataset: %s", ", ".join(f"{key} {result[key]}" for key in ("read", "kept", *counts, "rejected")))
    return result


class Reader:
    """Sorts raw rows into usable records and rejections, and counts both."""

    def __init__(self, max_turns: int, limit: int | None):
        self.max_turns, self.limit = max_turns, limit
        self.read = self.kept = 0
        self.rejected: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.first_rejection = ""
        self._ids: set[str] = set()
        self._conversations: set[str] = set()

    def usable(self, rows: Iterable[RawRow], reject: Callable[[dict], object]) -> Iterator[dict]:
        """Streams the records, at most `limit`; each other row goes to `reject`."""
        progress = Progress("prep_dataset", self.limit, "conversations") if self.limit else None
        for row in rows:
            self.read += 1
            try:
                record = self._accept(row)
            except RejectedRow as rejection:
                self._note_rejection(row, rejection, reject)
                continue
            self.kept += 1
            if progress:
                progress.advance(note=f"{self.rejected.total()} rejected")
            yield record
            if self.kept == self.limit:
                return
        if self.limit:
            log.warning("prep_dataset: sample_size is %d, but only %d are usable", self.limit, self.kept)
            self.notes["fewer_than_sample_size"] = self.limit - self.kept

    def check(self, dataset: str, rejected: str, max_share: float) -> None:
        """Raises UserError when more than `max_share` of the rows were rejected or none was kept."""
        if not self.read:
            raise UserError(f"dataset {dataset!r} holds no rows; name one that does.")
        count = self.rejected.total()
        if self.kept and count <= max_share * self.read:
            return
        kept = Path(rejected).with_name(f".{Path(rejected).name}")  # Snakemake deletes a failed job's outputs
        shutil.copyfile(rejected, kept)
        limit = f"more than prepare.max_rejected_share, {max_share:g}" if self.kept else "so none is left"
        way_out = ", or raise that share" if self.kept else ""
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.rejected.most_common(5))
        raise UserError(
            f"dataset {dataset!r}: {count} of {self.read} rows are unusable ({reasons}; first, "
            f"{self.first_rejection}), {limit}; mend the rows listed in {kept}{way_out}."
        )

    def _accept(self, row: RawRow) -> dict:
        if row.error:
            raise RejectedRow("unreadable", row.error)
        try:
            record, notes = parse_row(row.value, self.max_turns)
            key = conversation_key(record)
        except RecursionError:
            raise RejectedRow("unreadable", "it is nested too deeply.") from None
        if key in self._conversations:
            raise RejectedRow("duplicate_conversation", "an earlier row holds the same conversation.")
        if record["id"] in self._ids:
            raise RejectedRow("duplicate_id", f"an earlier row has the id {record['id']!r:.80}.")
        self._conversations.add(key)
        self._ids.add(record["id"])
        self.notes.update(notes)
        return record

    def _note_rejection(self, row: RawRow, rejection: RejectedRow, reject: Callable[[dict], object]) -> None:
        self.rejected[rejection.reason] += 1
        self.first_rejection = self.first_rejection or f"line {row.line}: {rejection.detail.rstrip('.')}"
        place = {"row": self.read, "line": row.line}
        reject({**place, "reason": rejection.reason, "detail": rejection.detail, "raw": _excerpt(row.value)})


def _excerpt(value: object) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
    except RecursionError:
        text = "(nested too deeply to show)"
    return text[:RAW_CHARS]


def _noted(records: Iterable[dict], split: Split) -> Iterator[dict]:
    for record in records:
        split.add(record)
        yield record


def _check_sides(counts: dict[str, int], kept: int, test_share: float) -> None:
    for side, count in counts.items():
        if not count:
            raise UserError(
                f"the {side} side of {kept} conversations is empty at prepare.test_share {test_share:g}; "
                "change that share, raise sample_size, or set split_eval to false."
            )
