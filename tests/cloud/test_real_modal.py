"""What only Modal itself can show. Opt-in: `pytest -m modal`, with a token; some minutes and cents on a T4."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from workspace import SMOKE, environment, make_workspace

pytestmark = pytest.mark.modal

GOAL = ("--cores", "12", "all", "--config", "backend=modal", "ablations=baseline", "lr_sweep=False", "gpu=T4")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its data set and experiment are named after the time, so that the volumes hold nothing of it."""
    folder = make_workspace(tmp_path_factory.mktemp("modal"))
    name = f"trial{int(time.time())}"
    (folder / "chats.jsonl").rename(folder / f"{name}.jsonl")
    (folder / "settings.json").write_text(json.dumps({"dataset": f"{name}.jsonl"}))
    return folder


def run(workspace: Path, *words: str) -> str:
    command = [sys.executable, "-m", "snakemake", *words, "--configfile", str(SMOKE), "settings.json"]
    result = subprocess.run(
        command, cwd=workspace, env=os.environ | environment(workspace), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=3600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_the_experiment_ends_with_a_report_and_nothing_is_stale(workspace: Path):
    run(workspace, *GOAL)
    assert list((workspace / "results").glob("*/report.html"))
    assert "Nothing to be done" in run(workspace, "-n", *GOAL)
    manifest = json.loads(next((workspace / "checkpoints").glob("*/*/*/manifest.json")).read_text())
    assert "T4" in manifest["device"]


def test_what_the_volumes_hold_is_not_computed_again(workspace: Path):
    for folder in ("results", "checkpoints", "datasets"):
        (workspace / folder).rename(workspace / f"old-{folder}")
    assert "the volume holds the results of this very work" in run(workspace, *GOAL)
