"""The tokenized cache on disk: Arrow record batches, written as they come, read as views of the mapped file.

The mask is a byte a token, not Arrow's bit, so that it too is read without a copy.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from specforge.errors import UserError
from specforge.files import atomic_path

SCHEMA = pa.schema(
    [("id", pa.string()), ("input_ids", pa.list_(pa.int32())), ("loss_mask", pa.list_(pa.uint8()))]
)  # fmt: skip
END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # the last bytes of an Arrow stream that was finished


class Row(NamedTuple):
    """One sequence of the cache: int32 [n] ids and bool [n] mask of its conversation `name`."""

    name: str
    ids: np.ndarray
    mask: np.ndarray


def to_batch(rows: list[Row]) -> pa.RecordBatch:
    """Rows as Arrow columns; lengths must sum to less than 2^31."""
    ends = np.cumsum([0, *(len(row.ids) for row in rows)], dtype=np.int32)
    ids = np.concatenate([row.ids for row in rows]) if rows else np.empty(0, np.int32)
    mask = np.concatenate([row.mask for row in rows]) if rows else np.empty(0, np.bool_)
    offsets = pa.array(ends)
    columns = [
        pa.array([row.name for row in rows], pa.string()),
        pa.ListArray.from_arrays(offsets, pa.array(ids)),
        pa.ListArray.from_arrays(offsets, pa.array(mask.view(np.uint8))),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def write_cache(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Streams the batches to `path`, which appears when all are written."""
    with atomic_path(path) as partial, pa.OSFile(str(partial), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        for batch in batches:
            if len(batch):
                writer.write_batch(batch)


class TokenCache:
    """Rows of the cache; `input_ids` int32 [n] and `loss_mask` bool [n] are views of the file, nothing is copied.

    `lengths` int64 [rows]. Indexed by a row's number, by several, or by a column's name.
    """

    def __init__(self, path: Path):
        """Raises UserError when the file is missing, cut short, of another layout or without a row."""
        self._table = _open(path)
        parts = [batch for batch in self._table.to_batches() if len(batch)]
        self._values = [
            (batch.column("input_ids").values.to_numpy(), batch.column("loss_mask").values.to_numpy().view(np.bool_))
            for batch in parts
        ]
        self._starts = np.concatenate([batch.column("input_ids").offsets.to_numpy()[:-1] for batch in parts])
        self._part = np.repeat(np.arange(len(parts)), [len(batch) for batch in parts])
        self.lengths = np.concatenate([batch.column("input_ids").value_lengths().to_numpy() for batch in parts])
        self.lengths = self.lengths.astype(np.int64)
        self.names: list[str] = self._table.column("id").to_pylist()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, str):
            return self.names if which == "id" else [row[which] for row in map(self._row, range(len(self)))]
        if isinstance(which, int | np.integer):
            return self._row(int(which))
        rows = [self._row(int(number)) for number in which]
        return {name: [row[name] for row in rows] for name in SCHEMA.names}

    def _row(self, number: int) -> dict[str, Any]:
        ids, mask = self._values[self._part[number]]
        start = self._starts[number]
        end = start + self.lengths[number]
        return {"id": self.names[number], "input_ids": ids[start:end], "loss_mask": mask[start:end]}


def _open(path: Path) -> pa.Table:
    if not path.is_file():
        raise UserError(f"{path} is missing; run the rule preprocess_dataset.")
    try:
        file = pa.memory_map(str(path))
        table = pa.ipc.open_stream(file).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} is not a readable cache ({error}); delete it and run again.") from None
    file.seek(file.size() - len(END))
    if file.read(len(END)) != END:
        raise UserError(f"{path} is not a readable cache (its end is missing); delete it and run again.")
    if not table.schema.equals(SCHEMA) or not len(table):
        what = "holds no sequence" if not len(table) else f"has the layout {table.schema.to_string()!r}, not this one's"
        raise UserError(f"{path} {what}; delete it and run again.")
    return table
