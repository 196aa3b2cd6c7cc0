"""Stock chat models' ways with history, system turns, tools, thoughts and end tokens; prompts id for id."""

import pytest
from stock import MODELS, make_tokenizer

from specforge.data.chat import ChatEncoder
from specforge.data.template import Chat, history

SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    {"role": "user", "content": "How many apples?"},
    {"role": "assistant", "content": "There are seven."},
    {"role": "user", "content": "And green ones?"},
    {"role": "assistant", "content": "Two of them."},
]
TOOL = {"type": "function", "function": {"name": "count", "description": "Counts.", "parameters": {}}}
CALL = {"type": "function", "id": "a23456789", "function": {"name": "count", "arguments": {"what": "apples"}}}


@pytest.fixture(scope="module")
def tokenizers():
    return {name: make_tokenizer(model) for name, model in MODELS.items()}


@pytest.fixture
def encoder_of(tokenizers):
    def make(name, **options):
        return ChatEncoder(tokenizers[name], Chat(kwargs=MODELS[name].kwargs), **options)

    return make


def runs(tokenizer, sequence) -> list[str]:
    """The supervised runs of a sequence, as text."""
    found, before = [], False
    for token, supervised in zip(sequence.ids, sequence.mask, strict=True):
        if supervised:
            found = found if before else [*found, []]
            found[-1].append(token)
        before = supervised
    return [tokenizer.decode(run) for run in found]


def check_prompts(encoder, turns, tools=None) -> list:
    """Each answer stands behind the very ids that the tokenizer gives for its prompt; returns the sequences."""
    sequences = list(encoder.sequences(turns, tools))
    places = [(s, start) for s in sequences for start in _answer_starts(s)]
    prompts = [
        encoder.tokenizer.apply_chat_template(
            history(turns[:index]), tools=tools, add_generation_prompt=True, return_dict=False, **encoder.chat.kwargs
        )
        for index, turn in enumerate(turns)
        if turn["role"] == "assistant"
    ]
    assert [sequence.ids[:start] for sequence, start in places] == prompts
    return sequences


def _answer_starts(sequence) -> list[int]:
    return [at for at, (now, before) in enumerate(zip(sequence.mask, [False, *sequence.mask], strict=False))
            if now and not before]  # fmt: skip


# What of the first answer is learnt, and in how many sequences a talk of two answers ends up.
PLAIN = {
    "qwen3": ("<think>\n\n</think>\n\nThere are seven.<|im_end|>", 2),
    "qwen3-not-thinking": ("There are seven.<|im_end|>", 2),
    "qwen2.5": ("There are seven.<|im_end|>", 1),
    "llama3.1": ("There are seven.<|eot_id|>", 1),
    "mistral": ("There are seven.</s>", 1),
    "gemma3": ("There are seven.<end_of_turn>", 1),
    "phi4": ("There are seven.<|im_end|>", 1),
    "gpt-oss": ("<|channel|>final<|message|>There are seven.<|return|>", 2),
    "deepseek-r1": ("\n</think>\n\nThere are seven.<｜end▁of▁sentence｜>", 2),
    "deepseek-v3.1": ("There are seven.<｜end▁of▁sentence｜>", 1),
    "deepseek-v3.1-thinking": ("</think>There are seven.<｜end▁of▁sentence｜>", 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_prompts_are_the_servers_and_answers_end_as_the_model_ends_them(encoder_of, name):
    encoder = encoder_of(name)
    first, parts = PLAIN[name]
    sequences = check_prompts(encoder, TALK)
    assert len(sequences) == parts
    said = [run for sequence in sequences for run in runs(encoder.tokenizer, sequence)]
    assert said == [first, first.replace("There are seven.", "Two of them.")]


@pytest.mark.parametrize("name", MODELS)
def test_system_turns_stand_where_the_template_puts_them(encoder_of, name):
    encoder = encoder_of(name)
    sequences = check_prompts(encoder, [SYSTEM, *TALK])
    assert "Be brief." in encoder.tokenizer.decode(sequences[0].ids)
    if name == "mistral":  # its last question takes the system's words along, so no prefix is kept
        assert len(sequences) == 2


@pytest.mark.parametrize("name", ["qwen3", "llama3.1", "mistral", "gpt-oss"])
def test_tools_are_part_of_the_prompt(encoder_of, name):
    encoder = encoder_of(name)
    sequences = check_prompts(encoder, TALK, [TOOL])
    assert all("Counts." in encoder.tokenizer.decode(sequence.ids) for sequence in sequences)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("qwen3", "<tool_call>\n{call}\n</tool_call><|im_end|>"),
        ("llama3.1", "{call}<|eot_id|>"),
        ("gpt-oss", ' to=functions.count<|channel|>commentary json<|message|>{"what": "apples"}<|call|>'),
    ],
)
def test_a_turn_of_tool_calls_is_learnt_in_the_templates_words(encoder_of, name, call):
    encoder = encoder_of(
        name, end_ids=[make_tokenizer(MODELS[name]).convert_tokens_to_ids("<|call|>")] * (name == "gpt-oss")
    )
    turns = [
        TALK[0],
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "7"},
        TALK[1],
    ]
    sequences = check_prompts(encoder, turns, [TOOL])
    said = runs(encoder.tokenizer, sequences[0])[0]
    assert said.endswith(call.replace("{call}", '{"name": "count", "arguments": {"what": "apples"}}'))
    assert "There are seven." in runs(encoder.tokenizer, sequences[-1])[-1]


THOUGHT = {
    "qwen3": ("<think>\nOne by one.\n</think>\n\n", "There are seven.<|im_end|>"),
    "gpt-oss": (
        "<|channel|>analysis<|message|>One by one.<|end|><|start|>assistant<|channel|>final<|message|>",
        "There are seven.<|return|>",
    ),
    "deepseek-r1": ("One by one.\n</think>\n\n", "There are seven.<｜end▁of▁sentence｜>"),
    "deepseek-v3.1-thinking": ("One by one.</think>", "There are seven.<｜end▁of▁sentence｜>"),
}


@pytest.mark.parametrize("name", THOUGHT)
@pytest.mark.parametrize("reasoning", ["One by one.", "\nOne by one.\n"], ids=["stripped", "raw"])
def test_reasoning_goes_back_to_where_the_model_wrote_it(encoder_of, name, reasoning):
    turns = [TALK[0], TALK[1] | {"reasoning": reasoning, "finish_reason": "stop"}, *TALK[2:]]
    encoder = encoder_of(name)
    sequences = check_prompts(encoder, turns)
    assert runs(encoder.tokenizer, sequences[0])[0] == "".join(THOUGHT[name])
    assert "One by one." not in encoder.tokenizer.decode(sequences[1].ids)


@pytest.mark.parametrize("name", THOUGHT)
def test_reasoning_is_read_and_not_learnt_when_asked(encoder_of, name):
    encoder = encoder_of(name, train_on_reasoning=False)
    (sequence,) = encoder.sequences([TALK[0], TALK[1] | {"reasoning": "One by one."}])
    assert runs(encoder.tokenizer, sequence) == [THOUGHT[name][1]]
    assert "".join(THOUGHT[name]) in encoder.tokenizer.decode(sequence.ids)


@pytest.mark.parametrize("learn", [True, False])
def test_an_answer_that_holds_its_reasoning_is_taken_as_it_is(encoder_of, learn):
    encoder = encoder_of("qwen3", train_on_reasoning=learn)
    held = "<think>\n1, 2, 3 ...\n</think>\n\nThere are seven."
    (sequence,) = encoder.sequences([TALK[0], {"role": "assistant", "content": held}])
    said = held if learn else "There are seven."
    assert runs(encoder.tokenizer, sequence) == [f"{said}<|im_end|>"]
    assert encoder.tokenizer.decode(sequence.ids).endswith(f"assistant\n{held}<|im_end|>")


@pytest.mark.parametrize("name", ["qwen3", "deepseek-r1"])
@pytest.mark.parametrize("apart", [True, False])
def test_a_thought_that_the_length_limit_cut_has_no_close_and_no_end(encoder_of, name, apart):
    encoder = encoder_of(name)
    opening = "<think>\n" if name == "qwen3" else ""
    turn = {"content": "", "reasoning": "One by"} if apart else {"content": f"{opening}One by"}
    (sequence,) = encoder.sequences([TALK[0], {"role": "assistant", "finish_reason": "length", **turn}])
    assert runs(encoder.tokenizer, sequence) == [f"{opening}One by"]


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3-not-thinking"])
def test_reasoning_without_a_place_in_the_template_is_written_as_is_usual(encoder_of, name):
    encoder = encoder_of(name)
    sequence = check_prompts(encoder, [TALK[0], TALK[1] | {"reasoning": "One by one."}, *TALK[2:]])[0]
    said = runs(encoder.tokenizer, sequence)[0]
    assert said == "<think>\nOne by one.\n</think>\n\nThere are seven.<|im_end|>"


@pytest.mark.parametrize("name", ["llama3.1", "gemma3"])
def test_blanks_that_the_template_trims_from_history_split_the_conversation(encoder_of, name):
    encoder = encoder_of(name)
    turns = [TALK[0], TALK[1] | {"content": "There are seven.\n"}, *TALK[2:]]
    sequences = check_prompts(encoder, turns)
    assert len(sequences) == 2
    assert runs(encoder.tokenizer, sequences[0])[0] == f"There are seven.\n{MODELS[name].end}"


def test_an_answer_whose_start_merges_with_its_prompt_splits_the_conversation(encoder_of):
    encoder = encoder_of("qwen2.5")  # its prompt ends with a line end, and two line ends are one token
    assert len(encoder.encode.one("\n\n")) == 1
    sequences = check_prompts(encoder, [TALK[0], TALK[1] | {"content": "\n\nSeven."}, *TALK[2:]])
    said = [runs(encoder.tokenizer, sequence) for sequence in sequences]
    assert said == [["\n\nSeven.<|im_end|>"], ["Two of them.<|im_end|>"]]


def test_roles_that_a_template_refuses_are_told(encoder_of):
    turns = [TALK[0], TALK[0], TALK[1]]
    good = {"id": "a", "conversations": TALK}
    found = encoder_of("gemma3").encode_all([good, {"id": "b", "conversations": turns}, good])
    assert found[1] == "the chat template refuses it: roles must alternate"
    assert [sequence.ids for sequence in found[0]] == [sequence.ids for sequence in found[2]]


@pytest.mark.parametrize("name", ["llama3.1", "gemma3", "gpt-oss"])
def test_the_models_end_token_is_in_the_draft_vocabulary_whatever_the_tokenizers(encoder_of, name):
    encoder = encoder_of(name)
    list(encoder.sequences(TALK))
    assert encoder.ends_used == {encoder.tokenizer.convert_tokens_to_ids(MODELS[name].end)}


@pytest.mark.parametrize("reason", ["length", "abort", "content_filter", "unknown"])
def test_only_an_answer_that_the_target_ended_has_an_end_token(encoder_of, reason):
    encoder = encoder_of("qwen3")
    call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    for turn in (TALK[1], call):
        for finish, ended in ((reason, False), ("stop", True), ("tool_calls", True), (None, True)):
            (sequence,) = encoder.sequences([TALK[0], turn | {"finish_reason": finish}])
            assert (sequence.ids[-1] == encoder.tokenizer.eos_token_id) == ended


@pytest.mark.parametrize("name", ["qwen3", "llama3.1", "deepseek-v3.1"])
def test_an_answer_that_quotes_the_marks_of_a_thought_is_an_answer(encoder_of, name):
    encoder = encoder_of(name, train_on_reasoning=False)
    quoting = "Write `</think>` to close the block."
    (sequence,) = encoder.sequences([TALK[0], TALK[1] | {"content": quoting}])
    (said,) = runs(encoder.tokenizer, sequence)
    assert said == f"{quoting}{MODELS[name].end}"
    assert encoder.tokenizer.decode(sequence.ids).endswith(PLAIN[name][0].replace(TALK[1]["content"], quoting))


def test_a_thought_ends_at_its_first_mark_and_the_answer_may_quote_another(encoder_of):
    encoder = encoder_of("deepseek-r1", train_on_reasoning=False)
    turn = {"role": "assistant", "content": "Hm.\n</think>\n\nIt is `</think>`."}
    (sequence,) = encoder.sequences([TALK[0], turn])
    assert runs(encoder.tokenizer, sequence) == ["It is `</think>`.<｜end▁of▁sentence｜>"]


@pytest.mark.parametrize(
    "odd", ["{{ 1 // 0 }}", "{{ 'x'.nothing() }}", "{{ ['a'].index('b') }}", "{{ 'x' | int // 0 }}"]
)
def test_whatever_a_template_raises_refuses_the_conversation_alone(encoder_of, odd):
    encoder = encoder_of("qwen2.5")
    encoder.tokenizer.chat_template = (
        "{% if messages[0].content == 'odd' %}" + odd + "{% endif %}" + MODELS["qwen2.5"].template
    )
    try:
        bad = [{"role": "user", "content": "odd"}, TALK[1]]
        found = encoder.encode_all([{"id": "a", "conversations": bad}, {"id": "b", "conversations": TALK}])
    finally:
        encoder.tokenizer.chat_template = MODELS["qwen2.5"].template
    assert found[0].startswith("the chat template refuses it: ")
    assert len(found[1]) == 1


def test_a_prompt_that_ends_with_the_users_words_is_encoded_apart():
    tokenizer = make_tokenizer(MODELS["mistral"])
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ASSISTANT:' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    )
    encoder = ChatEncoder(tokenizer)
    (sequence,) = check_prompts(encoder, TALK)
    assert runs(tokenizer, sequence) == [" There are seven.</s>", " Two of them.</s>"]
    assert encoder._tails == {}
