from pathlib import Path

import pytest
from tiny import make_conversations, make_target_file
from tiny_draft import make_deep_target

from specforge.config.steps import Preprocess
from specforge.files import write_jsonl
from specforge.steps.preprocess_dataset import preprocess_dataset


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Target, cache and vocabulary that all trainings share."""
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "train.jsonl", make_conversations(20))
    preprocess_dataset(
        source=str(folder / "train.jsonl"),
        target=str(make_target_file(folder, make_deep_target(folder / "model"))),
        settings=Preprocess(draft_vocab_size=64, min_coverage=0).model_dump(mode="json"),
        max_length=160,
        cache=str(folder / "cache.arrow"),
        vocab=str(folder / "vocab.safetensors"),
        summary=str(folder / "summary.json"),
    )
    return folder
