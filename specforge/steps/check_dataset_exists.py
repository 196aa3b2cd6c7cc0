"""Whether a prepared data set is there, before anything that costs is started on it."""

from pathlib import Path
from typing import Any

from specforge.data.catalogue import NAMES
from specforge.errors import UserError
from specforge.files import read_json


def check_dataset_exists(*, dataset: str) -> dict[str, Any]:
    """What prep_dataset said of `datasets/<dataset>_train.jsonl`. Raises UserError when there is no such file."""
    train, summary = (Path(f"datasets/{dataset}_{end}") for end in ("train.jsonl", "prep.json"))
    if not train.is_file():
        prepared = sorted(path.name.removesuffix("_train.jsonl") for path in Path("datasets").glob("*_train.jsonl"))
        raise UserError(
            f"Dataset {dataset!r} not found in volume; prepare it with `modal run -m specforge.cloud.commands::"
            f"prep_dataset --dataset {dataset}`. Supported names: {', '.join(NAMES)}; prepared so far: "
            f"{', '.join(prepared) or 'none'}."
        )
    return {"dataset": dataset, "file": str(train), "bytes": train.stat().st_size, "summary": read_json(summary)}
