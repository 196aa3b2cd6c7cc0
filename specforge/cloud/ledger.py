"""Which calls were started from this workspace, written down before anyone waits for them."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from specforge.cloud.places import STATE
from specforge.files import locked, read_json, write_json

FOLDER = STATE / "calls"


@contextmanager
def held(key: str) -> Iterator[None]:
    """One process at a time decides about a piece of work: held while it looks and starts, not while it waits."""
    with locked(FOLDER / f"{key}.lock"):
        yield


def note(key: str, call: str, **facts: Any) -> None:
    """Writes a started call down, flushed to disk."""
    write_json(_path(key), {"key": key, "call": call, "started": round(time.time()), **facts})


def find(key: str) -> dict[str, Any] | None:
    return read_json(_path(key)) if _path(key).is_file() else None


def drop(key: str, call: str) -> None:
    """Forgets a call that is over; a newer one of the same work stays. The caller holds the work."""
    record = find(key)
    if record and record["call"] == call:
        _path(key).unlink(missing_ok=True)


def entries() -> list[dict[str, Any]]:
    """All calls that are not known to be over, oldest first."""
    records = []
    for path in FOLDER.glob("*.json") if FOLDER.is_dir() else ():
        try:
            records.append(json.loads(path.read_text()))
        except FileNotFoundError:  # over since the folder was read
            continue
    return sorted(records, key=lambda record: record["started"])


def _path(key: str) -> Path:
    return FOLDER / f"{key}.json"
