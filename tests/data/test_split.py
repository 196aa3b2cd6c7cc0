import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specforge.data.near import normalise, shingles, similarity
from specforge.data.records import Limits, Record, Turn, parse_row
from specforge.data.split import Split, user_prompts
from specforge.data.synthetic import generate


def record(*prompts):
    turns = [Turn(role, text) for p in prompts for role, text in (("user", p), ("assistant", "Yes."))]
    return Record(id=repr(prompts), conversations=turns)


def sides(records, share=0.3, seed=0, near=0.7):
    """Training, test, and those that training may not hold."""
    split = Split(share, seed, near)
    held_out = [split.add(one) for one in records]
    test = [one for one, held in zip(records, held_out, strict=True) if held]
    rest = [one for one, held in zip(records, held_out, strict=True) if not held]
    return [one for one in rest if not split.leak(one)], test, [one for one in rest if split.leak(one)]


def said(records):
    return {prompt for one in records for prompt in user_prompts(one)}


def telling(one):
    first, *later = user_prompts(one)
    return [first, *(prompt for prompt in later if len(prompt.split()) >= 6)]


def firsts(records):
    return {user_prompts(one)[0] for one in records}


def test_one_question_lands_on_one_side():
    records = [record(f"Question {n % 20}{end}") for n in range(200) for end in ("", "?", " !!")]
    train, test, leaks = sides(records)
    assert train
    assert test
    assert not leaks
    assert not firsts(train) & firsts(test)


def test_training_loses_what_says_a_held_out_prompt_and_the_evaluation_keeps_it():
    singles = [record(f"What is the answer to question {n}?") for n in range(60)]
    train, test, _ = sides(singles)
    leaked = test[0].conversations[0].content
    extra = record(train[0].conversations[0].content, leaked.upper())
    assert sides([*singles, extra]) == (train, test, [extra])
    assert sides([extra, *singles]) == (train, test, [extra])


@pytest.mark.parametrize(("later", "leaks"), [("go on with the story please", True), ("go on with it please", False)])
def test_a_later_turn_of_less_than_six_words_costs_training_nothing(later, leaks):
    held, other = record(later), record("What is the capital of France?", later)
    seed = next(seed for seed in range(999) if Split(0.5, seed, 0.7).add(held) and not Split(0.5, seed, 0.7).add(other))
    assert sides([held, other], 0.5, seed) == (([], [held], [other]) if leaks else ([other], [held], []))


def test_a_question_about_an_image_is_another_about_another_image():
    asked = [record("What do you see in this image?") for _ in range(200)]
    for number, one in enumerate(asked):
        one.image, one.id = f"{number // 2}.jpg", str(number)
    train, test, leaks = sides(asked)
    assert 30 < len(test) < 90
    assert not leaks
    assert not {one.image for one in train} & {one.image for one in test}
    about, bare = record("Tell me what do you see in this image, please?"), record("What do you see in this image?")
    about.image = test[0].image
    split = Split(0.3, 0, 0.5)
    assert [split.add(one) for one in test] == [True] * len(test)
    assert split.leak(about)
    assert not split.leak(bare)


def test_a_near_duplicate_goes_and_its_reason_names_the_held_out_conversation():
    asked = "Can you write a short story about a dragon who is afraid of fire"
    held, close, far = record(asked), record(f"Hello! {asked}, please."), record(asked.replace("dragon", "fireman"))
    seed = next(seed for seed in range(999) if sides([held, close, far], 0.5, seed)[1] == [held])
    assert sides([held, close, far], 0.5, seed) == ([far], [held], [close])
    split = Split(0.5, seed, 0.7)
    split.add(held)
    leak = split.leak(close)
    assert leak.reason == "held_out_prompt"
    assert repr(held.id)[:70] in leak.detail
    assert "similarity 0.86" in leak.detail


def test_the_share_is_about_met_and_the_seed_matters():
    records = [record(f"Question {n}?") for n in range(2000)]
    test = sides(records, share=0.06)[1]
    assert 80 < len(test) < 160
    assert sides(records, share=0.06, seed=1)[1] != test
    assert sides(records, share=0.0)[1:] == ([], [])
    assert sides(records, share=1.0)[::2] == ([], [])


WORDS = ("what", "is", "the", "name", "of", "a", "red", "fox")
prompts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)
rows = st.lists(st.lists(prompts, min_size=1, max_size=3).map(lambda texts: record(*texts)), max_size=25)


@settings(max_examples=100, deadline=None)
@given(rows, st.integers(0, 9), st.sampled_from([0.3, 0.7, 1.0]))
def test_training_says_no_held_out_prompt_nor_nearly(records, seed, near):
    train, test, leaks = sides(records, share=0.5, seed=seed, near=near)
    assert len(train) + len(test) + len(leaks) == len(records)
    held = [shingles(prompt) for prompt in firsts(test)]
    for side, expected in ((train, False), (leaks, True)):
        for one in side:
            closest = max((similarity(shingles(p), h) for p in telling(one) for h in held), default=0)
            assert (closest >= near) is expected


@settings(max_examples=60, deadline=None)
@given(rows, rows, st.randoms())
def test_sides_depend_on_no_order_and_added_rows_never_cost_the_evaluation_one(records, added, rng):
    _, test, _ = sides(records)
    shuffled = rng.sample(records, len(records))
    assert [{id(one) for one in side} for side in sides(shuffled)] == [
        {id(one) for one in side} for side in sides(records)
    ]
    _, more, _ = sides([*records, *added])
    assert [one for one in more if any(one is other for other in records)] == test


def test_nothing_leaks_in_synthetic_data():
    records = [parse_row(row, Limits(64, 10_000)).record for row in generate(600, 0)]
    random.Random(1).shuffle(records)
    train, test, leaks = sides(records, share=0.1)
    assert len(test) > 30
    assert len(leaks) < 30
    assert not firsts(test) & said(train)


@pytest.mark.parametrize("text", ["What's  up?", "what s up", "WHAT'S\nUP!!", " What’s up… ", "ｗｈａｔ s up"])
def test_case_space_punctuation_and_width_do_not_count(text):
    assert normalise(text) == "what s up"
