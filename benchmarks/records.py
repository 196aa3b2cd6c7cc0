"""pydantic and msgspec as the typed record, for the same errors: `python benchmarks/records.py [ROWS.json]`.

Both get the same rows under native keys, good and broken ones, and must name the same reason for each broken one.
What is timed is the typed record alone: keys are renamed before, order and size are checked after, alike for both.
"""

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError

from specforge.data.forms import RejectedRow, native, recognise
from specforge.data.records import Record
from specforge.data.synthetic import generate

ROUNDS = 9
REASONS = {"id": "bad_id", "image": "bad_image", "tools": "tools_type", "role": "unknown_role"}


class PydanticTurn(BaseModel):
    model_config = ConfigDict(strict=True)
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: list[dict[str, Any]] = []
    tool_call_id: str = ""
    name: str = ""


class PydanticRecord(BaseModel):
    model_config = ConfigDict(strict=True)
    id: str = ""
    conversations: list[PydanticTurn]
    tools: list[dict[str, Any]] = []
    image: str = ""


def by_pydantic(row: dict) -> str | None:
    """The reason why a row is no record, None for one that is."""
    try:
        PydanticRecord.model_validate(row)
    except ValidationError as error:
        return _reason(error.errors(include_url=False)[0]["loc"])
    return None


def by_msgspec(row: dict) -> str | None:
    """The same by msgspec, whose error is a sentence with the place at its end: `$.conversations[2].content`."""
    try:
        msgspec.convert(row, Record)
    except msgspec.ValidationError as error:
        path = str(error).rpartition("`$.")[2].rstrip("`").replace("[", ".").replace("]", "")
        return _reason(tuple(path.split(".")))
    return None


def _reason(place: tuple) -> str:
    if place[0] != "conversations":
        return REASONS[place[0]]
    key = place[2] if len(place) > 2 else ""
    return "tools_type" if key == "tool_calls" else REASONS.get(key, "turn_type")


def broken(row: dict, rng: random.Random) -> dict:
    """The row with one wrong type in it."""
    row = json.loads(json.dumps(row))
    turn = rng.choice(row["conversations"])
    spoil = rng.choice((
        lambda: row.update(id=[1]),
        lambda: row.update(tools="f"),
        lambda: row.update(image=3),
        lambda: turn.update(role="alien"),
        lambda: turn.update(content=["Hi"]),
        lambda: turn.update(tool_calls=["f"]),
        lambda: row["conversations"].append("Hi"),
    ))  # fmt: skip
    spoil()
    return row


def milliseconds(check: Callable[[dict], str | None], rows: Iterable[dict]) -> float:
    start = time.perf_counter()
    for row in rows:
        check(row)
    return (time.perf_counter() - start) * 1e3


def usable(raw: Iterable[dict]) -> list[dict]:
    rows = []
    for row in raw:
        try:
            rows.append(native(row, recognise(row)))
        except RejectedRow:
            continue
    return [row for row in rows if by_msgspec(row) is None]


def main() -> None:
    raw = json.loads(Path(sys.argv[1]).read_text()) if len(sys.argv) > 1 else generate(2000, 0)
    good = usable(raw)
    rng = random.Random(0)
    bad = [broken(row, rng) for row in good]
    assert [by_pydantic(row) for row in good + bad] == [by_msgspec(row) for row in good + bad]
    assert all(by_msgspec(row) for row in bad)
    for name, rows in (("good", good), ("broken", bad)):
        times = {check: [milliseconds(check, rows) for _ in range(ROUNDS)] for check in (by_pydantic, by_msgspec)}
        slow, fast = (statistics.median(times[check]) / len(rows) * 1e3 for check in (by_pydantic, by_msgspec))
        figures = f"pydantic {slow:.1f} us a row, msgspec {fast:.1f}, {slow / fast:.1f} times"
        sys.stdout.write(f"{len(rows)} {name} rows: {figures}\n")


if __name__ == "__main__":
    main()
