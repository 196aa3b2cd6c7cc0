"""The target that is made here: a few steps, saved as Hugging Face models are, the same bytes every time."""

import signal
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_conversations
from tiny_draft import run_dying
from transformers import AutoModelForCausalLM, AutoTokenizer

from specforge.config.steps import TinyTarget
from specforge.files import read_json, sha256_file, write_jsonl
from specforge.steps.train_tiny_target import train_tiny_target
from specforge.target.tiny import SAVE_EVERY, encode

STEPS = SAVE_EVERY + 10
LOSS = "specforge.target.tiny:language_model_loss"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "train.jsonl"
    write_jsonl(path, make_conversations(20))
    return path


def arguments(folder: Path, source: Path, **changes) -> dict:
    """`changes` are of the settings."""
    recipe = {
        "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "num_kv_heads": 1,
        "head_dim": 8, "batch_tokens": 128, "steps": STEPS, "max_position_embeddings": 256,
    }  # fmt: skip
    return {
        "source": str(source),
        "settings": TinyTarget(**recipe | changes).model_dump(mode="json"),
        "max_length": 128,
        "code": "abc",
        "output": str(folder / "target.json"),
        "weights": str(folder / "model" / "model.safetensors"),
        "work": str(folder / "work"),
        "threads": 1,
    }


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train_tiny_target(**arguments(folder, source))
    return folder


def steps_taken(monkeypatch) -> list[int]:
    """Grows by one entry with every optimizer step of this process."""
    module = sys.modules["specforge.target.tiny"]
    plain, taken = module.language_model_loss, []
    monkeypatch.setattr(module, "language_model_loss", lambda *args: taken.append(1) or plain(*args))
    return taken


def model_sums(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in (folder / "model").iterdir()}


def test_the_folder_is_one_that_transformers_loads_and_chats_with(undisturbed):
    model = AutoModelForCausalLM.from_pretrained(undisturbed / "model")
    tokenizer = AutoTokenizer.from_pretrained(undisturbed / "model")
    assert model.config.model_type == "qwen3"
    assert model.config.vocab_size == 320  # the next multiple of 64
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    assert tokenizer.decode(prompt[0]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    reply = model.generate(prompt, max_new_tokens=4, do_sample=False)
    assert prompt.shape[1] < reply.shape[1] <= prompt.shape[1] + 4
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("text", ["Grüße, 世界! 🌧", "  two  spaces\n\n\ttab ", "don 't , you ?"])
def test_the_tokenizer_gives_any_text_back(undisturbed, text):
    tokenizer = AutoTokenizer.from_pretrained(undisturbed / "model")
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_receipt_names_the_weights(undisturbed):
    receipt = read_json(undisturbed / "target.json")
    assert receipt["sha256"] == sha256_file(undisturbed / "model" / "model.safetensors")
    assert receipt["model"] == str(undisturbed / "model")


def test_the_loss_falls_and_is_that_of_the_saved_model(undisturbed, source, tmp_path):
    first = train_tiny_target(**arguments(tmp_path, source, steps=1))["final_loss"]
    last = read_json(undisturbed / "target.json")["final_loss"]
    assert last < first - 1
    model = AutoModelForCausalLM.from_pretrained(undisturbed / "model")
    data = encode(source, AutoTokenizer.from_pretrained(undisturbed / "model"), 128)
    with torch.no_grad():
        each = [model(ids[None], labels=ids[None]).loss.item() for ids in data]
    assert sum(each) / len(each) == pytest.approx(last, abs=0.5)


def test_another_run_makes_the_same_bytes(undisturbed, source, tmp_path):
    train_tiny_target(**arguments(tmp_path, source))
    assert model_sums(tmp_path) == model_sums(undisturbed)


def test_a_killed_training_continues_and_makes_the_same_bytes(undisturbed, source, tmp_path, monkeypatch):
    call = arguments(tmp_path, source)
    assert run_dying("train_tiny_target", LOSS, STEPS - 3, "SIGKILL", call) == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    taken = steps_taken(monkeypatch)
    train_tiny_target(**call)
    assert len(taken) == STEPS - SAVE_EVERY
    assert model_sums(tmp_path) == model_sums(undisturbed)


def test_another_seed_makes_another_model_beside_the_first(undisturbed, source, tmp_path, monkeypatch):
    train_tiny_target(**arguments(tmp_path, source, steps=2))
    first = model_sums(tmp_path)["model.safetensors"]
    taken = steps_taken(monkeypatch)
    train_tiny_target(**arguments(tmp_path, source, steps=2, seed=1))
    assert len(taken) == 2
    assert model_sums(tmp_path)["model.safetensors"] != first
