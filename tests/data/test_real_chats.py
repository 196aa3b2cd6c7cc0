"""Conversations of real people, from a file that is not part of the project: SPECFORGE_CHATS=chats.json."""

import os
from pathlib import Path

import pytest
from stock import MODELS, make_tokenizer
from test_stock_templates import check_prompts, runs

from specforge.config.steps import Prepare
from specforge.data.chat import ChatEncoder
from specforge.data.template import Chat, Refused
from specforge.files import read_jsonl
from specforge.steps.prep_dataset import prep_dataset

CHATS = os.environ.get("SPECFORGE_CHATS")
pytestmark = pytest.mark.skipif(CHATS is None, reason="SPECFORGE_CHATS names no file of conversations")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    files = {name: str(folder / name) for name in ("train", "test", "rejected", "summary")}
    settings = Prepare(max_rejected_share=1, max_leaked_share=1).recipe()
    told = prep_dataset(dataset=CHATS, sample_size=None, split_eval=True, seed=0, settings=settings, **files)
    return told, {name: list(read_jsonl(Path(path))) for name, path in files.items() if name != "summary"}


def test_every_row_is_kept_or_rejected_once(prepared):
    told, rows = prepared
    assert told["read"] == told["kept"] + told["rejected"] == sum(map(len, rows.values()))
    assert len({row["id"] for side in ("train", "test") for row in rows[side]}) == told["kept"] > 0
    assert all(row["reason"] and row["line"] for row in rows["rejected"])


@pytest.mark.parametrize("name", MODELS)
def test_prompts_are_the_tokenizers_and_every_answer_is_learnt_whole(prepared, name):
    encoder = ChatEncoder(make_tokenizer(MODELS[name]), Chat(kwargs=MODELS[name].kwargs))
    learnt = 0
    for record in prepared[1]["train"]:
        turns = record["conversations"]
        try:
            sequences = check_prompts(encoder, turns)
        except Refused:
            continue  # some templates take no system turn
        said = [run for sequence in sequences for run in runs(encoder.tokenizer, sequence)]
        answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        assert all(run.endswith(answer + MODELS[name].end) for run, answer in zip(said, answers, strict=True))
        learnt += 1
    assert learnt > 0.9 * len(prepared[1]["train"])
