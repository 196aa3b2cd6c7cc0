"""Each source's adapter on a row of its real schema (the data set's card, or its loader in sgl-project/SpecForge)."""

import pytest

from specforge.data.catalogue import SOURCES
from specforge.data.records import Limits, parse_row
from specforge.data.rejected import RejectedRow

ASK, ANSWER = "How do I sort a list?", "Call sorted() on it."
NATIVE = [{"role": "user", "content": ASK}, {"role": "assistant", "content": ANSWER}]
SHAREGPT = [{"from": "human", "value": ASK}, {"from": "gpt", "value": ANSWER}]
PICTURE = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A silver ring."}]

ROWS = {
    "ultrachat": ({"prompt": ASK, "prompt_id": "f0e37e9f", "messages": NATIVE}, {"id": "f0e37e9f"}),
    "sharegpt": ({"id": "QWJhYvA_0", "conversations": SHAREGPT}, {"id": "QWJhYvA_0"}),
    "eaglechat": ({"id": "12", "conversations": NATIVE}, {"id": "12"}),
    "perfectblend": ({"conversations": SHAREGPT, "source": "openhermes-2.5"}, {}),
    "magpie-qwen2.5-pro-1m-v0.1": (
        {
            "uuid": "b2a1", "model": "Qwen/Qwen2.5-72B-Instruct", "gen_input_configs": {"temperature": 1.0},
            "instruction": ASK, "response": ANSWER, "conversations": SHAREGPT, "task_category": "Coding",
            "other_task_category": [], "difficulty": "easy", "instruct_reward": -1.5, "language": "EN",
        },
        {"id": "b2a1"},
    ),
    "sharegpt4v": (
        {"id": "000000000009", "image": "coco/train2017/000000000009.jpg", "conversations": PICTURE},
        {"id": "000000000009", "image": "coco/train2017/000000000009.jpg"},
    ),
    "allava4v": (
        {
            "id": "allava_laion_inst_100277305", "image": "allava_laion/images/100277305.jpeg",
            "conversations": PICTURE, "url": "https://example.org/100277305.jpeg",
        },
        {"id": "allava_laion_inst_100277305", "image": "allava_laion/images/100277305.jpeg"},
    ),
    "opc": ({"instruction": ASK, "output": ANSWER, "tag": "code", "source": "infinity"}, {}),
}  # fmt: skip


def parse(name, row):
    source = SOURCES[name]
    return parse_row(source.row(row), Limits(64, 10_000, source.images))


def test_each_source_has_its_row():
    assert ROWS.keys() == SOURCES.keys()


@pytest.mark.parametrize("name", SOURCES)
def test_a_row_becomes_a_record(name):
    row, expected = ROWS[name]
    record = parse(name, row).record.plain()
    turns = [{"role": "user", "content": PICTURE[0]["value"]}, {"role": "assistant", "content": PICTURE[1]["value"]}]
    assert record["conversations"] == (turns if SOURCES[name].images else NATIVE)
    assert {key: record[key] for key in expected} == expected
    assert record.keys() == {"id", "conversations", *expected}


@pytest.mark.parametrize("name", SOURCES)
def test_a_row_of_another_schema_is_rejected(name):
    for row in ({}, {"text": ASK}, dict.fromkeys(ROWS[name][0]), dict.fromkeys(ROWS[name][0], 3)):
        with pytest.raises(RejectedRow):
            parse(name, row)


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.images])
def test_an_image_that_is_missing_is_the_reason(name, tmp_path):
    row, _ = ROWS[name]
    with pytest.raises(RejectedRow) as caught:
        parse(name, {**row, "image": None})
    assert caught.value.reason == "image_missing"
    with pytest.raises(RejectedRow, match=r"is not in prepare\.image_folder"):
        parse_row(row, Limits(64, 10_000, True, str(tmp_path)))
