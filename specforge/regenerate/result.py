"""The regenerated conversations in the input's order, those that failed, and a summary that is true of both."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from specforge.errors import UserError
from specforge.files import atomic_path, publish, sha256_file, write_json, write_jsonl
from specforge.regenerate.blocks import Work
from specforge.regenerate.engine import Record

NOTES = ("tokens", "ended_early")  # of a row; the output does without


class Tally:
    """Counts rows as they pass."""

    def __init__(self) -> None:
        self.failed = self.turns = self.reasoned = self.tokens = 0
        self.excluded: Counter[str] = Counter()
        self.ended_early: Counter[str] = Counter()
        self.finish_reasons: Counter[str] = Counter()

    def add(self, row: Record) -> None:
        answers = [turn for turn in row["conversations"] if turn["role"] == "assistant"]
        self.turns += len(answers)
        self.reasoned += sum("reasoning" in turn for turn in answers)
        self.finish_reasons.update(turn["finish_reason"] for turn in answers if "finish_reason" in turn)
        self.tokens += row.get("tokens", 0)
        if "ended_early" in row:
            self.ended_early[row["ended_early"]] += 1


def write_result(
    work: Work, settings: dict[str, Any], output: Path, errors: Path, summary: Path, again: str
) -> dict[str, Any]:
    """Streams the rows of all blocks to their files; the summary comes last. Returns it.

    Raises UserError, which names the command `again`, where a conversation has no row.
    """
    tally = Tally()
    # Snakemake deletes the outputs of a rule that fails, and those are wanted just then.
    kept = work.folder / "errors.jsonl"
    with atomic_path(kept) as partial, partial.open("w", encoding="utf-8") as file:

        def good() -> Iterator[Record]:
            for row in _all_rows(work, again):
                if "error" in row:
                    tally.failed += 1
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                elif "excluded" in row:
                    tally.excluded[row["excluded"]] += 1
                else:
                    yield row

        written = _write(good(), tally, output)
    publish(kept, errors)
    return _summarise(tally, written, written, settings, output, summary)


def _all_rows(work: Work, again: str) -> Iterator[Record]:
    there = 0
    for block in range(len(work.source)):
        for row in work.rows(block):
            there += 1
            yield row
    if there != work.source.total:
        raise UserError(
            f"{work.source.total - there} of {work.source.total} conversations have neither a regenerated row nor a "
            f"failure in {work.folder}; ask for them with {again}."
        )


def write_copy(records: Iterable[Record], output: Path, errors: Path, summary: Path) -> dict[str, Any]:
    """The conversations as they are, where regeneration is off."""
    tally = Tally()
    write_jsonl(errors, ())
    return _summarise(tally, _write(records, tally, output), 0, False, output, summary)


def _write(rows: Iterable[Record], tally: Tally, output: Path) -> int:
    def counted() -> Iterator[Record]:
        for row in rows:
            tally.add(row)
            yield {key: value for key, value in row.items() if key not in NOTES}

    return write_jsonl(output, counted())


def _summarise(
    tally: Tally, written: int, regenerated: int, settings: dict[str, Any] | bool, output: Path, summary: Path
) -> dict[str, Any]:
    """No times, so that equal runs give equal files."""
    content = {
        "conversations": written + tally.failed + tally.excluded.total(),
        "regenerated": regenerated,
        "failed": tally.failed,
        "excluded": dict(sorted(tally.excluded.items())),
        "ended_early": tally.ended_early.total(),
        "ended_early_by_reason": dict(sorted(tally.ended_early.items())),
        "turns": tally.turns,
        "reasoning_turns": tally.reasoned,
        "tokens": tally.tokens,
        "finish_reasons": dict(sorted(tally.finish_reasons.items())),
        "sha256": sha256_file(output),
        "settings": settings,
    }
    write_json(summary, content)
    return content
