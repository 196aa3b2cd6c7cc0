"""GPUs of this machine are leased, one holder each; no GPU is needed to see it."""

import multiprocessing
import os
from pathlib import Path

import pytest

from specforge.cloud.devices import leased, visible


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def hold(names: str, count: int, taken, release) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = names
    with leased(count) as own:
        taken.put(own)
        release.wait(20)


def test_two_jobs_never_hold_one_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    fork = multiprocessing.get_context("fork")
    taken, release = fork.Queue(), fork.Event()
    other = fork.Process(target=hold, args=("4,5,6", 2, taken, release))
    other.start()
    assert taken.get(timeout=20) == ["4", "5"]
    with leased(1) as own:
        assert own == ["6"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,6"
    release.set()
    other.join()
    with leased(3) as own:
        assert own == ["4", "5", "6"]


def test_a_killed_holders_gpus_are_free(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    fork = multiprocessing.get_context("fork")
    taken, release = fork.Queue(), fork.Event()
    other = fork.Process(target=hold, args=("0", 1, taken, release))
    other.start()
    assert taken.get(timeout=20) == ["0"]
    other.kill()
    other.join()
    with leased(1) as own:
        assert own == ["0"]


def test_no_gpu_or_none_wanted_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible() == []
    with leased(8) as own:
        assert own == []
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with leased(0):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
