"""The whole experiment on Modal against the same one here, and what a second command starts."""

import json
import shutil
from pathlib import Path

import pytest
from cloud_site import TWO, Site, needs_namespaces
from workspace import job_counts

pytestmark = [pytest.mark.pipeline, needs_namespaces]

TIMED = ("tokens_per_second", "memory_mib", "seconds", "speedup")
ONCE = {
    "prep_dataset": 1, "train_tiny_target": 1, "regenerate_dataset_batched": 1, "preprocess_dataset": 1,
    "run_training_single_gpu": 2, "evaluate": 2,
}  # fmt: skip


def untimed(value: object) -> object:
    """JSON without what differs between any two runs."""
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if key not in TIMED}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def content(path: Path) -> object:
    """What must be equal here and there: the bytes, or the lines of a file that tells times."""
    if path.name in {"manifest.json", "metrics.jsonl", "eval.json"}:
        rows = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        return [untimed(json.loads(row)) for row in rows]
    return path.read_bytes()


def made(workspace: Path) -> dict[str, object]:
    """Every result of the two ablations, by path; the report tells times, and its code is not what differs."""
    paths = [
        path.relative_to(workspace)
        for folder in ("datasets", "checkpoints", "results")
        for path in (workspace / folder).rglob("*")
        if path.is_file() and ".work" not in path.parts
    ]
    chosen = [p for p in paths if "tiny-chats" not in p.parts[1] or p.parts[0] == "datasets" or "lr1e-2" in p.parts]
    own = [p for p in chosen if not {"rkl-only", "full-opd"} & set(p.parts)]
    return {str(path): content(workspace / path) for path in own}


def test_the_results_are_those_of_the_same_run_here(remote: Site, finished: Path):
    ours, theirs = made(finished), made(remote.workspace)
    assert ours.keys() == theirs.keys()
    assert len(theirs) > 25
    assert [path for path in ours if ours[path] != theirs[path]] == []


def test_each_step_was_one_call_with_its_gpu_and_secret(remote: Site):
    server = remote.server
    assert json.loads((remote.workspace / "spawned.json").read_text()) == ONCE
    by_name = {definition.function_name: server.resources(definition) for definition in server.variants}
    training = by_name["run_training_single_gpu"]
    assert training.gpu == "H100:1"
    assert training.timeout == 24 * 3600
    assert training.retries == 4
    assert training.secrets == ["huggingface-secret"], "no W&B, no secret for it"
    assert set(training.volumes.values()) == {"specforge-hf-cache", "specforge-datasets", "specforge-checkpoints"}
    assert training.volumes["/root/.cache/specforge/checkpoints"] == "specforge-checkpoints"
    assert by_name["prep_dataset"].gpu is None
    assert server.resources(server.definitions["run_training"]).gpu == "H100:8"


def test_images_are_locked_and_hold_the_package_as_a_mount(remote: Site):
    server = remote.server
    images = {name: " ".join(server.resources(found).image) for name, found in server.definitions.items()}
    assert "--constraint /specforge/constraints.txt" in images["run_training"]
    assert "torch" in images["run_training"]
    assert "torch" not in images["prep_dataset"]
    assert "FROM lmsysorg/sglang:v" in images["regenerate_dataset"]
    assert "specforge/train" not in images["run_training"], "an edit of the package builds no image"


def test_wandb_needs_its_secret(again: Site):
    heavier = {"ablation_catalogue": {"mixed": {"lambda_rkl": 0.8}}, "wandb": {"project": "drafts"}}
    words = again.refuse("--cores", 2, "all", config=("ablations=mixed", "lr_sweep=False"), settings=heavier)
    assert "make it with `modal secret create wandb-secret WANDB_API_KEY=...`" in words


def test_the_words_of_a_call_are_in_its_rules_log(remote: Site):
    log = remote.log("run_training/tiny-chats/baseline/lr1e-2")
    assert "started as call fc-" in log
    assert "baseline lr1e-2: 2/2 steps" in log


def test_nothing_is_stale_afterwards_and_choosing_a_backend_makes_nothing_stale(remote: Site):
    assert "Nothing to be done" in remote.succeed("-n", config=tuple(TWO))
    assert job_counts(remote.succeed("-n", config=("backend=local", *TWO))) == {}


def test_only_what_is_stale_is_called_again(again: Site):
    before = again.server.spawned
    heavier = {"ablation_catalogue": {"mixed": {"lambda_rkl": 0.6}}}
    again.succeed("--cores", 12, "all", config=tuple(TWO), settings=heavier)
    assert again.server.spawned - before == {"run_training_single_gpu": 1, "evaluate": 1}


def test_results_that_were_lost_here_come_from_the_volume_without_a_call(again: Site):
    before = made(again.workspace)
    for _ in range(2):  # another test may have trained under this run's name since; then the first time makes it anew
        spawned = again.server.spawned
        for folder in ("checkpoints/tiny-chats", "results", ".specforge"):
            shutil.rmtree(again.workspace / folder)
        words = again.succeed("--cores", 12, "all", config=("ablations=baseline", "lr_sweep=False"))
    assert "the volume holds the results of this very work" in words
    after = made(again.workspace)
    assert [path for path in before if "mixed" not in path and before[path] != after.get(path)] == []
    assert again.server.spawned == spawned


def test_what_runs_elsewhere_claims_nothing_here(remote: Site):
    words = remote.succeed("-n", "--forcerun", "run_training", config=tuple(TWO))
    resources = [line for line in words.splitlines() if "runtime=1440" in line]
    assert resources
    assert all("local_cpus=0" in line and "gpu=0" in line and "mem_mb=200" in line for line in resources)


@pytest.mark.parametrize("gpu", ["H200:8", "B200:4"])
def test_the_gpu_is_a_setting_that_makes_nothing_stale(remote: Site, gpu: str):
    assert "Nothing to be done" in remote.succeed("-n", config=(*TWO, f"gpu={gpu}", "single_gpu=False"))


def test_regeneration_by_hand_of_some_conversations(again: Site):
    words = ("--dataset", "chats.jsonl", "--num-samples", 5, "--temperature", "0.5")
    output = "datasets/by-hand/some.jsonl"
    command = "specforge.cloud.commands::regenerate_dataset"
    result = again.modal("run", "-m", command, *words, "--output-file", output)
    assert '"conversations": 5' in result.stdout, result.stdout
    assert result.returncode == 0
    rows = (again.server.volume("specforge-datasets") / "by-hand/some.jsonl").read_text().splitlines()
    assert 0 < len(rows) <= 5
