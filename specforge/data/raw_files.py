"""Rows of one JSON, JSON Lines or Parquet file, streamed; which of them it is its first bytes say."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn, TextIO

from specforge.errors import UserError

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")
CHUNK = 1 << 20  # bytes or characters read at once
ROW_LIMIT = 1 << 24  # bytes or characters of one row: what a damaged file may cost in memory
EXCERPT = 2000  # bytes kept of a row beyond the limit
PARQUET_ROWS = 256
UNITED = ("tools", "tool_calls")  # objects of any keys, which a column of Arrow cannot hold
WHITESPACE = re.compile(r"[ \t\n\r]*")
MARK = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)  # a string, whole or begun, or what ends values


class RawRow(NamedTuple):
    """A row as it was found: its line (of a file; elsewhere its number), and its value or why it has none."""

    line: int
    value: Any
    error: str | None = None


def read_file(path: Path) -> Iterator[RawRow]:
    """Rows of a local file, in its order.

    Bytes that are not UTF-8 become lone surrogates, so that only the rows they are in are rejected. A line that is
    no JSON is a row with an error. Raises UserError where an array or a Parquet file is damaged: what follows the
    damage cannot be told apart into rows.
    """
    with path.open("rb") as file:
        head = file.read(CHUNK)
        file.seek(0)
        if head.startswith(b"PAR1"):
            yield from parquet_rows(file, str(path))
        elif _is_array(head, path.suffix):
            yield from array_rows(file, str(path))
        else:
            yield from line_rows(file)


def _is_array(head: bytes, suffix: str) -> bool:
    """A file that begins with `[` is one array, unless it is called JSON Lines and holds no object there."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return start[:1] == b"[" and (suffix not in {".jsonl", ".ndjson"} or start[1:].lstrip()[:1] in {b"{", b"]"})


def line_rows(file: BinaryIO) -> Iterator[RawRow]:
    number = 0
    while line := file.readline(ROW_LIMIT + 1):
        number += 1
        if len(line) > ROW_LIMIT:
            ending = line
            while ending and not ending.endswith(b"\n"):
                ending = file.readline(CHUNK)
            yield RawRow(number, line[:EXCERPT].decode(errors="replace"), f"the line exceeds {ROW_LIMIT} bytes.")
            continue
        text = line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
        if not text.strip():
            continue
        try:
            yield RawRow(number, json.loads(text, parse_constant=_no_constant))
        except (ValueError, RecursionError) as error:
            yield RawRow(number, text.rstrip("\r\n"), f"the line is not JSON ({error}).")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def array_rows(file: BinaryIO, name: str) -> Iterator[RawRow]:
    """The elements of a top-level array, one at a time: such files do not fit twice into memory."""
    window = _Window(io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape"), name)
    window.take("[")
    more = window.peek() != "]"
    while more:
        window.peek()
        yield window.row()
        more = window.peek() != "]"
        if more:
            window.take(",")
    window.take("]")
    if window.peek():
        window.fail("there is text after the closing ]")


def parquet_rows(file: BinaryIO, name: str) -> Iterator[RawRow]:
    """Rows of a Parquet file, a few at a time; a row's line is its number."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        table = ParquetFile(file)
        # No form has times in it, and Python cannot hold all of Arrow's.
        columns = [field.name for field in table.schema_arrow if not pyarrow.types.is_temporal(field.type)]
        for batch in table.iter_batches(PARQUET_ROWS, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield RawRow(number, without_union(row))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{name} is a damaged Parquet file, at or after row {number + 1} ({str(error)[:200]}); write it anew."
        ) from None
    except (ValueError, OverflowError) as error:  # a time within an object
        raise UserError(
            f"{name} holds what Python cannot, at or after row {number + 1} ({str(error)[:200]}); write it as text."
        ) from None


def without_union(value: Any, in_tools: bool = False) -> Any:
    """A row as it was before Arrow gave all objects of a column the keys of each: below tools, without nulls."""
    if isinstance(value, dict):
        return {
            key: without_union(item, in_tools or key in UNITED)
            for key, item in value.items()
            if not (in_tools and item is None)
        }
    return [without_union(item, in_tools) for item in value] if isinstance(value, list) else value


class _Window:
    """A stretch of a JSON file that grows until it holds the value at its start."""

    def __init__(self, file: TextIO, name: str):
        self.file, self.name = file, name
        self.text, self.start, self.line = "", 0, 1
        self._constant: str | None = None  # met in a row: Python's decoder takes it, JSON does not
        self._decoder = json.JSONDecoder(parse_constant=self._note)

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

    def row(self) -> RawRow:
        while True:
            self._constant = None
            try:
                value, end = self._decoder.raw_decode(self.text, self.start)
            except json.JSONDecodeError as error:
                if len(self.text) - self.start > ROW_LIMIT:
                    self.fail(f"the row exceeds {ROW_LIMIT} characters or never ends")
                if not self._grow():
                    self.fail(str(error).partition(": line")[0])
                continue
            except (ValueError, RecursionError) as error:  # Python's limits, not JSON's
                end = self._end_of_row()
                return self._without_value(end, f"the row is beyond what is read ({str(error).partition(';')[0]}).")
            # A number that touches the window's end may go on beyond it.
            if end < len(self.text) or not self._grow():
                return self._taken(value, end)

    def _taken(self, value: Any, end: int) -> RawRow:
        if end - self.start > ROW_LIMIT:
            return self._without_value(end, f"the row exceeds {ROW_LIMIT} characters.")
        if self._constant is not None:
            return self._without_value(end, f"the row is not JSON ({self._constant} is not a JSON number).")
        row = RawRow(self.line, value)
        self._advance(end)
        return row

    def _without_value(self, end: int, error: str) -> RawRow:
        row = RawRow(self.line, self.text[self.start : min(end, self.start + EXCERPT)], error)
        self._advance(end)
        return row

    def _end_of_row(self) -> int:
        """Where the value at the start ends, without reading it."""
        depth, place = 0, self.start
        while True:
            mark = MARK.search(self.text, place)
            if mark is None or mark[0] == '"':
                if len(self.text) - self.start > ROW_LIMIT or not self._grow():
                    self.fail(f"the row exceeds {ROW_LIMIT} characters or never ends")
                depth, place = 0, self.start
                continue
            place = mark.end()
            if mark[0] in "[{":
                depth += 1
            elif mark[0] in "]}" and depth:
                depth -= 1
                if not depth:
                    return place
            elif mark[0] in ",]" and not depth:
                return mark.start()

    def _note(self, constant: str) -> None:
        self._constant = self._constant or constant

    def fail(self, what: str) -> NoReturn:
        raise UserError(f"{self.name} is not a whole JSON array: {what}, at or after line {self.line}; mend it.")

    def _advance(self, end: int) -> None:
        self.line += self.text.count("\n", self.start, end)
        self.start = end

    def _grow(self) -> bool:
        """Drops what was consumed and at least doubles the rest, so that long rows cost linear time."""
        rest = self.text[self.start :]
        more = self.file.read(max(CHUNK, len(rest)))
        self.text, self.start = rest + more, 0
        return bool(more)
