"""The evaluation of a draft from files to eval.json: complete, resumable, and loud about lost losslessness."""

import importlib
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tiny import make_conversations, make_target_file
from tiny_draft import LAYERS, make_deep_target, random_draft, run_dying
from transformers import AutoTokenizer, GenerationConfig

from specforge.config.steps import Evaluate
from specforge.data.chat import ChatEncoder
from specforge.data.template import Chat
from specforge.errors import UserError
from specforge.eval.prompts import read_prompts
from specforge.files import read_json, read_jsonl, write_jsonl
from specforge.model.files import save_draft
from specforge.steps.evaluate import evaluate
from specforge.target.file import TargetFile
from specforge.target.model import Target

PROMPTS, ALL = 5, 10  # at two temperatures
DECODE = "specforge.steps.evaluate:decode_speculative"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Target, draft and test conversations that all evaluations share."""
    folder = tmp_path_factory.mktemp("data")
    make_target_file(folder, make_deep_target(folder / "model"))
    target = Target(TargetFile.read(folder / "target.json").load(torch.float32), LAYERS)
    save_draft(folder / "draft", random_draft(target, torch.arange(0, target.head.weight.shape[0], 2)), torch.float32)
    write_jsonl(folder / "test.jsonl", make_conversations(8))
    return folder


def arguments(data: Path, folder: Path, **changes) -> dict:
    """`changes` are of the settings."""
    recipe = {"num_prompts": PROMPTS, "max_new_tokens": 8, "num_draft_tokens": 3, "speed_prompts": 2}
    return {
        "target": str(data / "target.json"),
        "draft": str(data / "draft" / "model.safetensors"),
        "prompts": str(data / "test.jsonl"),
        "settings": Evaluate(**recipe | {"bootstrap_samples": 100} | changes).model_dump(mode="json"),
        "chat": Chat().recipe(),
        "template": None,
        "ablation": "mixed",
        "lr": "1e-3",
        "code": "abc",
        "output": str(folder / "eval.json"),
        "work": str(folder / "work"),
        "threads": 1,
    }


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    evaluate(**arguments(data, folder))
    return folder


def journal(folder: Path) -> list[dict]:
    return list(read_jsonl(next((folder / "work").glob("*/journal.jsonl"))))


def decoded(monkeypatch) -> list[int]:
    """Grows by one entry with every text that this process decodes speculatively."""
    module = importlib.import_module("specforge.steps.evaluate")
    plain, seen = module.decode_speculative, []
    monkeypatch.setattr(module, "decode_speculative", lambda *args: seen.append(1) or plain(*args))
    return seen


def accept_everything(monkeypatch) -> None:
    """A verification with a defect: it takes whatever the draft says."""
    module = importlib.import_module("specforge.eval.decode")
    monkeypatch.setattr(module, "verify_greedy", lambda tokens, logits: (len(tokens), int(logits[-1].argmax())))


def timeless(report: dict) -> dict:
    temperatures = {t: {k: v for k, v in s.items() if k != "speedup"} for t, s in report["temperatures"].items()}
    return report | {"temperatures": temperatures}


def test_the_figures_are_those_of_the_decoded_rounds(undisturbed):
    report = read_json(undisturbed / "eval.json")
    rows = journal(undisturbed)
    for temperature, summary in report["temperatures"].items():
        own = [row for row in rows if f"{row['temperature']:g}" == temperature]
        tokens, rounds = sum(row["tokens"] for row in own), sum(len(row["rounds"]) for row in own)
        assert summary["accept_length"]["mean"] == pytest.approx(tokens / rounds)
        first = [accepted > 0 for row in own for accepted, _ in row["rounds"]]
        assert summary["accept_rate_by_position"][0] == pytest.approx(sum(first) / len(first))
        assert len(summary["accept_rate_by_position"]) == 3
        assert summary["speedup"]["low"] <= summary["speedup"]["mean"] <= summary["speedup"]["high"]


def test_every_prompt_is_checked_at_temperature_zero_and_timed_only_as_asked_above(undisturbed):
    report, rows = read_json(undisturbed / "eval.json"), journal(undisturbed)
    assert (report["num_prompts"], report["lossless"]) == (PROMPTS, {"checked": PROMPTS, "mismatches": []})
    timed = {t: sum("plain_seconds" in row for row in rows if row["temperature"] == t) for t in (0.0, 1.0)}
    assert timed == {0.0: PROMPTS, 1.0: 2}


def test_a_killed_evaluation_decodes_only_the_rest(data, undisturbed, tmp_path, monkeypatch):
    call = arguments(data, tmp_path)
    assert run_dying("evaluate", DECODE, 8, "SIGKILL", call) == -signal.SIGKILL
    assert len(journal(tmp_path)) == 7
    seen = decoded(monkeypatch)
    evaluate(**call)
    assert len(seen) == ALL - 7
    assert len({row["id"] for row in journal(tmp_path)}) == len(journal(tmp_path)) == ALL
    assert timeless(read_json(tmp_path / "eval.json")) == timeless(read_json(undisturbed / "eval.json"))


def test_a_finished_evaluation_writes_its_report_again_without_decoding(data, undisturbed, tmp_path, monkeypatch):
    shutil.copytree(undisturbed, tmp_path / "copy")
    seen = decoded(monkeypatch)
    evaluate(**arguments(data, tmp_path / "copy"))
    assert not seen
    assert read_json(tmp_path / "copy" / "eval.json") == read_json(undisturbed / "eval.json")


def test_another_draft_is_decoded_anew(data, undisturbed, tmp_path, monkeypatch):
    shutil.copytree(undisturbed, tmp_path / "copy")
    target = Target(TargetFile.read(data / "target.json").load(torch.float32), LAYERS)
    save_draft(tmp_path / "draft", random_draft(target, torch.arange(100), seed=1), torch.float32)
    seen = decoded(monkeypatch)
    call = arguments(data, tmp_path / "copy") | {"draft": str(tmp_path / "draft" / "model.safetensors")}
    evaluate(**call)
    assert len(seen) == ALL


def test_a_text_that_is_not_the_targets_own_is_an_error_in_fp32(data, tmp_path, monkeypatch):
    accept_everything(monkeypatch)
    with pytest.raises(UserError, match=r"on 5 of 5 prompts, first at token 1 of c0/2 \(logit gap \d+\.\d+\)"):
        evaluate(**arguments(data, tmp_path))
    assert not (tmp_path / "eval.json").exists()


def test_a_text_that_is_not_the_targets_own_is_counted_with_its_gap_in_bf16(data, tmp_path, monkeypatch):
    accept_everything(monkeypatch)
    evaluate(**arguments(data, tmp_path, dtype="bfloat16", temperatures=[0.0]))
    lossless = read_json(tmp_path / "eval.json")["lossless"]
    assert len(lossless["mismatches"]) == lossless["checked"] == PROMPTS
    assert all(mismatch["logit_gap"] > 0 for mismatch in lossless["mismatches"])


def test_answers_that_all_end_at_once_are_one_sentence(data, tmp_path):
    folder = shutil.copytree(data / "model", tmp_path / "model")
    generation = GenerationConfig.from_pretrained(folder)
    generation.eos_token_id = list(range(400))
    generation.save_pretrained(folder)
    call = arguments(data, tmp_path) | {"target": str(make_target_file(tmp_path, folder))}
    with pytest.raises(UserError, match="first token"):
        evaluate(**call)


@pytest.fixture(scope="module")
def encoder(data):
    return ChatEncoder(AutoTokenizer.from_pretrained(data / "model"))


def test_every_point_where_the_assistant_is_to_speak_is_a_prompt(data, encoder):
    found = read_prompts(data / "test.jsonl", encoder, count=6, room=500)
    prompts = found.chosen
    assert [prompt.id for prompt in prompts] == ["c0/2", "c1/1", "c1/3", "c2/1", "c2/3", "c2/5"]
    assert (found.too_long, found.refused) == (0, 0)
    history = next(row for row in make_conversations(3) if row["id"] == "c1")["conversations"][:3]
    assert prompts[2].ids.tolist() == [encoder.prompt(history)]


def test_prompts_that_leave_no_room_are_counted_and_passed_over(data, encoder):
    sizes = [p.ids.shape[1] for p in read_prompts(data / "test.jsonl", encoder, 16, 500).chosen]
    room = sorted(sizes)[len(sizes) // 2]
    found = read_prompts(data / "test.jsonl", encoder, 16, room)
    assert [p.ids.shape[1] for p in found.chosen] == [size for size in sizes if size <= room]
    assert len(found.chosen) + found.too_long == len(sizes)


def test_too_few_prompts_are_refused(data, encoder):
    with pytest.raises(UserError, match=r"has 0 prompts of at most 5 tokens \(15 longer\)"):
        read_prompts(data / "test.jsonl", encoder, 4, 5)


REFUSE = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"


def refusing(data: Path, words: str) -> Chat:
    return Chat("mine", words + AutoTokenizer.from_pretrained(data / "model").chat_template)


def test_prompts_that_the_template_refuses_are_counted_and_passed_over(data, tmp_path):
    chat = refusing(data, REFUSE)
    call = arguments(data, tmp_path, temperatures=[0.0]) | {"chat": chat.recipe(), "template": chat.text}
    report = evaluate(**call)
    assert (report["num_prompts"], report["refused_prompts"], report["skipped_long_prompts"]) == (PROMPTS, 1, 0)
    assert [row["prompt"] for row in journal(tmp_path)][:2] == ["c1/1", "c1/3"]


def test_a_template_that_refuses_every_prompt_is_one_sentence(data):
    chat = refusing(data, "{{ messages[99].content.strip() }}")
    encoder = ChatEncoder(AutoTokenizer.from_pretrained(data / "model"), chat)
    with pytest.raises(UserError, match=r"has 0 prompts .*0 longer, 15 refused, first c0/2: the chat template refuses"):
        read_prompts(data / "test.jsonl", encoder, 4, 500)
