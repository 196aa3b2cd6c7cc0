import itertools
import re
import statistics
from collections import Counter
from random import Random

import pytest

from specforge.data.near import normalise
from specforge.data.records import Limits, parse_row
from specforge.data.synthetic import KINDS, generate
from specforge.data.wording import say


def user_prompts(record):
    return [normalise(turn["content"]) for turn in record["conversations"] if turn["role"] == "user"]


def test_equal_seeds_give_equal_records():
    first = list(generate(30, 4))
    assert first == list(generate(30, 4)) == list(itertools.islice(generate(None, 4), 30))
    assert first[:10] == list(generate(10, 4))
    assert all(a["conversations"] != b["conversations"] for a, b in zip(first, generate(30, 5), strict=True))


def test_every_record_is_a_valid_native_record():
    for record in generate(400, 0):
        parsed, notes = parse_row(record, Limits(8, 5000))
        assert (parsed.plain(), notes) == (record, {})


def test_wording_varies_but_prompts_repeat_now_and_then():
    records = list(generate(1200, 0))
    prompts = Counter(user_prompts(record)[0] for record in records)
    assert 0.6 < len(prompts) / len(records) < 1
    turns = Counter(len(user_prompts(record)) for record in records)
    assert set(turns) == {1, 2, 3}
    systems = sum(record["conversations"][0]["role"] == "system" for record in records)
    assert 0.1 < systems / len(records) < 0.2
    answers = [t["content"] for record in records for t in record["conversations"] if t["role"] == "assistant"]
    assert len(set(answers)) > 0.9 * len(answers)
    assert 25 < statistics.mean(len(answer.split()) for answer in answers) < 80


def test_no_follow_up_is_ever_a_first_question():
    records = list(generate(1200, 1))
    first = {user_prompts(record)[0] for record in records}
    assert not first & {prompt for record in records for prompt in user_prompts(record)[1:]}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_kind_leaves_a_template_unfilled(kind):
    for seed in range(150):
        ask, answer, more = kind(Random(seed))
        for text in (ask, answer, *itertools.chain(*more)):
            assert text[0] == text[0].upper()
            assert not re.search(r"[{}|]|  | [,.]", text.replace("    return", "")), text
        assert len(more) == 2


def test_the_sums_are_right():
    for seed in range(100):
        for kind in KINDS[:5]:
            _, answer, more = kind(Random(seed))
            for text in (answer, *(reply for _, reply in more)):
                for left, right in re.findall(r"((?:\d+ [-+*/] )+\d+) = (\d+)", text):
                    assert eval(left) == int(right), text


def test_say_takes_one_alternative_and_keeps_brackets_of_words():
    texts = {say(Random(n), "[a [b|c]|d] {x}. e", x="[1|2]") for n in range(60)}
    assert texts == {"A b [1|2]. E", "A c [1|2]. E", "D [1|2]. E"}
