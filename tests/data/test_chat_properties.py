"""What holds for any conversation, template and way of cutting: prompts are the server's, masks the assistant's."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stock import MODELS, make_tokenizer
from test_stock_templates import _answer_starts, check_prompts

from specforge.data.chat import ChatEncoder
from specforge.data.template import Chat

WORDS = st.text(alphabet=st.sampled_from("ab .\n<|é水👋"), max_size=12) | st.sampled_from(
    ["<|im_end|>", "<|eot_id|>x", "</think>", "\n\n", " two  blanks ", "<|im_", "e\u0301", "[/INST]"]
)
ROUNDS = st.lists(st.tuples(WORDS, WORDS, st.sampled_from(["stop", "length", None])), min_size=1, max_size=4)


@cache
def encoder(name: str) -> ChatEncoder:
    return ChatEncoder(make_tokenizer(MODELS[name]), Chat(kwargs=dict(MODELS[name].kwargs)))


def conversation(rounds) -> list[dict]:
    turns = []
    for asked, answered, reason in rounds:
        turns.append({"role": "user", "content": f"{asked}?"})
        answer = {"role": "assistant", "content": answered or "."}
        turns.append(answer | ({"finish_reason": reason} if reason else {}))
    return turns


@pytest.mark.parametrize("name", MODELS)
@given(rounds=ROUNDS)
@settings(max_examples=40, deadline=None)
def test_prompts_are_those_of_the_tokenizer_id_for_id(name, rounds):
    check_prompts(encoder(name), conversation(rounds))


@pytest.mark.parametrize("name", ["qwen2.5", "llama3.1", "gemma3", "phi4"])
@given(rounds=ROUNDS)
@settings(max_examples=40, deadline=None)
def test_what_is_supervised_says_what_the_assistant_said(name, rounds):
    one, turns = encoder(name), conversation(rounds)
    said = []
    for sequence in one.sequences(turns):
        for start in _answer_starts(sequence):
            ids = sequence.ids[start:]
            length = sequence.mask[start:].index(False) if False in sequence.mask[start:] else len(ids)
            said.append(one.tokenizer.decode(ids[:length]))
    ends = ["" if turn.get("finish_reason") == "length" else MODELS[name].end for turn in turns[1::2]]
    assert said == [turn["content"] + end for turn, end in zip(turns[1::2], ends, strict=True)]


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
@given(rounds=ROUNDS, max_length=st.integers(1, 120))
@settings(max_examples=60, deadline=None)
def test_a_cut_is_at_a_turns_end_where_that_keeps_one(name, rounds, max_length):
    for sequence in encoder(name).sequences(conversation(rounds)):
        ids, mask, ends = list(sequence.ids), list(sequence.mask), list(sequence.turn_ends)
        went = sequence.cut(max_length)
        kept = len(sequence.ids)
        assert (sequence.ids, sequence.mask) == (ids[:kept], mask[:kept])
        assert kept <= max_length or not went
        assert went == (len(ids) > max_length)
        if went:
            assert kept == max((end for end in ends if end <= max_length), default=max_length)


@given(conversations=st.lists(ROUNDS, min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_many_at_once_are_as_one_by_one(conversations):
    one = encoder("qwen3")
    rows = [{"id": str(n), "conversations": conversation(rounds)} for n, rounds in enumerate(conversations)]
    assert one.encode_all(rows) == [list(one.sequences(row["conversations"])) for row in rows]
