"""Killed, preempted, detached: nothing that runs is started again, nothing that ran is lost."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from cloud_site import PATIENCE, Site, needs_namespaces, processes_in, wait_for

pytestmark = [pytest.mark.pipeline, needs_namespaces]

LONG = {"num_epochs": 20, "train": {"max_steps": 60, "save_every": 2, "validate_every": 1000}}


def states(site: Site) -> list[Path]:
    """Training states that were committed."""
    folder = site.server.volume("specforge-checkpoints")
    return list(folder.glob("tiny-chats/*/*/.work/*/step-*.safetensors"))


def send(pids: list[int], number: signal.Signals) -> None:
    """To those that are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def test_twelve_trainings_outlive_snakemake_and_a_lost_container(again: Site):
    before, old = again.server.spawned["run_training_single_gpu"], {path.parent for path in states(again)}

    def calls() -> int:
        return again.server.spawned["run_training_single_gpu"] - before

    goal = ("--cores", 12, "all", "--until", "run_training")
    first = again.start(*goal, settings=LONG)
    wait_for(lambda: calls() == 12, "twelve calls")
    wait_for(lambda: len([c for c in again.server.containers() if c.pid]) == 12, "twelve containers at once")
    held = [container.pid for container in again.server.containers()]  # so that they are not over too soon
    send(held, signal.SIGSTOP)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    wait_for(lambda: not processes_in(again.workspace), "end of the waiting scripts")

    second = again.start(*goal, settings=LONG)
    output = again.workspace / "output.txt"
    wait_for(lambda: output.read_text().count("attached to call fc-") == 12, "attachments")
    send(held, signal.SIGCONT)
    wait_for(lambda: len({path.parent for path in states(again)} - old) >= 6, "states")  # the eldest has one then
    send(held, signal.SIGSTOP)
    time.sleep(0.5)  # a result that is on its way arrives, so that the lost container has one to make
    lost = again.server.kill_container("run_training_single_gpu")
    send(held, signal.SIGCONT)
    assert second.wait(PATIENCE) == 0, (again.workspace / "output.txt").read_text()
    assert calls() == 12, "the second command attaches to the calls of the first"
    assert [call.retries for call in again.server.calls if call.retries] == [1], lost
    logs = [path.read_text() for path in (again.workspace / "logs/run_training/tiny-chats").rglob("*.log")]
    assert any("continuing after step" in log for log in logs), "the retried training goes on from its last state"
    manifests = list((again.workspace / "checkpoints/tiny-chats").glob("*/*/manifest.json"))
    assert len(manifests) == 12


def test_ctrl_c_leaves_the_call_running_and_cancel_ends_it(lone: Site):
    slow = LONG | {"tiny_target": {"steps": 100000}}
    process = lone.start("--cores", 2, "all", settings=slow, config=("ablations=baseline", "lr_sweep=False"))
    wait_for(lambda: lone.server.spawned["train_tiny_target"] == 1, "call")
    wait_for(lambda: (lone.workspace / ".specforge/calls").is_dir() and "tiny" in lone.cloud("calls").stdout, "ledger")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) != 0
    words = (lone.workspace / "output.txt").read_text()
    assert "detached; call fc-" in words
    assert "python -m specforge.cloud cancel" in words
    assert [call.state.name for call in lone.server.calls if call.function == "train_tiny_target"] == ["RUNNING"]

    edited = slow | {"tiny_target": {"steps": 99999}}
    process = lone.start("--cores", 2, "all", settings=edited, config=("ablations=baseline", "lr_sweep=False"))
    wait_for(lambda: lone.server.spawned["train_tiny_target"] == 2, "call of the edited work")
    wait_for(lambda: "started as call" in lone.log("train_tiny_target/chats").split("cancelled")[-1], "its note")
    os.killpg(process.pid, signal.SIGINT)
    process.wait(60)
    assert "made the same files from older settings or code; cancelled" in lone.log("train_tiny_target/chats")

    ended = lone.cloud("cancel", "tiny-chats").stdout
    assert ended.startswith("cancelled fc-")
    wait_for(lambda: not lone.server.containers(), "end of the container")
    assert lone.cloud("calls").stdout == "no calls\n"
