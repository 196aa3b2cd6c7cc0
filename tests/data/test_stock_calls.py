"""Turns of tool calls: learnt where the template writes each call, counted where it does not."""

import pytest
from stock import MODELS, make_tokenizer
from test_stock_templates import CALL, TALK, runs

from specforge.data.chat import ChatEncoder
from specforge.data.template import Chat, history


@pytest.fixture
def encoder_of():
    return lambda name: ChatEncoder(make_tokenizer(MODELS[name]), Chat(kwargs=MODELS[name].kwargs))


def test_a_tool_call_that_does_not_continue_its_prompt_is_counted(encoder_of):
    encoder = encoder_of("deepseek-r1")  # the prompt opens a thought, the template's history has none
    call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    (sequence,) = encoder.sequences([TALK[0], call, {"role": "tool", "content": "7"}, TALK[1]])
    assert encoder.counts["skipped_calls"] == 1
    assert len(runs(encoder.tokenizer, sequence)) == 1


@pytest.mark.parametrize("name", ["gemma3", "qwen2.5", "mistral", "phi4"])
@pytest.mark.parametrize("words", ["", "Let me count."])
def test_a_tool_call_that_the_template_leaves_out_is_counted_and_not_learnt(encoder_of, name, words):
    encoder = encoder_of(name)
    call = {"role": "assistant", "content": words, "tool_calls": [CALL]}
    assert not [run for sequence in encoder.sequences([TALK[0], call]) for run in runs(encoder.tokenizer, sequence)]
    assert encoder.counts["skipped_calls"] == 1


def test_a_template_that_writes_only_the_first_of_several_calls_is_not_learnt(encoder_of):
    encoder = encoder_of("llama3.1")
    assert list(encoder.sequences([TALK[0], {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}])) == []
    assert encoder.counts["skipped_calls"] == 1


@pytest.mark.parametrize(
    ("name", "thought", "words"),
    [
        ("qwen3", "<think>\nHm.\n</think>\n\n", '<tool_call>\n{"name": "count", "arguments": {"what": "apples"}}\n'),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant",
            ' to=functions.count<|channel|>commentary json<|message|>{"what": "apples"}',
        ),
    ],
)
@pytest.mark.parametrize("learn", [True, False])
def test_the_reasoning_before_a_call_is_learnt_only_when_asked(name, thought, words, learn):
    tokenizer = make_tokenizer(MODELS[name])
    ends = [tokenizer.convert_tokens_to_ids("<|call|>")] if name == "gpt-oss" else []
    encoder = ChatEncoder(tokenizer, end_ids=ends, train_on_reasoning=learn)
    call = {"role": "assistant", "content": "", "reasoning": "\nHm.\n", "tool_calls": [CALL]}
    (sequence,) = encoder.sequences([TALK[0], call])
    (said,) = runs(encoder.tokenizer, sequence)
    assert said.startswith((thought if learn else "") + words)
    assert thought + words in encoder.tokenizer.decode(sequence.ids)


@pytest.mark.parametrize("reasoning", [None, "<think>\nHm.\n</think>\n\n"], ids=["empty", "held"])
def test_an_empty_thought_or_one_in_the_content_is_not_learnt_before_a_call(reasoning):
    encoder = ChatEncoder(make_tokenizer(MODELS["qwen3"]), train_on_reasoning=False)
    call = {"role": "assistant", "content": (reasoning or "") + "I count.", "tool_calls": [CALL]}
    (sequence,) = encoder.sequences([TALK[0], call])
    (said,) = runs(encoder.tokenizer, sequence)
    assert said.startswith("I count.\n<tool_call>")


@pytest.mark.parametrize(
    ("name", "turn"),
    [
        ("llama3.1", {"content": "Let me look that up."}),
        ("llama3.1", {"content": "", "reasoning": "Hm."}),
        ("gpt-oss", {"content": "Let me look that up."}),
    ],
)
def test_a_call_whose_template_leaves_out_what_was_said_beside_it_is_not_learnt(name, turn):
    tokenizer = make_tokenizer(MODELS[name])
    ends = [tokenizer.convert_tokens_to_ids("<|call|>")] if name == "gpt-oss" else []
    encoder = ChatEncoder(tokenizer, end_ids=ends)
    assert list(encoder.sequences([TALK[0], {"role": "assistant", "tool_calls": [CALL], **turn}])) == []
    assert encoder.take_counts() == {"skipped_calls": 1}


@pytest.mark.parametrize("learn", [True, False])
def test_a_call_that_the_template_leaves_out_is_learnt_in_the_ids_that_the_target_sampled(learn):
    tokenizer = make_tokenizer(MODELS["llama3.1"])
    encoder = ChatEncoder(tokenizer, train_on_reasoning=learn)
    ids = tokenizer.encode("Hm. I look that up. <call>count</call><|eot_id|>", add_special_tokens=False)
    call = {
        "role": "assistant",
        "content": "I look that up.",
        "reasoning": "Hm.",
        "tool_calls": [CALL],
        "token_ids": ids,
    }
    found = [run for sequence in encoder.sequences([TALK[0], call]) for run in runs(tokenizer, sequence)]
    assert found == (["Hm. I look that up. <call>count</call><|eot_id|>"] if learn else [])


@pytest.mark.parametrize("calls", [["odd"], [{"function": None}], [{"function": {"arguments": {}}}]])
def test_a_tool_call_without_a_name_is_not_learnt(encoder_of, calls):
    encoder = encoder_of("gemma3")
    assert list(encoder.sequences([TALK[0], {"role": "assistant", "content": "", "tool_calls": calls}])) == []
    assert encoder.counts["skipped_calls"] == 1


@pytest.mark.parametrize("name", ["qwen3", "llama3.1", "gpt-oss"])
def test_arguments_as_text_are_read_as_servers_read_them(encoder_of, name):
    encoder = encoder_of(name)

    def turns(arguments):
        function = {"name": "count", "arguments": arguments}
        return [TALK[0], {"role": "assistant", "content": "", "tool_calls": [CALL | {"function": function}]}]

    texts = [encoder.render(history(turns(given))) for given in ({"what": "apples"}, '{"what": "apples"}')]
    assert texts[0] == texts[1]
    assert '{"what": "apples"}' in texts[0]
    odd = history(turns("not JSON"))[1]["tool_calls"][0]["function"]["arguments"]
    assert odd == "not JSON"
