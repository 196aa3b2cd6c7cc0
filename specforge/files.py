"""Files that are either whole or absent: atomic writes, digests, JSON Lines."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from specforge.errors import UserError

log = logging.getLogger("specforge")


def lock(file: IO, wait: bool = True) -> None:
    """Locks an open file against other processes; raises BlockingIOError when one has it and `wait` is False.

    A file system without locks (some network volumes) has none to give: that is told and taken as locked.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
            raise
        log.warning("%s: its file system has no locks (%s); let no second process work here", file.name, error)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file, made if need be, against other processes; it is free at once when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        lock(file)
        yield


@contextmanager
def exclusive(folder: Path) -> Iterator[Path]:
    """Holds a work folder, made if need be, against other processes; waits while one has it.

    A step whose Snakemake was killed goes on alone. The same command typed again meets it here, waits, and takes
    over what it finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            lock(file, wait=False)
        except BlockingIOError:
            log.warning("%s: another process is at this work; waiting for it", folder)
            lock(file)
        yield folder


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a sibling to write to, flushed to disk and renamed over `path` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Sorted keys and no timestamp of its own, so that equal content is equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises UserError when `path` is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run the rule that makes it.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run again.") from None


def write_jsonl(path: Path, rows: Iterable[dict]) -> int:
    """Writes one object a line, streaming; returns how many."""
    count = 0
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[dict]:
    """Streams the rows of a file that this package wrote. Raises UserError naming file and line."""
    if not path.is_file():
        raise UserError(f"{path} is missing; run the rule that makes it.")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{path}, line {number} is not JSON ({error}); delete the file and run again."
                ) from None


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*values: Any) -> str:
    """16 hex digits that identify JSON-able values: the name of a piece of work."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def publish(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, atomically: a hard link where the disk allows, else a copy.

    Snakemake deletes a rule's declared outputs before it runs the rule again, also when only its own
    bookkeeping was interrupted. What was published from a work folder is still there, at no extra disk.
    """
    with atomic_path(target) as partial:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
