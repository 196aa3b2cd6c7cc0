"""Two processes that collect one file, and a ledger that changes while it is read."""

import hashlib
import multiprocessing
import time
from pathlib import Path

import pytest

from specforge.cloud import ledger
from specforge.cloud.mirror import Mirror

SIZE = 8 << 20


class Volume:
    """Sends the bytes of a file in pieces."""

    def read_file(self, path: str):
        for start in range(0, SIZE, 1 << 20):
            yield content()[start : start + (1 << 20)]


def content() -> bytes:
    return b"0123456789abcdef" * (SIZE // 16)


def collect(start, failed) -> None:
    mirror = Mirror()
    mirror._handles["specforge-datasets"] = Volume()
    facts = {"sha256": hashlib.sha256(content()).hexdigest(), "size": SIZE}
    start.wait(20)
    try:
        mirror.fetch("datasets/big.bin", facts)
    except BaseException as error:
        failed.put(repr(error))
        raise


def test_processes_that_collect_one_file_at_a_time_all_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    fork = multiprocessing.get_context("fork")
    start, failed = fork.Event(), fork.Queue()
    processes = [fork.Process(target=collect, args=(start, failed)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4, failed.get(timeout=1)
    assert Path("datasets/big.bin").read_bytes() == content()
    assert not list(Path(".specforge/downloads").glob("*.part"))


def churn(stop) -> None:
    while not stop.is_set():
        ledger.note("w", "fc-1", outputs=[])
        ledger.drop("w", "fc-1")


def test_the_ledger_is_read_while_others_write_and_drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    fork = multiprocessing.get_context("fork")
    stop = fork.Event()
    other = fork.Process(target=churn, args=(stop,))
    other.start()
    while not ledger.FOLDER.is_dir():
        time.sleep(0.01)
    try:
        for _ in range(2000):
            assert len(ledger.entries()) <= 1
    finally:
        stop.set()
        other.join()
    assert [path.name for path in Path(".specforge/calls").iterdir()] in ([], ["w.json"])
