"""From conversations to token ids and masks, to the cache on disk and the draft vocabulary."""

import importlib
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from stock import MODELS, make_tokenizer
from tiny import CHATML, make_conversations, make_target_file, make_tiny_target
from tokenizers import AddedToken
from transformers import AutoTokenizer

from specforge.config.steps import Preprocess
from specforge.data.chat import ChatEncoder
from specforge.data.template import Chat
from specforge.data.vocab import coverage, draft_vocabulary
from specforge.errors import UserError
from specforge.files import read_json, sha256_file, write_jsonl
from specforge.steps.preprocess_dataset import preprocess_dataset
from specforge.target.file import TargetFile
from specforge.train.batches import read_cache

# Like Qwen3's: an assistant's thinking is kept in the last turn only
FORGETFUL = CHATML.replace("m['content']", "(m['content'].split('</think>')[-1] if not loop.last else m['content'])")
QUESTION = {"role": "user", "content": "How many apples?"}
ANSWER = {"role": "assistant", "content": "There are seven."}
LATER = [{"role": "user", "content": "And green ones?"}, {"role": "assistant", "content": "Two of them."}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_target(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def encoder(tokenizer):
    return ChatEncoder(tokenizer)


def learned(tokenizer, sequence) -> list[str]:
    """The supervised runs of a sequence, as text."""
    runs, before = [], False
    for token, supervised in zip(sequence.ids, sequence.mask, strict=True):
        if supervised:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = supervised
    return [tokenizer.decode(run) for run in runs]


def test_a_sequence_is_the_prompt_then_the_completion_then_the_end_token(encoder, tokenizer):
    (sequence,) = encoder.sequences([QUESTION, ANSWER])
    prompt = "<|im_start|>user\nHow many apples?<|im_end|>\n<|im_start|>assistant\n"
    completion = tokenizer.encode("There are seven.", add_special_tokens=False)
    assert sequence.ids == [
        *tokenizer.encode(prompt, add_special_tokens=False), *completion, tokenizer.eos_token_id,
    ]  # fmt: skip
    assert sequence.mask == [False] * (len(sequence.ids) - len(completion) - 1) + [True] * (len(completion) + 1)


def test_turns_that_keep_their_prefix_become_one_sequence_with_every_answer_supervised(encoder, tokenizer):
    (sequence,) = encoder.sequences([{"role": "system", "content": "Be brief."}, QUESTION, ANSWER, *LATER])
    assert learned(tokenizer, sequence) == ["There are seven.<|im_end|>", "Two of them.<|im_end|>"]
    rendered = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, QUESTION, ANSWER, *LATER], tokenize=False
    )
    assert tokenizer.decode(sequence.ids) + "\n" == rendered


def test_a_template_that_forgets_thinking_splits_the_conversation_by_turn(tokenizer):
    tokenizer.chat_template = FORGETFUL
    thinking = ANSWER | {"content": "<think>one by one</think>There are seven."}
    first, second = ChatEncoder(tokenizer).sequences([QUESTION, thinking, *LATER])
    assert learned(tokenizer, first) == ["<think>one by one</think>There are seven.<|im_end|>"]
    assert learned(tokenizer, second) == ["Two of them.<|im_end|>"]
    assert "There are seven." in tokenizer.decode(second.ids)
    assert "one by one" not in tokenizer.decode(second.ids)


def test_a_turn_that_its_length_limit_cut_has_no_end_token(encoder, tokenizer):
    (sequence,) = encoder.sequences([QUESTION, ANSWER | {"finish_reason": "length"}])
    assert learned(tokenizer, sequence) == ["There are seven."]


def test_the_end_token_that_a_cut_turn_lacks_is_not_supervised_in_the_next_prompt(encoder, tokenizer):
    (sequence,) = encoder.sequences([QUESTION, ANSWER | {"finish_reason": "length"}, *LATER])
    assert learned(tokenizer, sequence) == ["There are seven.", "Two of them.<|im_end|>"]


@pytest.mark.parametrize("pieces", [["There are seven."], ["There are", " se", "ven", "."]], ids=["same", "other"])
def test_the_ids_that_the_target_said_are_learnt(encoder, tokenizer, pieces):
    said = [token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False)]
    as_encoded = said == tokenizer.encode("There are seven.", add_special_tokens=False)
    assert as_encoded == (len(pieces) == 1)
    turn = ANSWER | {"token_ids": [*said, tokenizer.eos_token_id]}
    sequences = list(encoder.sequences([QUESTION, turn, *LATER]))
    assert len(sequences) == 1 + (not as_encoded)  # the next prompt has the text as it is encoded anew
    first = sequences[0]
    learnt = [token for token, own in zip(first.ids, first.mask, strict=True) if own]
    assert learnt[: len(said) + 1] == [*said, tokenizer.eos_token_id]
    assert encoder.take_counts()["sampled_otherwise"] == (not as_encoded)


def test_a_question_without_an_answer_gives_no_sequence(encoder):
    assert list(encoder.sequences([QUESTION])) == []
    (sequence,) = encoder.sequences([QUESTION, ANSWER, QUESTION])
    assert sequence.mask[-1]


def test_a_long_sequence_is_cut_where_a_turn_ends(encoder, tokenizer):
    (sequence,) = encoder.sequences([QUESTION, ANSWER, *LATER])
    assert sequence.cut(len(sequence.ids) - 1)
    assert learned(tokenizer, sequence) == ["There are seven.<|im_end|>"]
    assert sequence.mask[-1]
    assert len(sequence.ids) == len(sequence.mask)


def test_a_first_answer_that_does_not_fit_is_cut_within(encoder):
    (sequence,) = encoder.sequences([QUESTION, ANSWER])
    whole = list(sequence.ids)
    assert sequence.cut(len(whole) - 3)
    assert sequence.ids == whole[:-3]
    assert not sequence.cut(len(whole) - 3)


def test_a_template_from_a_file_replaces_the_tokenizers(tokenizer, tmp_path):
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}>")
    encoder = ChatEncoder(tokenizer, Chat.choose(str(tmp_path / "chat.jinja")))
    assert tokenizer.decode(encoder.prompt([QUESTION])) == "[How many apples?]>"
    with pytest.raises(UserError, match=r"chat_template: .*none\.jinja is neither a file nor a shipped template"):
        Chat.choose(str(tmp_path / "none.jinja"))


@pytest.mark.parametrize(("gone", "named"), [("chat_template", "chat template"), ("eos_token", "end token")])
def test_a_tokenizer_that_cannot_chat_is_refused(tokenizer, gone, named):
    setattr(tokenizer, gone, None)
    with pytest.raises(UserError, match=f"tokenizer has no {named}"):
        ChatEncoder(tokenizer)


def test_the_draft_vocabulary_has_the_special_tokens_then_the_frequent_ones_in_ascending_order():
    counts = Counter({7: 5, 3: 9, 8: 5, 1: 1})
    assert draft_vocabulary(counts, {9, 0}, 4, 10).tolist() == [0, 3, 7, 9]
    assert draft_vocabulary(counts, {9, 0}, 7, 10).tolist() == [0, 1, 2, 3, 7, 8, 9]
    assert draft_vocabulary(counts, {9, 0}, 99, 10).tolist() == list(range(10))
    assert draft_vocabulary(counts, {9, 12}, 2, 10).tolist() == [3, 9]  # the tokenizer may know more than the model


def test_special_tokens_without_a_role_are_in_the_draft_vocabulary(tmp_path):
    tokenizer = make_tokenizer(MODELS["gpt-oss"])
    role = AddedToken("<|constrain|>", special=True, normalized=False)
    tokenizer.backend_tokenizer.add_special_tokens([role])  # as most of gpt-oss's are
    made = make_tiny_target(tmp_path / "gpt-oss", 256, tokenizer)
    number = TargetFile(str(made), None, "").tokenizer().convert_tokens_to_ids("<|constrain|>")
    preprocess(made, tmp_path, make_conversations(9))
    assert load_file(tmp_path / "vocab.safetensors")["t2d"][number]


def test_a_draft_vocabulary_without_room_for_the_special_tokens_is_refused():
    with pytest.raises(UserError, match=r"draft_vocab_size 3 is less than the 4 special and end tokens"):
        draft_vocabulary(Counter({300: 5}), {1, 2, 3, 400}, 3, 500)


def test_coverage_is_the_share_of_occurrences():
    assert coverage(Counter({3: 6, 4: 2}), torch.tensor([3, 5])) == 0.75


def preprocess(folder, work, rows, max_length=256, chat=None, threads=1, **settings) -> dict:
    write_jsonl(work / "train.jsonl", rows)
    return preprocess_dataset(
        source=str(work / "train.jsonl"),
        target=str(make_target_file(work, folder)),
        settings=Preprocess(**{"draft_vocab_size": 64, "min_coverage": 0} | settings).model_dump(mode="json"),
        max_length=max_length,
        cache=str(work / "cache.arrow"),
        vocab=str(work / "vocab.safetensors"),
        summary=str(work / "summary.json"),
        chat=chat and chat.recipe(),
        template=chat and chat.text,
        threads=threads,
    )


def test_the_cache_gives_back_what_was_encoded(folder, encoder, tmp_path):
    rows = make_conversations(9)
    preprocess(folder, tmp_path, rows)
    cache = read_cache(tmp_path / "cache.arrow")
    expected = [(row["id"], next(encoder.sequences(row["conversations"]))) for row in rows]
    assert list(cache["id"]) == [identity for identity, _ in expected]
    assert [ids.tolist() for ids in cache["input_ids"]] == [sequence.ids for _, sequence in expected]
    assert [mask.tolist() for mask in cache["loss_mask"]] == [sequence.mask for _, sequence in expected]


def test_the_summary_counts_what_went_in_and_came_out(folder, encoder, tmp_path):
    rows = make_conversations(9)
    whole = [next(encoder.sequences(row["conversations"])) for row in rows]
    summary = preprocess(folder, tmp_path, rows, max_length=100)
    assert summary["conversations"] == 9
    assert summary["truncated"] == sum(len(sequence.ids) > 100 for sequence in whole) > 0
    cache = read_cache(tmp_path / "cache.arrow")
    assert summary["tokens"] == sum(map(len, cache["input_ids"]))
    assert summary["supervised_tokens"] == sum(int(mask.sum()) for mask in cache["loss_mask"])
    assert summary["longest"][0] == max(map(len, cache["input_ids"])) <= 100
    assert summary == read_json(tmp_path / "summary.json")
    assert summary["sha256"]["cache"] == sha256_file(tmp_path / "cache.arrow")


def test_the_preview_shows_each_token_with_its_mask(folder, tmp_path):
    summary = preprocess(folder, tmp_path, [{"id": "a", "conversations": [QUESTION, ANSWER]}])
    assert "".join(text for text, supervised in summary["preview"] if supervised) == "There are seven.<|im_end|>"


def test_the_preview_begins_shortly_before_what_is_learnt(folder, tmp_path):
    question = QUESTION | {"content": "x" * 150}
    preview = preprocess(folder, tmp_path, [{"id": "a", "conversations": [question, ANSWER]}])["preview"]
    assert [learnt for _, learnt in preview] == [False, True]
    assert preview[0][0].endswith("assistant\n")
    assert len(preview[0][0]) < 110
    assert preview[1][0].endswith("<|im_end|>")


def test_the_vocabulary_spans_the_models_and_holds_the_end_token(folder, tokenizer, tmp_path):
    summary = preprocess(folder, tmp_path, make_conversations(9))
    maps = load_file(tmp_path / "vocab.safetensors")
    assert (len(maps["t2d"]), len(maps["d2t"])) == (summary["target_vocab_size"], 64)
    assert maps["t2d"][tokenizer.all_special_ids].all()


def test_two_runs_write_the_same_bytes(folder, tmp_path):
    sums = []
    for name in "ab":
        (tmp_path / name).mkdir()
        sums.append(preprocess(folder, tmp_path / name, make_conversations(9))["sha256"])
    assert sums[0] == sums[1]


def test_a_conversation_cut_before_its_answer_is_counted_as_empty(folder, tmp_path):
    short, long = [QUESTION, ANSWER], [QUESTION | {"content": "x" * 90}, ANSWER]
    rows = [{"id": name, "conversations": turns} for name, turns in (("short", short), ("long", long))]
    summary = preprocess(folder, tmp_path, rows, max_length=60)
    assert (summary["empty"], summary["sequences"]) == (1, 1)
    assert list(read_cache(tmp_path / "cache.arrow")["id"]) == ["short"]


def test_a_data_set_without_supervised_tokens_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"Only 0\.00% of 0 tokens are supervised"):
        preprocess(folder, tmp_path, make_conversations(9), max_length=8)
    assert not (tmp_path / "summary.json").exists()


def test_the_gates_of_supervised_share_and_coverage_hold(folder, tmp_path):
    with pytest.raises(UserError, match=r"less than preprocess\.min_supervised_share 90\.00%"):
        preprocess(folder, tmp_path, make_conversations(9), min_supervised_share=0.9)
    with pytest.raises(UserError, match=r"less than preprocess\.min_coverage 100\.00%"):
        preprocess(folder, tmp_path, make_conversations(9), draft_vocab_size=8, min_coverage=1)


def test_the_gates_of_what_is_lost_hold(folder, tmp_path):
    with pytest.raises(UserError, match=r"\d of 9 sequences are longer than max_length, .*max_truncated_share 10\.00%"):
        preprocess(folder, tmp_path, make_conversations(9), max_length=100, max_truncated_share=0.1)
    long = [{"id": "long", "conversations": [QUESTION | {"content": "x" * 90}, ANSWER]}]
    with pytest.raises(UserError, match=r"1 of 10 sequences have nothing to learn .*max_empty_share 5\.00%"):
        preprocess(folder, tmp_path, make_conversations(9) + long, max_length=60, max_empty_share=0.05)
    refused = [{"id": "odd", "conversations": [QUESTION, ANSWER | {"content": None}]}, *make_conversations(3)]
    with pytest.raises(UserError, match=r"1 of 4 conversations are refused .*max_refused_share 5\.00%; first odd: "):
        preprocess(folder, tmp_path, refused)
    assert not (tmp_path / "summary.json").exists()


def test_prompts_of_another_length_than_the_engine_said_are_counted_and_gated(folder, encoder, tmp_path):
    rows, length = make_conversations(10), len(encoder.prompt([QUESTION]))
    for number, row in enumerate(rows[:8]):
        answer = ANSWER | {"prompt_tokens": length + (number < 2)}
        row["conversations"] = [QUESTION, answer]
    summary = preprocess(folder, tmp_path, rows, max_prompt_mismatch_share=0.25)
    assert (summary["prompts_checked"], summary["prompts_of_another_length"]) == (8, 2)
    with pytest.raises(UserError, match=r"2 of 8 prompts have another number .*max_prompt_mismatch_share 20\.00%"):
        preprocess(folder, tmp_path, rows, max_prompt_mismatch_share=0.2)


def test_conversations_without_anything_to_learn_are_gated(folder, tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "count", "arguments": {}}}]}
    rows = [{"id": "call", "conversations": [QUESTION, call]}, *make_conversations(3)]
    with pytest.raises(UserError, match=r"1 of 4 conversations have nothing to learn, .*max_empty_share 20\.00%"):
        preprocess(folder, tmp_path, rows, max_empty_share=0.2)


def test_what_is_refused_within_the_limit_is_counted_with_the_first_reason(folder, tmp_path):
    refused = [{"id": "odd", "conversations": [QUESTION | {"content": None}, ANSWER]}, *make_conversations(3)]
    summary = preprocess(folder, tmp_path, refused, max_refused_share=0.3)
    assert (summary["conversations"], summary["refused"], summary["sequences"]) == (4, 1, 3)
    assert summary["first_refusal"].startswith("odd: the chat template refuses it: ")


def test_refused_nothing_learnt_and_learnt_conversations_add_up(folder, tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "count", "arguments": {}}}]}
    odd = {"refused": [QUESTION | {"content": None}, ANSWER], "call": [QUESTION, call]}
    odd["long"] = [QUESTION | {"content": "x" * 900}, ANSWER]
    rows = [{"id": name, "conversations": turns} for name, turns in odd.items()] + make_conversations(5)
    limits = {"max_refused_share": 1, "max_empty_share": 1}
    summary = preprocess(folder, tmp_path, rows, **limits)
    learnt = len(set(read_cache(tmp_path / "cache.arrow")["id"]))
    assert (summary["refused"], summary["nothing_learnt"], learnt) == (1, 2, 5)
    assert summary["conversations"] == summary["refused"] + summary["nothing_learnt"] + learnt
    assert (summary["empty"], summary["tool_calls_not_learnt"]) == (1, 1)


def test_the_step_takes_as_many_processes_as_are_worth_it_with_the_same_result(folder, tmp_path, monkeypatch):
    module = importlib.import_module("specforge.steps.preprocess_dataset")
    summaries = []
    for name, threads in (("one", 1), ("three", 3)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(module, "WORTH_A_PROCESS", 1)
        monkeypatch.setattr(importlib.import_module("specforge.data.chunks"), "CHUNK", 4)
        summaries.append(preprocess(folder, tmp_path / name, make_conversations(30), threads=threads))
    assert summaries[0] == summaries[1]


def test_the_summary_says_which_template_made_the_cache(folder, tmp_path):
    rows = make_conversations(5)
    own, chatml = (preprocess(folder, tmp_path, rows, chat=Chat.choose(name)) for name in (None, "chatml"))
    assert (own["chat_template"], chatml["chat_template"]) == ("tokenizer", "chatml")
    assert own["template"]["sha256"] != chatml["template"]["sha256"] == Chat.choose("chatml").recipe()["sha256"]
    assert own["sha256"] == chatml["sha256"]  # the tiny target speaks ChatML too
    assert own["end_tokens"] == ["<|im_end|>"]
    assert len(own["longest_before_cut"]) == 5


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.95])
def test_a_truncated_cache_is_refused(folder, tmp_path, share):
    preprocess(folder, tmp_path, make_conversations(9))
    path = tmp_path / "cache.arrow"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"cache\.arrow .*run again"):
        read_cache(path)


def test_a_missing_cache_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cache\.arrow is missing; run the rule preprocess_dataset"):
        read_cache(tmp_path / "cache.arrow")
