"""`kill -9` in the middle of a step: the same command again continues where it was."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from workspace import SMOKE, environment, make_workspace

from specforge.files import read_json, read_jsonl

pytestmark = pytest.mark.pipeline

# Steps long enough to be caught in the middle, with progress that is saved often.
SLOW = """
ablations: baseline
lr_sweep: false
num_epochs: 10
regenerate: {max_tokens: 32, batch_size: 4}
train: {max_steps: 24, batch_size: 4, save_every: 2}
"""
WORK = {
    "regenerate": "datasets/tiny-chats/.work/*/journal-*.jsonl",
    "train": "checkpoints/tiny-chats/baseline/lr1e-2/.work/*/step-*.safetensors",
}
PATIENCE = 150.0  # seconds until a step must be in its middle


def start(workspace: Path) -> subprocess.Popen:
    (workspace / "slow.yaml").write_text(SLOW)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "all", "--configfile", str(SMOKE), "slow.yaml"]
    with (workspace / "output.txt").open("a") as file:
        return subprocess.Popen(
            command, cwd=workspace, env=environment(workspace), stdout=file, stderr=file, start_new_session=True
        )


def kill_when(process: subprocess.Popen, workspace: Path, ready: Callable[[], bool]) -> None:
    """SIGKILL to snakemake and its jobs once `ready`."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    jobs = processes_in(workspace)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(jobs, timeout=20)
    assert not alive, "a job outlived its group"


def processes_in(workspace: Path) -> list[psutil.Process]:
    def folder(process: psutil.Process) -> str:
        try:
            return process.cwd()
        except psutil.Error:
            return ""

    return [process for process in psutil.process_iter() if folder(process) == str(workspace)]


def test_a_killed_run_continues_when_the_same_command_is_typed_again(tmp_path: Path):
    workspace = make_workspace(tmp_path / "workspace")

    def journal() -> list[str]:
        return [line for path in workspace.glob(WORK["regenerate"]) for line in path.read_text().splitlines()]

    kill_when(start(workspace), workspace, lambda: len(journal()) >= 4)
    kept = journal()[:-1]
    total = read_json(workspace / "datasets/chats_prep.json")["train"]
    assert 3 <= len(kept) < total

    kill_when(start(workspace), workspace, lambda: len(list(workspace.glob(WORK["train"]))) >= 2)
    assert journal()[: len(kept)] == kept, "what was said before the kill is not asked for again"
    ids = [row["id"] for row in read_jsonl(workspace / "datasets/tiny-chats/chats_regenerated.jsonl")]
    failed = [row["id"] for row in read_jsonl(workspace / "datasets/tiny-chats/chats_errors.jsonl")]
    source = [row["id"] for row in read_jsonl(workspace / "datasets/chats_train.jsonl")]
    assert Counter(ids + failed) == Counter(source)

    assert start(workspace).wait(400) == 0, (workspace / "output.txt").read_text()
    assert (workspace / "results/tiny-chats/report.html").is_file()
    log = (workspace / "logs/run_training/tiny-chats/baseline/lr1e-2.log").read_text()
    assert "baseline lr1e-2: continuing after step" in log
    steps = [row["step"] for row in read_jsonl(workspace / "checkpoints/tiny-chats/baseline/lr1e-2/metrics.jsonl")]
    assert steps == list(range(1, 25))
