import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specforge.data.split import Split, normalise, user_prompts
from specforge.data.synthetic import generate


def record(*prompts):
    texts = [(role, text) for p in prompts for role, text in (("user", p), ("assistant", "Yes."))]
    return {"id": repr(prompts), "conversations": [{"role": role, "content": text} for role, text in texts]}


def sides(records, share=0.3, seed=0):
    split = Split(share, seed)
    for one in records:
        split.add(one)
    split.settle()
    test = [one for one in records if split.is_test(one)]
    return [one for one in records if not split.is_test(one)], test, split


@pytest.mark.parametrize("text", ["What's  up?", "what s up", "WHAT'S\nUP!!", " What’s up… "])
def test_case_space_and_punctuation_do_not_count(text):
    assert normalise(text) == "what s up"


def test_templated_prompts_land_on_one_side():
    records = [record(f"Question {n % 20}{end}") for n in range(200) for end in ("", "?", " !!")]
    train, test, _ = sides(records)
    assert train
    assert test
    assert not {user_prompts(r)[0] for r in train} & {user_prompts(r)[0] for r in test}


def test_a_held_out_prompt_is_not_said_later_in_training():
    singles = [record(f"Question {n}?") for n in range(60)]
    train, test, _ = sides(singles)
    leaked = test[0]["conversations"][0]["content"]
    chain = test[1]["conversations"][0]["content"]
    # A training record says `leaked` later, and a record starting with `leaked` says `chain` later.
    extra = [record(train[0]["conversations"][0]["content"], leaked.upper()), record(leaked, chain)]
    train, test, split = sides([*singles, *extra])
    held = {user_prompts(r)[0] for r in test}
    assert normalise(leaked) not in held
    assert normalise(chain) not in held
    assert split.moved == 3
    assert len(train) + len(test) == 62


def test_sides_stay_when_rows_are_added():
    records = [record(f"Question {n}?") for n in range(300)]
    _, before, _ = sides(records[:100])
    _, after, _ = sides(records)
    assert [r for r in after if r in records[:100]] == before


def test_the_share_is_about_met_and_the_seed_matters():
    records = [record(f"Question {n}?") for n in range(2000)]
    _, test, _ = sides(records, share=0.06)
    assert 80 < len(test) < 160
    assert sides(records, share=0.06, seed=1)[1] != test
    assert sides(records, share=0.0)[1] == []
    assert sides(records, share=1.0)[0] == []


@settings(max_examples=60)
@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3), max_size=25), st.integers(0, 9))
def test_nothing_leaks(prompts, seed):
    records = [record(*row) for row in prompts]
    train, test, _ = sides(records, share=0.5, seed=seed)
    assert len(train) + len(test) == len(records)
    assert not {user_prompts(r)[0] for r in test} & {p for r in train for p in user_prompts(r)}


def test_nothing_leaks_in_synthetic_data():
    train, test, split = sides(list(generate(600, 0)), share=0.1)
    assert test
    assert not split.moved
    assert not {user_prompts(r)[0] for r in test} & {p for r in train for p in user_prompts(r)}
