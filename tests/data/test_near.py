import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specforge.data.near import NearIndex, normalise, shingles, similarity

ASK = "Write a Python function that checks whether a number is even and returns true or false"
LONG = " ".join(f"word{n}" for n in range(40))


def alike(one, other):
    return similarity(shingles(normalise(one)), shingles(normalise(other)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ASK, ASK.upper() + "!!!"),
        (ASK, f"Hello. {ASK}"),
        (ASK, f"{ASK}, please. Thanks!"),
        (LONG, LONG.replace("word20", "other")),
        ("请用中文写一首关于春天的诗歌好吗", "请用中文写一首关于春天的诗歌，好吗？"),
        ("请用中文写一首关于春天的诗歌好吗谢谢", "你好请用中文写一首关于春天的诗歌好吗谢谢"),
        ("ok", "OK."),
        ("🙂", "🙂"),
    ],
)
def test_what_counts_as_the_same(one, other):
    assert alike(one, other) >= 0.7


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of France?", "What is the capital of Spain?"),
        (ASK, ASK.replace("even", "odd")),
        (ASK, ASK.replace("Python", "Rust").replace("number", "string")),
        (LONG, " ".join(reversed(LONG.split()))),
        ("Explain " + LONG, "Explain"),
        ("请用中文写一首关于春天的诗歌", "请用中文写一首关于秋天的诗歌"),
        ("ok", "no"),
        ("🙂", "🙁"),
    ],
)
def test_what_does_not(one, other):
    assert alike(one, other) < 0.7


def test_marks_alone_are_told_apart():
    assert normalise("???") == "???"
    assert alike("???", "!") == 0


def test_the_most_similar_is_named():
    index = NearIndex(0.5)
    index.add("far", normalise(ASK + " in one line of code"))
    index.add("same", normalise(ASK))
    assert index.nearest(normalise(ASK)) == (1.0, "same")
    assert index.nearest(normalise("Something else")) is None


@settings(max_examples=150)
@given(
    st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12).map(" ".join), min_size=2, max_size=12),
    st.sampled_from([0.2, 0.5, 0.7, 0.75, 0.8, 1.0]),
)
def test_the_search_finds_what_comparing_all_pairs_finds(prompts, threshold):
    index = NearIndex(threshold)
    for number, prompt in enumerate(prompts):
        index.add(str(number), prompt)
    for prompt in [*prompts, "a b c d a b c"]:
        assert index.nearest(prompt) == closest(prompt, prompts, threshold)


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=9).map(" ".join), min_size=2, max_size=20),
    st.integers(0, 30),
    st.sampled_from([0.3, 0.5, 0.7, 0.9]),
)
def test_the_search_is_exact_where_all_prompts_share_a_preamble(tails, shared, threshold):
    prompts = [" ".join([*(f"word{n}" for n in range(shared)), tail]) for tail in tails]
    index = NearIndex(threshold)
    for place, prompt in enumerate(prompts):
        assert index.nearest(prompt) == closest(prompt, prompts[:place], threshold)
        index.add(str(place), prompt)


def closest(prompt, prompts, threshold):
    """By comparing all."""
    pairs = ((similarity(shingles(prompt), shingles(one)), str(place)) for place, one in enumerate(prompts))
    return max((pair for pair in pairs if pair[0] >= threshold), default=None)


def test_a_shared_preamble_makes_no_candidates():
    preamble = " ".join(f"word{n}" for n in range(45))
    index = NearIndex(0.7)
    for name in range(300):
        index.add(str(name), " ".join([preamble, *(f"own{name}x{n}" for n in range(15))]))
    assert index.nearest(" ".join([preamble, *(f"new{n}" for n in range(15))])) is None
    found = np.array(sorted(shingles(" ".join([preamble, *(f"new{n}" for n in range(15))]))), dtype=np.uint64)
    assert index._postings.candidates(found, 0.7) == []
