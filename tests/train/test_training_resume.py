"""A training that is killed, torn, preempted or changed, against one that nobody disturbed."""

import shutil
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_target_file
from tiny_draft import make_deep_target, run_dying
from tiny_training import STEPS, arguments, same_result, states

from specforge.errors import UserError
from specforge.files import read_json, read_jsonl, sha256_file
from specforge.steps.run_training import run_training
from specforge.train.batches import epoch_batches, held_out, read_cache

LOSS = "specforge.train.gradients:unrolled_loss"  # once a step: these batches are one micro-batch each


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run_training(**arguments(data, folder))
    return folder


def steps_taken(monkeypatch) -> list[int]:
    """Grows by one entry with every optimizer step of this process."""
    module = sys.modules["specforge.train.gradients"]
    plain, taken = module.unrolled_loss, []
    monkeypatch.setattr(module, "unrolled_loss", lambda *args: taken.append(1) or plain(*args))
    return taken


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


def test_a_kill_in_the_middle_of_a_save_leaves_the_state_before(data, undisturbed, tmp_path, monkeypatch):
    call = arguments(data, tmp_path)
    assert run_dying("run_training", "specforge.train.resume:save_file", 2, "SIGKILL", call) == -signal.SIGKILL
    assert states(tmp_path) == ["step-00000004.safetensors"]
    taken = steps_taken(monkeypatch)
    run_training(**call)
    assert len(taken) == STEPS - 4
    assert same_result(tmp_path, undisturbed)


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


def test_a_state_of_another_recipe_is_refused_with_the_keys_that_differ(data, undisturbed, tmp_path):
    call = arguments(data, tmp_path, loss_decay=0.7)
    with pytest.raises(KeyboardInterrupt):
        run_dying_here(call)
    state = next((undisturbed / "work").glob("*/step-00000008.safetensors"))
    folder = next((tmp_path / "work").iterdir())
    shutil.copy(state, folder)
    with pytest.raises(UserError, match=r"another configuration: settings\.loss_decay \(0\.8 there, 0\.7 here\)"):
        run_training(**call)


def run_dying_here(call: dict) -> None:
    """Interrupted before its first step, so that its folder is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["specforge.train.loop"], "step_batches", interrupted)
        run_training(**call)


def interrupted(*_):
    raise KeyboardInterrupt


def test_held_out_sequences_are_measured_and_never_trained_on(data, tmp_path):
    seen = []
    module = sys.modules["specforge.train.gradients"]
    with pytest.MonkeyPatch.context() as patch:
        plain = module.pack_rows
        patch.setattr(
            module, "pack_rows", lambda rows, which: seen.extend(plain(rows, which).names) or plain(rows, which)
        )
        run_training(**arguments(data, tmp_path, held_out=16, validate_every=4, max_steps=12))
    cache = read_cache(data / "cache.arrow")
    kept = {cache[index]["id"] for index in held_out(list(cache["id"]), 16, 0)}
    assert len(kept) == len(cache) // 10
    assert not kept & set(seen)
    rows = [row for row in read_jsonl(tmp_path / "metrics.jsonl") if "held_out" in row]
    assert [row["step"] for row in rows] == [4, 8, 12]
    for row in rows:
        sampled = row["held_out"]["accept_sampled"]
        assert len(sampled) == 3
        assert row["held_out"]["accept_length"] == pytest.approx(
            1 + sampled[0] + sampled[0] * sampled[1] + sampled[0] * sampled[1] * sampled[2]
        )


def test_the_best_draft_is_kept_and_can_be_published(data, tmp_path):
    lengths = iter([1.5, 2.5, 2.0, 2.4])
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules["specforge.train.loop"]
        patch.setattr(module, "acceptance", lambda *_: {"accept_length": next(lengths)})
        call = arguments(data, tmp_path, held_out=16, validate_every=2, save_every=4, max_steps=8, keep_states=9)
        call["settings"]["publish"] = "best"
        manifest = run_training(**call)
    assert manifest["best"] == {"step": 4, "accept_length": 2.5}
    state = load_file(next((tmp_path / "work").glob("*/step-00000004.safetensors")))
    published = load_file(tmp_path / "draft" / "model.safetensors")
    assert torch.equal(published["fc.weight"], state["master.fc.weight"])


def test_more_states_are_kept_when_asked(data, tmp_path):
    run_training(**arguments(data, tmp_path, save_every=2, keep_states=4))
    assert states(tmp_path) == [f"step-{n:08d}.safetensors" for n in (4, 6, 8, 10)]


def test_the_peers_normaliser_divides_by_all_positions(data, tmp_path):
    cache = read_cache(data / "cache.arrow")
    batch = epoch_batches([len(ids) for ids in cache["input_ids"]], 4, 0, 0)[0]
    supervised = sum(int(mask[2:].sum()) for mask in cache[batch]["loss_mask"])
    tokens = sum(len(ids) for ids in cache[batch]["input_ids"])
    losses = []
    for name in ("supervised", "positions"):
        run_training(**arguments(data, tmp_path / name, max_steps=1, log_every=1, normaliser=name))
        losses.append(next(iter(read_jsonl(tmp_path / name / "metrics.jsonl")))["loss"])
    assert losses[1] / losses[0] == pytest.approx(supervised / tokens)


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


def test_a_conversation_in_several_sequences_is_held_out_whole():
    names = [f"c{number // 3}" for number in range(90)]
    held = held_out(names, 16, 0)
    assert len(held) == 9
    assert not {names[index] for index in held} & {name for index, name in enumerate(names) if index not in held}
