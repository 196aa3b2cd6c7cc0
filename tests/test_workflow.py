"""What a change makes stale, line by line of issue 2's table, by dry runs on a workspace that really finished."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from workspace import CHATS, REPOSITORY, clone, make_workspace, plan, succeed

PLANNING_SECONDS = 4.0
GRID = {"run_training": 12, "evaluate": 12, "report": 1}
FROM_REGENERATION = {"regenerate_dataset": 1, "preprocess_dataset": 1, **GRID}
EVERYTHING = {"prep_dataset": 1, "train_tiny_target": 1, **FROM_REGENERATION}

pytestmark = pytest.mark.pipeline


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return clone(finished, tmp_path / "copy")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_experiment_ends_with_a_report_on_all_runs(finished: Path):
    page = (finished / "results/tiny-chats/report.html").read_text()
    summary = (finished / "results/tiny-chats/summary.csv").read_text()
    for ablation in ("baseline", "rkl-only", "mixed", "full-opd"):
        assert ablation in page
        assert summary.count(f"{ablation},") == 3
    assert plan(finished) == {}


def test_many_cores_do_not_overload_the_machine(finished: Path):
    cpus = len(os.sched_getaffinity(0))
    words = (finished / "first_run.txt").read_text()
    assert "Provided cores: 12" in words
    assert f'local_cpus=Resource("local_cpus", {cpus})' in words


def test_snakemakes_own_report_holds_the_figures(finished: Path, tmp_path: Path):
    succeed(finished, "--report", tmp_path / "report.zip")
    with zipfile.ZipFile(tmp_path / "report.zip") as file:
        names = " ".join(file.namelist())
    for result in ("report.html", "summary.csv", "ranking.svg", "training_curves.svg"):
        assert result in names


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"ablation_catalogue": {"mixed": {"lambda_rkl": 0.6}}}, {"run_training": 3, "evaluate": 3, "report": 1}),
        (
            {"ablation_catalogue": {"baseline": {"lrs": ["2e-3", "3e-3", "1e-2", "2e-2"]}}},
            {"run_training": 1, "evaluate": 1, "report": 1},
        ),
        (
            {"ablation_catalogue": {"mine": {"lambda_ce": 0.9, "lambda_rkl": 0.1, "lrs": [1e-3, 2e-3]}}},
            {"run_training": 2, "evaluate": 2, "report": 1},
        ),
        ({"ablation_catalogue": {"baseline": {"lrs": [0.02, "1.0e-2", 0.003]}}}, {}),
        ({"ablations": "baseline,mixed"}, {"report": 1}),
        ({"evaluate": {"num_prompts": 4}}, {"evaluate": 12, "report": 1}),
        ({"train": {"batch_size": 8}}, GRID),
        ({"num_epochs": 2}, GRID),
        ({"preprocess": {"draft_vocab_size": 299}}, {"preprocess_dataset": 1, **GRID}),
        ({"regenerate": {"temperature": 0.7}}, FROM_REGENERATION),
        ({"preprocess": {"train_on_reasoning": False}}, {"preprocess_dataset": 1, **GRID}),
        ({"chat_template": "chatml"}, FROM_REGENERATION),
        ({"chat_template_kwargs": {"enable_thinking": False}}, FROM_REGENERATION),
        ({"regenerate": False}, FROM_REGENERATION),
        ({"tiny_target": {"steps": 5}}, {"train_tiny_target": 1, **FROM_REGENERATION}),
        ({"seed": 1}, EVERYTHING),
        ({"regenerate": {"concurrency": 8, "num_servers": 2, "max_failed_share": 0.5}}, {}),
        ({"train": {"save_every": 7}}, {}),
        ({"wandb": {"project": "drafts"}}, {}),
        ({"skip_download": True}, {}),
        ({"single_gpu": False}, {}),
        ({"backend": "local"}, {}),
    ],
    ids=str,
)
def test_a_setting_reruns_what_it_matters_to(finished: Path, settings: dict[str, Any], expected: dict[str, int]):
    assert plan(finished, settings=settings) == expected


@pytest.mark.parametrize(
    ("module", "old", "new", "expected"),
    [
        ("train/losses.py", "\n\n\n", "\n\nEDITED = 1\n\n\n", GRID),
        ("report/page.py", "\n\n\n", "\n\nEDITED = 1\n\n\n", {"report": 1}),
        ("report/report.css", "{", "{ /* edited */", {"report": 1}),
    ],
)
def test_code_reruns_the_rules_that_run_it(copy: Path, module: str, old: str, new: str, expected: dict[str, int]):
    edit(copy / "specforge" / module, old, new)
    assert plan(copy) == expected


def test_the_content_of_a_template_reruns_what_renders_it(copy: Path):
    own, file = {"chat_template": "own.jinja"}, copy / "own.jinja"
    file.write_text("{{ messages[0].content }}")
    succeed(copy, "--touch", "all", "--forcerun", "regenerate_dataset", settings=own)
    assert plan(copy, settings=own) == {}
    os.utime(file, (0, 0))
    assert plan(copy, settings=own) == {}
    file.write_text("{{ messages[0].content }}.")
    assert plan(copy, settings=own) == FROM_REGENERATION


def test_remarks_and_dates_rerun_nothing(copy: Path):
    later = time.time() + 1000
    for folder in ("specforge", "scripts", "rules"):
        for path in filter(Path.is_file, (copy / folder).rglob("*")):
            if path.suffix == ".py":
                edit(path, '"""', '# a remark\n"""Said otherwise. ')
            os.utime(path, (later, later))
    for name in (CHATS, "Snakefile", "config.yaml"):
        os.utime(copy / name, (later, later))
    assert (copy / CHATS).stat().st_size > 1_000_000, "smaller inputs go by content anyway"
    assert plan(copy) == {}


def add_chat(workspace: Path) -> None:
    turns = [{"role": "user", "content": "Is it new?"}, {"role": "assistant", "content": "It is new."}]
    with (workspace / CHATS).open("a") as file:
        file.write(json.dumps({"id": "new", "conversations": turns}) + "\n")


def test_another_dataset_content_reruns_all_with_the_target_trained_on_it(copy: Path):
    add_chat(copy)
    assert plan(copy) == EVERYTHING


def test_another_dataset_content_leaves_a_target_that_does_not_depend_on_it(copy: Path):
    own = {"target_model": "own-model", "output_prefix": "tiny-chats", "train": {"aux_layers": [0, 1, 2]}}
    shutil.copytree(copy / "checkpoints/targets/tiny-chats", copy / "own-model")
    succeed(copy, "--cores", 2, "checkpoints/targets/own-model/target.json", settings=own)
    succeed(copy, "--touch", "all", "--forcerun", "regenerate_dataset", settings=own)
    assert plan(copy, settings=own) == {}
    add_chat(copy)
    assert plan(copy, settings=own) == {"prep_dataset": 1, **FROM_REGENERATION}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("fresh"))


def test_the_default_experiment_is_planned_quickly(fresh: Path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert plan(fresh, overlays=()) == EVERYTHING
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < PLANNING_SECONDS


@pytest.mark.parametrize(("experiment", "runs"), [("qwen3-8b", 12), ("test", 2)])
def test_experiments_are_planned(fresh: Path, experiment: str, runs: int):
    counts = plan(fresh, overlays=[fresh / f"experiments/{experiment}.yaml"])
    before = dict.fromkeys(("download_model", "prep_dataset", "regenerate_dataset", "preprocess_dataset"), 1)
    assert counts == before | {"run_training": runs, "evaluate": runs, "report": 1}


def test_shards_are_jobs_that_one_job_joins(fresh: Path):
    shards = {"regenerate": {"shards": 3}}
    assert plan(fresh, overlays=(), settings=shards) == EVERYTHING | {"regenerate_shard": 3}
    assert plan(fresh, overlays=(), settings={"regenerate": False}) == EVERYTHING


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        (["ablations=baseline,full-opd", "lr_sweep=false"], ["baseline/lr1e-2", "full-opd/lr1e-2"]),
        (["ablation_lrs=baseline:5.0e-5,full-opd:0.00005"], ["baseline/lr5e-5", "full-opd/lr5e-5"]),
        (["ablations=mixed", "split_eval=false"], ["mixed/lr1e-2", "mixed/lr2e-2", "mixed/lr3e-3"]),
    ],
)
def test_the_sweep_is_chosen_on_the_command_line(fresh: Path, options: list[str], runs: list[str]):
    words = succeed(fresh, "-n", "--config", *options)
    outputs = {line.split("checkpoints/tiny-chats/")[1] for line in words.split() if "metrics.jsonl" in line}
    assert sorted({path.split("/metrics")[0] for path in outputs}) == runs


def test_the_workflow_is_clean():
    assert "good condition" in succeed(REPOSITORY, "--lint", overlays=())
    snakefmt = [sys.executable, "-m", "snakefmt", "--check", "Snakefile", "rules"]
    assert subprocess.run(snakefmt, cwd=REPOSITORY, capture_output=True, check=False).returncode == 0
