"""Which calls were started from this workspace, written down before anyone waits for them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from specforge.cloud.places import STATE
from specforge.files import locked, read_json, write_json

FOLDER = STATE / "calls"


@contextmanager
def held(work: str) -> Iterator[None]:
    """One process at a time decides about a piece of work: held while it looks and starts, not while it waits."""
    with locked(FOLDER / f"{work}.lock"):
        yield


def note(work: str, call: str, **facts: Any) -> None:
    """Writes a started call down, flushed to disk."""
    write_json(_path(work), {"work": work, "call": call, "started": round(time.time()), **facts})


def find(work: str) -> dict[str, Any] | None:
    return read_json(_path(work)) if _path(work).is_file() else None


def drop(work: str, call: str) -> None:
    """Forgets a call that is over; a newer one of the same work stays."""
    record = find(work)
    if record and record["call"] == call:
        _path(work).unlink(missing_ok=True)


def entries() -> list[dict[str, Any]]:
    """All calls that are not known to be over, oldest first."""
    records = [read_json(path) for path in FOLDER.glob("*.json")] if FOLDER.is_dir() else []
    return sorted(records, key=lambda record: record["started"])


def rivals(work: str, outputs: tuple[str, ...]) -> list[dict[str, Any]]:
    """Calls of other work that make one of these files: an older version of the same job."""
    return [record for record in entries() if record["work"] != work and set(outputs) & set(record["outputs"])]


def _path(work: str) -> Path:
    return FOLDER / f"{work}.json"
