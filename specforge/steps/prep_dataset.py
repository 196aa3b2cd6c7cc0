"""prep_dataset: raw conversations from any source to checked training and test files."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from specforge.config.steps import Prepare
from specforge.data.locate import source_name
from specforge.data.raw_files import RawRow
from specforge.data.reader import Reader, Usable
from specforge.data.records import IMAGE_UNSHOWN, Limits, Record
from specforge.data.sources import read_source
from specforge.data.split import HELD_OUT, Split
from specforge.errors import UserError
from specforge.files import atomic_path, read_jsonl, sha256_file, write_json, write_jsonl

log = logging.getLogger("specforge")

Sides = dict[str, Path]


def prep_dataset(
    *,
    dataset: str,
    revision: str | None = None,
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

    Every row read is in `train`, in `test`, or in `rejected` with its reason. Raises UserError, after `rejected` is
    written, when too many rows are unusable, when the held-out prompts cost training too much, and when a side of the
    split is empty.
    """
    if split_eval and test is None:
        raise ValueError("split_eval needs a test path")
    prepare = Prepare(**settings)
    source = read_source(dataset, sample_size, seed, revision)
    limits = Limits(prepare.max_turns, prepare.max_chars, source.needs_image, _folder(prepare.image_folder))
    split = Split(prepare.test_share if split_eval else 0.0, seed, prepare.near_duplicate)
    sides = {"train": Path(train)} | ({"test": Path(test)} if split_eval else {})
    with atomic_path(Path(rejected)) as partial, partial.open("w", encoding="utf-8") as file:
        reader = Reader(limits, sample_size, lambda row: file.write(json.dumps(row) + "\n"))
        counts, verdict = _write_sides(dataset, source.rows, reader, split, sides, prepare)
    if verdict:
        raise UserError(verdict + _way_out(reader, Path(rejected)))
    _check_sides(counts, reader, prepare)
    _check_leaks(counts["train"], reader, prepare, Path(rejected))
    if reader.notes[IMAGE_UNSHOWN]:
        log.warning(
            "prep_dataset: %d conversations are about images; answers about images are trained on as text; the "
            "pipeline shows the target no image",
            reader.notes[IMAGE_UNSHOWN],
        )
    origin = {"dataset": dataset, "source": source_name(dataset), "revision": revision, "commit": source.commit}
    result = origin | _counts(reader, counts) | {"sha256": _digests(sides)}
    write_json(Path(summary), result)
    log.info("prep_dataset: %s", ", ".join(f"{key} {result[key]}" for key in ("read", "kept", *counts, "rejected")))
    return result


def _write_sides(
    dataset: str, rows: Iterator[RawRow], reader: Reader, split: Split, sides: Sides, prepare: Prepare
) -> tuple[Counter[str], str | None]:
    """Reads all rows, then tells the sides apart: only then is it known what is held out.

    Returns how many conversations each side has, or none and what is wrong with the data set.
    """
    folder = sides["train"].parent
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as work:
        kept = Path(work) / "kept.jsonl"
        with closing(rows):
            write_jsonl(kept, _noted(reader.usable(rows), split))
        verdict = reader.verdict(dataset, prepare.max_rejected_share)
        if verdict:
            return Counter(), verdict
        counts = {name: write_jsonl(path, _side(name, kept, reader, split)) for name, path in sides.items()}
    return Counter(counts), None


def _noted(usable: Iterator[Usable], split: Split) -> Iterator[dict]:
    for one in usable:
        held_out = split.add(one.record)
        yield {"row": one.row, "line": one.line, "held_out": held_out, "record": one.record.plain()}


def _side(name: str, kept: Path, reader: Reader, split: Split) -> Iterator[dict]:
    """Native rows of one side; those that training may not hold are withdrawn when it is written."""
    for row in read_jsonl(kept):
        if row["held_out"] != (name == "test"):
            continue
        record = msgspec.convert(row["record"], Record)
        leak = None if row["held_out"] else split.leak(record)
        if leak is None:
            yield row["record"]
        else:
            reader.withdraw(Usable(row["row"], row["line"], record), leak)


def _folder(path: str | None) -> str | None:
    if path is not None and not Path(path).is_dir():
        raise UserError(f"prepare.image_folder: {path} is not a folder; name the one that the images' paths begin in.")
    return path


def _way_out(reader: Reader, rejected: Path) -> str:
    if not reader.read:
        return "."
    return f"; mend the rows listed in {_outliving(rejected)}{', or raise that share' if reader.kept else ''}."


def _outliving(rejected: Path) -> Path:
    """A copy that stays: Snakemake deletes a failed job's outputs."""
    shown = rejected.with_name(f".{rejected.name}")
    shutil.copyfile(rejected, shown)
    return shown


def _check_leaks(trained: int, reader: Reader, prepare: Prepare, rejected: Path) -> None:
    leaks = reader.rejected[HELD_OUT]
    if leaks > prepare.max_leaked_share * (trained + leaks):
        raise UserError(
            f"{leaks} of {trained + leaks} training conversations say a held-out prompt, or nearly, more than "
            f"prepare.max_leaked_share, {prepare.max_leaked_share:g}; take prompts that many conversations repeat out "
            f"of the data set (those lost are listed in {_outliving(rejected)}), raise prepare.near_duplicate, or "
            "raise that share."
        )


def _check_sides(counts: Counter[str], reader: Reader, prepare: Prepare) -> None:
    for side, count in counts.items():
        if not count:
            leaks = reader.rejected[HELD_OUT]
            lost = f", with {leaks} that say a held-out prompt left out," if leaks else ""
            raise UserError(
                f"the {side} side of {reader.kept} conversations{lost} is empty at prepare.test_share "
                f"{prepare.test_share:g}; change that share, raise sample_size, or set split_eval to false."
            )


def _counts(reader: Reader, counts: Counter[str]) -> dict[str, Any]:
    """`read` is `kept` and `rejected`; `kept` is `train` and `test`."""
    return {
        "read": reader.read,
        "kept": reader.kept,
        "train": counts["train"],
        "test": counts["test"],
        "rejected": reader.rejected.total(),
        "rejected_by_reason": dict(sorted(reader.rejected.items())),
        "notes": dict(reader.notes),
    }


def _digests(sides: Sides) -> dict[str, str | None]:
    return {"test": None} | {name: sha256_file(path) for name, path in sides.items()}
