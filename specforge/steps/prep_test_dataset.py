"""A small data set to try the later steps on."""

from typing import Any

from specforge.config.steps import Prepare
from specforge.steps.prep_dataset import prep_dataset

NAME = "synthetic-test"


def prep_test_dataset(*, sample_size: int = 100, seed: int = 0) -> dict[str, Any]:
    """Writes `datasets/synthetic-test_{train,test,rejected}.jsonl`: generated conversations, a fifth held out."""
    stem = f"datasets/{NAME}"
    return prep_dataset(
        dataset="synthetic",
        sample_size=sample_size,
        split_eval=True,
        seed=seed,
        settings=Prepare(test_share=0.2).model_dump(mode="json"),
        train=f"{stem}_train.jsonl",
        test=f"{stem}_test.jsonl",
        rejected=f"{stem}_rejected.jsonl",
        summary=f"{stem}_prep.json",
    )
