"""Volumes that lose or change files, and weights that stay on them."""

from pathlib import Path

import pytest
from cloud_site import TWO, Site, needs_namespaces
from workspace import clone

from specforge.cloud.mirror import read_receipt
from specforge.files import sha256_file

pytestmark = [pytest.mark.pipeline, needs_namespaces]

DRAFT = "checkpoints/tiny-chats/mixed/lr1e-2/draft/model.safetensors"
CACHE = ("--cores", 2, "datasets/tiny-chats/chats_cache.json")


def on_volume(site: Site, path: str) -> Path:
    first, _, rest = path.partition("/")
    return site.server.volume(f"specforge-{first}") / rest


@pytest.mark.parametrize("harm", ["gone", "other bytes, same size"])
def test_an_input_that_drifted_on_the_volume_is_uploaded_again(again: Site, harm: str):
    path = "datasets/tiny-chats/chats_regenerated.jsonl"
    copy, ours = on_volume(again, path), again.workspace / path
    if harm == "gone":
        copy.unlink()
    else:
        copy.write_bytes(b"x" * ours.stat().st_size)
    size = 299 if harm == "gone" else 298
    words = again.succeed(*CACHE, settings={"preprocess": {"draft_vocab_size": size}})
    assert f"uploading {path}" in words
    assert copy.read_bytes() == ours.read_bytes()


def test_results_that_are_gone_from_the_volume_too_are_made_anew_and_said_so(again: Site):
    spawned = again.server.spawned
    for path in (on_volume(again, DRAFT), again.workspace / DRAFT, again.workspace / "results/tiny-chats/report.html"):
        path.unlink()
    words = again.succeed("--cores", 4, "all", "--forcerun", "run_training", config=(*TWO, "ablations=mixed"))
    assert "gone from the volume or changed there, so made anew" in words
    assert again.server.spawned - spawned == {"run_training_single_gpu": 1}
    assert on_volume(again, DRAFT).is_file()
    assert (again.workspace / DRAFT).is_file()


def test_weights_that_stay_on_the_volume(again: Site):
    heavier = {"ablation_catalogue": {"mixed": {"lambda_rkl": 0.7}}, "sync": {"checkpoints": "none"}}
    run = {"config": ("ablations=mixed", "lr_sweep=False"), "settings": heavier}
    before = again.server.spawned
    again.succeed("--cores", 4, "all", **run)
    receipt = read_receipt(str(again.workspace / DRAFT))
    assert receipt["sha256"] == sha256_file(on_volume(again, DRAFT))
    assert again.server.spawned - before == {"run_training_single_gpu": 1, "evaluate": 1}, "evaluation takes a receipt"
    assert "Nothing to be done" in again.succeed("-n", **run)

    here = {**run, "config": (*run["config"], "backend=local")}
    more = {**here, "settings": {**heavier, "evaluate": {"num_prompts": 2}}}
    words = again.refuse("--cores", 2, "all", **more)
    assert "is a receipt: the file stayed on its Modal volume" in words

    size = on_volume(again, DRAFT).stat().st_size
    on_volume(again, DRAFT).write_bytes(b"x" * size)  # only its bytes tell
    stale = {**run, "settings": {**heavier, "evaluate": {"num_prompts": 2}}}
    words = again.refuse("--cores", 2, "all", **stale)
    assert "no longer holds what the receipt says" in words
    before = again.server.spawned
    again.succeed("--cores", 4, "all", **stale)
    assert again.server.spawned - before == {"run_training_single_gpu": 1, "evaluate": 1}

    on_volume(again, DRAFT).unlink()
    fewer = {**run, "settings": {**heavier, "evaluate": {"num_prompts": 2, "max_new_tokens": 6}}}
    before = again.server.spawned
    assert "no longer holds what the receipt says" in again.refuse("--cores", 2, "all", **fewer)
    assert again.server.spawned == before, "a receipt whose file is gone is seen before anything starts"
    again.succeed("--cores", 4, "all", **fewer)

    fetched = again.cloud("fetch", DRAFT)
    assert fetched.returncode == 0, fetched.stdout
    assert read_receipt(str(again.workspace / DRAFT)) is None
    assert sha256_file(again.workspace / DRAFT) == sha256_file(on_volume(again, DRAFT))


def test_two_clones_with_different_code_in_one_environment_both_get_their_results(again: Site, tmp_path: Path):
    other = Site(clone(again.workspace, tmp_path / "other"), again.server)
    step = other.workspace / "specforge/steps/preprocess_dataset.py"
    step.write_text(step.read_text() + "\nEDITED = 1\n")
    other.succeed(*CACHE, settings={"preprocess": {"draft_vocab_size": 297}})
    words = again.succeed(*CACHE, settings={"preprocess": {"draft_vocab_size": 296}})
    assert "the app held other code, deployed from elsewhere; deployed anew" in words
