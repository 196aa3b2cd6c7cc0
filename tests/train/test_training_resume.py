"""A training that is killed, torn, preempted or changed, against one that nobody disturbed."""

import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_conversations, make_target_file
from tiny_draft import make_deep_target, run_dying

from specforge.config.steps import Preprocess, Train
from specforge.errors import UserError
from specforge.files import read_json, read_jsonl, sha256_file, write_jsonl
from specforge.steps.preprocess_dataset import preprocess_dataset
from specforge.steps.run_training import run_training
from specforge.train.batches import epoch_batches, read_cache

STEPS, SAVE_EVERY = 10, 4
LOSS = "specforge.train.loop:unrolled_loss"  # once a step: these batches are one micro-batch each


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Target, cache and vocabulary that all trainings share."""
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "train.jsonl", make_conversations(20))
    preprocess_dataset(
        source=str(folder / "train.jsonl"),
        target=str(make_target_file(folder, make_deep_target(folder / "model"))),
        settings=Preprocess(draft_vocab_size=64, min_coverage=0).model_dump(mode="json"),
        max_length=160,
        cache=str(folder / "cache.arrow"),
        vocab=str(folder / "vocab.safetensors"),
        summary=str(folder / "summary.json"),
    )
    return folder


def arguments(data: Path, folder: Path, lr: str = "1e-3", **changes) -> dict:
    """`changes` are of the settings."""
    recipe = {
        "batch_size": 4,
        "ttt_length": 3,
        "max_steps": STEPS,
        "save_every": SAVE_EVERY,
        "log_every": 3,
        "held_out": 0,
    }
    return {
        "target": str(data / "target.json"),
        "cache": str(data / "cache.arrow"),
        "vocab": str(data / "vocab.safetensors"),
        "cache_summary": str(data / "summary.json"),
        "ablation": "mixed",
        "lr": lr,
        "weights": {"lambda_ce": 0.4, "lambda_rkl": 0.5, "beta_hinge": 0.1},
        "settings": Train(**recipe | changes).recipe(),
        "placement": Train(**recipe | changes).placement(),
        "layers": [0, 1, 2],
        "epochs": 3,
        "wandb": {"project": None},
        "code": "abc",
        "draft": str(folder / "draft" / "model.safetensors"),
        "metrics": str(folder / "metrics.jsonl"),
        "manifest": str(folder / "manifest.json"),
        "card": str(folder / "draft" / "README.md"),
        "regenerated": True,
        "work": str(folder / "work"),
        "threads": 1,
    }


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run_training(**arguments(data, folder))
    return folder


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "work").glob("*/step-*"))


def steps_taken(monkeypatch) -> list[int]:
    """Grows by one entry with every optimizer step of this process."""
    module = sys.modules["specforge.train.loop"]
    plain, taken = module.unrolled_loss, []
    monkeypatch.setattr(module, "unrolled_loss", lambda *args: taken.append(1) or plain(*args))
    return taken


def same_result(folder: Path, other: Path) -> bool:
    """Equal weights to the bit, equal metrics but for the time they took, all sessions' tokens counted."""
    lines = [
        [row | {"tokens_per_second": 0, "memory_mib": 0} for row in read_jsonl(f / "metrics.jsonl")]
        for f in (folder, other)
    ]
    weights = [sha256_file(f / "draft" / "model.safetensors") for f in (folder, other)]
    tokens = [read_json(f / "manifest.json")["tokens"] for f in (folder, other)]
    return all(pair[0] == pair[1] for pair in (lines, weights, tokens))


@pytest.fixture(scope="module")
def killed_after_nine_steps(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    status = run_dying("run_training", LOSS, 10, "SIGKILL", arguments(data, folder))
    assert (status, states(folder)) == (-signal.SIGKILL, [f"step-0000000{n}.safetensors" for n in (4, 8)])
    return folder


@pytest.fixture
def killed(killed_after_nine_steps, tmp_path):
    """A copy to go on with."""
    return shutil.copytree(killed_after_nine_steps, tmp_path / "killed")


def test_a_killed_training_ends_bit_equal(data, undisturbed, killed, monkeypatch):
    taken = steps_taken(monkeypatch)
    run_training(**arguments(data, killed))
    assert len(taken) == STEPS - 8
    assert same_result(killed, undisturbed)


def test_a_preempted_training_saves_at_once_and_ends_bit_equal(data, undisturbed, tmp_path, monkeypatch):
    call = arguments(data, tmp_path)
    assert run_dying("run_training", LOSS, 7, "SIGTERM", call) == 143
    taken = steps_taken(monkeypatch)
    run_training(**call)
    assert len(taken) == STEPS - 7
    assert same_result(tmp_path, undisturbed)


def test_a_torn_newest_state_gives_way_to_its_elder(data, undisturbed, killed, monkeypatch):
    newest = next((killed / "work").glob("*/step-00000008.safetensors"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    taken = steps_taken(monkeypatch)
    run_training(**arguments(data, killed))
    assert len(taken) == STEPS - 4
    assert same_result(killed, undisturbed)


def test_each_logged_step_stands_once_in_the_metrics_of_a_resumed_run(data, killed):
    partial = next((killed / "work").glob("*/metrics.jsonl"))
    assert [row["step"] for row in read_jsonl(partial)] == [3, 6, 9]  # 9 is after the last state
    with partial.open("a") as file:
        file.write('{"step": 12, "lo')  # and a line may be cut short
    run_training(**arguments(data, killed))
    assert [row["step"] for row in read_jsonl(killed / "metrics.jsonl")] == [3, 6, 9]


def test_a_finished_training_is_published_again_without_a_step(data, undisturbed, monkeypatch):
    taken = steps_taken(monkeypatch)
    before = sha256_file(undisturbed / "draft" / "model.safetensors")
    (undisturbed / "draft" / "model.safetensors").unlink()
    run_training(**arguments(data, undisturbed))
    assert not taken
    assert sha256_file(undisturbed / "draft" / "model.safetensors") == before


@pytest.mark.parametrize("changes", [{"lr": "2e-3"}, {"loss_decay": 0.7}], ids=["lr", "settings"])
def test_a_changed_recipe_starts_anew(data, tmp_path, monkeypatch, changes):
    run_training(**arguments(data, tmp_path, max_steps=4))
    taken = steps_taken(monkeypatch)
    run_training(**arguments(data, tmp_path, max_steps=4, **changes))
    assert len(taken) == 4


def test_changed_data_starts_anew(data, tmp_path, monkeypatch):
    call = arguments(data, tmp_path, max_steps=4)
    run_training(**call)
    summary = (data / "summary.json").read_text()
    other = tmp_path / "summary.json"
    other.write_text(summary.replace(sha256_file(data / "cache.arrow"), "0" * 64))
    taken = steps_taken(monkeypatch)
    run_training(**call | {"cache_summary": str(other)})
    assert len(taken) == 4


def test_a_loss_that_is_not_finite_names_the_step_and_the_conversations(data, tmp_path):
    target = make_target_file(tmp_path, make_deep_target(tmp_path / "model"))
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.norm.weight"].fill_(torch.nan)
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    call = arguments(data, tmp_path, init_head_from_target=False) | {"target": str(target)}
    rows = read_cache(data / "cache.arrow")
    first = epoch_batches([len(ids) for ids in rows["input_ids"]], 4, 0, 0)[0]
    names = ", ".join(rows[first]["id"])
    with pytest.raises(
        UserError, match=rf"^step 1: the term ce \(conversation c\d+\) is nan on the conversations {names};"
    ):
        run_training(**call)
    assert not states(tmp_path)


def test_the_draft_learns(data, tmp_path):
    run_training(**arguments(data, tmp_path, lr="1e-2", max_steps=40, log_every=10) | {"epochs": 8})
    losses = [row["loss"] for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert losses[-1] < 0.9 * losses[0]


def test_the_manifest_names_the_weights_and_what_they_come_from(data, undisturbed):
    manifest = read_json(undisturbed / "manifest.json")
    assert manifest["draft_sha256"] == sha256_file(undisturbed / "draft" / "model.safetensors")
    assert manifest["inputs"]["cache"] == sha256_file(data / "cache.arrow")
    rows = read_cache(data / "cache.arrow")
    assert manifest["steps"] == STEPS
    batches = [batch for epoch in range(2) for batch in epoch_batches(list(map(len, rows["input_ids"])), 4, 0, epoch)]
    assert manifest["tokens"] == sum(len(rows[i]["input_ids"]) for batch in batches[:STEPS] for i in batch)


def test_an_epoch_has_every_sequence_once_in_a_repeatable_order():
    lengths = [(7 * i) % 50 + 1 for i in range(37)]
    epochs = [epoch_batches(lengths, 4, seed=1, epoch=epoch) for epoch in range(2)]
    for batches in epochs:
        assert sorted(i for batch in batches for i in batch) == list(range(37))
        assert len(batches) == 10
    assert epochs[0] == epoch_batches(lengths, 4, seed=1, epoch=0)
    assert epochs[0] != epochs[1]
    assert epochs[0] != epoch_batches(lengths, 4, seed=2, epoch=0)


def test_sequences_of_a_batch_are_alike_in_length():
    lengths = list(range(1, 65))
    spread = [max(batch) - min(batch) for batch in epoch_batches(lengths, 4, 0, 0)]
    assert max(spread) == 3  # one bucket holds all 64, so every batch is four neighbours
