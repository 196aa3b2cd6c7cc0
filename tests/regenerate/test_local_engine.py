import copy

import pytest
import torch
from stock import MODELS, make_tokenizer
from tiny import make_conversations, make_target_file, make_tiny_target
from transformers import AutoModelForCausalLM, AutoTokenizer

from specforge.config.steps import Regenerate
from specforge.data.chat import ChatEncoder
from specforge.data.template import Chat
from specforge.errors import UserError
from specforge.regenerate.engine import Block, Dialogue
from specforge.regenerate.local import LocalEngine
from specforge.target.file import TargetFile


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return TargetFile.read(make_target_file(folder, make_tiny_target(folder / "model")))


def settings(**changes) -> Regenerate:
    return Regenerate(**({"max_tokens": 12, "batch_size": 4, "seed": 3} | changes))


def rows_of(target, records, done=(), **changes) -> dict[str, dict]:
    return {row["id"]: row for row in LocalEngine.load(target, settings(**changes)).run([Block(records, done)])}


def one_by_one(target, record, max_tokens) -> list[str]:
    """The plain way: no batch, no padding, token by token without a cache."""
    model = AutoModelForCausalLM.from_pretrained(target.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(target.model)
    history, answers = [], []
    for turn in record["conversations"]:
        if turn["role"] != "assistant":
            history.append(turn)
            continue
        ids = tokenizer.apply_chat_template(history, add_generation_prompt=True, return_dict=True)["input_ids"]
        said = []
        while len(said) < max_tokens and tokenizer.eos_token_id not in said:
            with torch.no_grad():
                said.append(model(torch.tensor([ids + said])).logits[0, -1].argmax().item())
        answers.append(tokenizer.decode(said, skip_special_tokens=True))
        history.append({"role": "assistant", "content": answers[-1]})
    return answers


def test_greedy_batches_say_what_one_by_one_says(target):
    records = make_conversations(7)
    rows = rows_of(target, records, temperature=0)
    for record in records:
        row = rows[record["id"]]
        assert "error" not in row
        answers = [turn["content"] for turn in row["conversations"] if turn["role"] == "assistant"]
        assert answers == one_by_one(target, record, 12)


def test_other_turns_stay_and_answers_carry_their_end(target):
    records = make_conversations(6)
    before = copy.deepcopy(records)
    rows = rows_of(target, records)
    assert records == before
    for record in records:
        turns = rows[record["id"]]["conversations"]
        assert [turn["role"] for turn in turns] == [turn["role"] for turn in record["conversations"]]
        for old, new in zip(record["conversations"], turns, strict=True):
            if old["role"] == "assistant":
                assert new["content"] != old["content"]
                assert new["finish_reason"] in {"stop", "length"}
            else:
                assert new == old
        assert 0 < rows[record["id"]]["tokens"] <= 12 * 3


def test_the_prompts_are_as_long_as_those_that_are_trained_on(target):
    encoder = ChatEncoder(target.tokenizer())
    rows = [row for row in rows_of(target, make_conversations(6)).values() if "error" not in row]
    encoder.encode_all(rows)
    answers = sum(turn["role"] == "assistant" for row in rows for turn in row["conversations"])
    counts = encoder.take_counts()
    assert (counts["prompts_checked"], counts["prompts_differ"]) == (answers, 0)


def test_what_is_trained_on_is_what_the_target_was_given_and_said(target, monkeypatch):
    engine, seen = LocalEngine.load(target, settings()), []
    plain = engine._generate

    def generate(prompts, room):
        said = plain(prompts, room)
        seen.extend((prompt, ids) for prompt, ids in zip(prompts, said, strict=True))
        return said

    monkeypatch.setattr(engine, "_generate", generate)
    rows = [row for row in engine.run([Block(make_conversations(9), ())]) if "error" not in row]
    encoder = ChatEncoder(target.tokenizer(), end_ids=engine.end_ids)
    for row in rows:
        sequences = list(encoder.sequences(row["conversations"]))
        for turn in (turn for turn in row["conversations"] if turn["role"] == "assistant"):
            (prompt,) = [p for p, ids in seen if ids[: len(turn["token_ids"])] == turn["token_ids"]
                         and len(p) == turn["prompt_tokens"]]  # fmt: skip
            whole = prompt + turn["token_ids"]
            (sequence,) = [one for one in sequences if one.ids[: len(whole)] == whole]
            assert sequence.mask[: len(whole)][len(prompt) :] == [True] * len(turn["token_ids"])


def test_both_ends_occur_and_the_end_token_is_no_text(target):
    rows = rows_of(target, make_conversations(24), max_tokens=60, temperature=2.0).values()
    turns = [turn for row in rows if "error" not in row for turn in row["conversations"] if "finish_reason" in turn]
    assert {turn["finish_reason"] for turn in turns} == {"stop", "length"}
    assert not any("<|im_end|>" in turn["content"] for turn in turns)


def test_sampling_is_repeatable_and_follows_the_seed(target):
    records = make_conversations(6)
    assert rows_of(target, records) == rows_of(target, records)
    assert rows_of(target, records) != rows_of(target, records, seed=4)


def test_what_is_done_changes_nothing_of_the_rest(target):
    records = make_conversations(10)
    whole = rows_of(target, records)
    done = {"c0", "c3", "c4", "c9"}
    rest = rows_of(target, records, done)
    assert rest == {identity: row for identity, row in whole.items() if identity not in done}


def test_the_models_own_sampling_file_is_not_followed(target):
    engine = LocalEngine.load(target, settings())
    assert (engine.model.generation_config.top_k, engine.model.generation_config.temperature) == (0, 0.6)


def test_too_long_a_prompt_is_an_error_row_and_a_tight_one_a_short_answer(tmp_path):
    folder = make_tiny_target(tmp_path / "model", max_position_embeddings=64)
    target = TargetFile.read(make_target_file(tmp_path, folder))
    tokenizer = target.tokenizer()

    def record(identity, words):
        turns = [{"role": "user", "content": "the " * words}, {"role": "assistant", "content": "x"}]
        return {"id": identity, "conversations": turns}

    def length(words):
        messages = record("", words)["conversations"][:1]
        return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])

    tight = next(words for words in range(64) if length(words) >= 58)
    rows = rows_of(target, [record("long", 90), record("tight", tight), record("easy", 3)], temperature=0)
    assert "leaves no room in the target's 64" in rows["long"]["error"]
    assert rows["tight"]["tokens"] <= 64 - length(tight)
    assert rows["easy"]["tokens"] == 12 or rows["easy"]["conversations"][-1]["finish_reason"] == "stop"


def test_an_empty_completion_is_an_error_row(target):
    engine = LocalEngine.load(target, settings(temperature=0))
    with torch.no_grad():
        engine.model.lm_head.weight.zero_()
    engine.end_ids = [0]  # all logits are equal, so the first id is said
    (row,) = engine.run([Block(make_conversations(1), ())])
    assert row["error"] == "turn 3: empty completion (finish reason stop)"


def test_a_refusing_template_is_an_error_row(target):
    engine = LocalEngine.load(target, settings())
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    engine.tokenizer.chat_template = refuse + engine.tokenizer.chat_template
    rows = {row["id"]: row for row in engine.run([Block(make_conversations(3), ())])}
    assert "no system role" in rows["c0"]["error"]
    assert "error" not in rows["c1"]


def test_a_target_without_a_chat_template_is_refused(target):
    tokenizer = target.tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        LocalEngine(target.load(torch.float32), tokenizer, settings())


@pytest.mark.parametrize(
    ("end", "said", "expected"),
    [
        ("", "<think>hm</think>yes", {"reasoning": "hm", "content": "yes"}),
        ("<think>\n", "hm</think>yes", {"reasoning": "hm", "content": "yes"}),
        ("<think>\n", "hm", None),
        ("", "hm", {"content": "hm"}),
    ],
)
def test_reasoning_is_kept_apart_from_the_answer(target, monkeypatch, end, said, expected):
    engine = LocalEngine.load(target, settings())
    engine.tokenizer.chat_template += "{% if add_generation_prompt %}" + end + "{% endif %}"
    ids = [*engine.tokenizer.encode(said), engine.tokenizer.eos_token_id]
    monkeypatch.setattr(engine, "_generate", lambda prompts, room: [ids] * len(prompts))
    (row,) = engine.run([Block(make_conversations(2)[1:], ())])
    if expected is None:
        assert "empty completion" in row["error"]
    else:
        assert row["conversations"][1].pop("prompt_tokens") > 0
        assert row["conversations"][1].pop("token_ids") == ids
        assert row["conversations"][1] == {"role": "assistant", "finish_reason": "stop"} | expected
        assert row["tokens"] == 2 * len(ids)


ANALYSIS = "<|channel|>analysis<|message|>One by one.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>There are seven."
SEVEN = {"role": "assistant", "content": "There are seven.", "finish_reason": "stop"}
CALL = "<|channel|>commentary to=functions.count<|message|>{}"


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("gpt-oss", ANALYSIS + FINAL, SEVEN | {"reasoning": "One by one."}),
        ("gpt-oss", FINAL, SEVEN),
        ("gpt-oss", ANALYSIS + CALL, "<|"),
        ("gpt-oss", CALL, "<|channel|>"),
        ("llama3.1", "<|python_tag|>count()", "<|python_tag|>"),
        ("llama3.1", "There are<|start_header_id|> seven.", SEVEN),
        ("mistral", '[TOOL_CALLS][{"name": "count"}]', "[TOOL_CALLS]"),
        ("qwen3", "<think>\nOne by one.\n</think>\n\nThere are seven.", SEVEN | {"reasoning": "One by one."}),
    ],
)
def test_special_tokens_within_an_answer_take_it_apart_or_are_refused(target, monkeypatch, name, said, expected):
    tokenizer = make_tokenizer(MODELS[name])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|python_tag|>", "[TOOL_CALLS]"]})
    engine = LocalEngine(target.load(torch.float32), tokenizer, settings())
    ids = [*tokenizer.encode(said, add_special_tokens=False), tokenizer.eos_token_id]
    monkeypatch.setattr(engine, "_generate", lambda prompts, room: [ids] * len(prompts))
    turns = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "x"}]
    (row,) = engine.run([Block([{"id": "a", "conversations": turns}], ())])
    if isinstance(expected, dict):
        assert row["conversations"][1].pop("prompt_tokens") > 0
        assert row["conversations"][1].pop("token_ids") == ids
        assert row["conversations"][1] == expected
        (sequence,) = ChatEncoder(tokenizer).sequences(row["conversations"])
        assert name == "llama3.1" or sequence.ids[-len(ids) :] == ids
    else:
        assert f"the target says {expected}" in row["error"]
        assert "set regenerate.engine to sglang." in row["error"]


def test_stray_turn_marks_are_left_out_as_the_tokenizer_leaves_them_out(target):
    engine = LocalEngine.load(target, settings())
    (record,) = make_conversations(1)
    words = engine.tokenizer.encode("There are seven.")
    strays = engine.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|endoftext|>"])
    said = [strays[0], *words[:2], *strays, *words[2:]]
    found = engine._completion(Dialogue(record), said, False)
    assert found.text == engine.tokenizer.decode(said, skip_special_tokens=True) == "There are seven."


def test_the_templates_own_words_reach_it(target):
    engine = LocalEngine.load(target, settings(), Chat(kwargs={"enable_thinking": False}))
    refuse = "{% if enable_thinking is defined and not enable_thinking %}{{ raise_exception('it is off') }}{% endif %}"
    engine.tokenizer.chat_template = refuse + engine.tokenizer.chat_template
    (row,) = engine.run([Block(make_conversations(1), ())])
    assert "it is off" in row["error"]


def test_top_k_cuts_the_distribution(target):
    assert LocalEngine.load(target, settings(top_k=1)).model.generation_config.top_k == 1
    greedy, cut = (rows_of(target, make_conversations(4), **words) for words in ({"temperature": 0}, {"top_k": 1}))
    assert greedy == cut


def test_blocks_are_batched_apart_so_that_a_shard_says_what_the_whole_says(target):
    records = make_conversations(10)
    parts = [Block(records[:6], ()), Block(records[6:], ())]
    engine = LocalEngine.load(target, settings())
    whole = {row["id"]: row for row in engine.run(parts)}
    alone = {row["id"]: row for row in LocalEngine.load(target, settings()).run(parts[1:])}
    assert alone == {identity: whole[identity] for identity in alone}
