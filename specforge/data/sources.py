"""Where raw rows come from: a local file, the ShareGPT data set of the hub, or the generator."""

import difflib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

from specforge.data import synthetic
from specforge.errors import UserError

log = logging.getLogger("specforge")

HUB_NAME = "Aeala/ShareGPT_Vicuna_unfiltered"
HUB_FILE = "ShareGPT_V4.3_unfiltered_cleaned_split.json"  # the repository holds older versions too
NAMES = ("sharegpt", "synthetic")
CHUNK = 1 << 20
WHITESPACE = re.compile(r"[ \t\n\r]*")


class RawRow(NamedTuple):
    """A row as it was found: its line (of a file; elsewhere its number), and its value or why it has none."""

    line: int
    value: Any
    error: str | None = None


def read_source(dataset: str, sample_size: int | None, seed: int) -> Iterator[RawRow]:
    """Streams raw rows in the source's own order.

    Rows are not bounded here: `sample_size` counts usable conversations, so the reader stops when it has
    the first `sample_size` of them in file order. `seed` is the generator's. Raises UserError.
    """
    if dataset == "synthetic":
        if sample_size is None:
            raise UserError("dataset 'synthetic' has no end; set sample_size to the number of conversations to make.")
        return (RawRow(n, record) for n, record in enumerate(synthetic.generate(None, seed), 1))
    if dataset == "sharegpt":
        return _read_hub()
    return _read_file(_local_file(dataset))


def _local_file(dataset: str) -> Path:
    path = Path(dataset)
    if path.is_file():
        if path.suffix not in {".json", ".jsonl"}:
            raise UserError(f"dataset {dataset} must be a .json or .jsonl file; convert it or rename it.")
        return path
    if path.is_dir():
        raise UserError(f"dataset {dataset} is a folder; name one .json or .jsonl file in it.")
    siblings = path.parent.glob("*.json*") if path.parent.is_dir() else ()
    near = difflib.get_close_matches(dataset, [*NAMES, *map(str, siblings)], n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UserError(
        f"dataset {dataset!r} is no file and no known data set; "
        f"set dataset to 'sharegpt', 'synthetic' or the path of a .json or .jsonl file.{hint}"
    )


def _read_file(path: Path) -> Iterator[RawRow]:
    """A .json file that begins with `[` is one array; anything else is JSON Lines.

    Bytes that are not UTF-8 become lone surrogates, so that only the rows they are in are rejected.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        head = file.read(CHUNK).lstrip()
        file.seek(0)
        if path.suffix == ".json" and head.startswith("["):
            yield from _array_rows(file, path)
        else:
            yield from _line_rows(file)


def _line_rows(file: TextIO) -> Iterator[RawRow]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield RawRow(number, json.loads(line, parse_constant=_no_constant))
        except (ValueError, RecursionError) as error:
            yield RawRow(number, line.rstrip("\n"), f"the line is not JSON ({error}).")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _array_rows(file: TextIO, path: Path) -> Iterator[RawRow]:
    """The elements of a top-level array, one at a time: such files do not fit twice into memory."""
    window = _Window(file, path)
    window.take("[")
    more = window.peek() != "]"
    while more:
        window.peek()
        yield RawRow(window.line, window.value())
        more = window.peek() != "]"
        if more:
            window.take(",")
    window.take("]")
    if window.peek():
        window.fail("there is text after the closing ]")


class _Window:
    """A stretch of a JSON file that grows until it holds the value at its start."""

    decoder = json.JSONDecoder(parse_constant=_no_constant)

    def __init__(self, file: TextIO, path: Path):
        self.file, self.path = file, path
        self.text, self.start, self.line = "", 0, 1

    def peek(self) -> str:
        """Skips white space; the next character, or nothing at the end."""
        while True:
            self._advance(WHITESPACE.match(self.text, self.start).end())
            if self.start < len(self.text):
                return self.text[self.start]
            if not self._grow():
                return ""

    def take(self, char: str) -> None:
        found = self.peek()
        if found != char:
            self.fail(f"{char} is due, not {found or 'the end of the file'}")
        self._advance(self.start + 1)

    def value(self) -> Any:
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.start)
            except (ValueError, RecursionError) as error:
                if not self._grow():
                    self.fail(str(error).partition(": line")[0])
                continue
            # A number that touches the window's end may go on beyond it.
            if end < len(self.text) or not self._grow():
                self._advance(end)
                return value

    def fail(self, what: str) -> NoReturn:
        raise UserError(f"{self.path} is not a whole JSON array: {what}, at or after line {self.line}; mend it.")

    def _advance(self, end: int) -> None:
        self.line += self.text.count("\n", self.start, end)
        self.start = end

    def _grow(self) -> bool:
        """Drops what was consumed and at least doubles the rest, so that long rows cost linear time."""
        rest = self.text[self.start :]
        more = self.file.read(max(CHUNK, len(rest)))
        self.text, self.start = rest + more, 0
        return bool(more)


def _read_hub() -> Iterator[RawRow]:
    import datasets

    # Streaming never fills the cache and cannot read it; offline, a whole earlier download is the only way.
    offline = datasets.config.HF_HUB_OFFLINE
    log.info("reading %s of %s %s", HUB_FILE, HUB_NAME, "from the local cache" if offline else "from the hub")
    try:
        rows = datasets.load_dataset(HUB_NAME, data_files=HUB_FILE, split="train", streaming=not offline)
        yield from (RawRow(number, row) for number, row in enumerate(rows, 1))
    except Exception as error:  # the client's failures share no base: OSError, ValueError, httpx errors
        raise UserError(
            f"dataset 'sharegpt' ({HUB_NAME}) cannot be read ({type(error).__name__}: {str(error)[:200]}); "
            "check the network and HF_HUB_OFFLINE, or set dataset to a local .json file."
        ) from error
