"""The cache on disk: the same bytes from any number of processes, read without a copy, small in memory."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from stock import MODELS, make_tokenizer
from tiny import make_conversations

from specforge.data import chunks
from specforge.data.cache import SCHEMA, TokenCache, to_batch, write_cache
from specforge.data.chunks import Process, tokenize
from specforge.data.tally import Tally
from specforge.data.tokenizing import Recipe, Tokenizing
from specforge.errors import UserError
from specforge.target.file import TargetFile
from specforge.train.batches import Batch


def make_work(folder, model: str) -> Tokenizing:
    make_tokenizer(MODELS[model]).save_pretrained(folder)
    return Tokenizing(Recipe(TargetFile(str(folder), None, ""), 200))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_work(tmp_path_factory.mktemp("target"), "qwen2.5")


def made(path, work, records, processes) -> tuple[bytes, Tally]:
    tally = Tally()

    def batches():
        for batch, counts in tokenize(records, work, processes):
            tally.add(counts)
            yield batch

    write_cache(path, batches())
    return path.read_bytes(), tally


def test_any_number_of_processes_writes_the_same_bytes(work, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 7)
    records = make_conversations(60)
    alone, counts = made(tmp_path / "1.arrow", work, records, 1)
    assert counts.conversations == 60
    for processes in (2, 3):
        assert made(tmp_path / f"{processes}.arrow", work, records, processes) == (alone, counts)


def test_a_process_sees_the_numbers_of_a_tool_as_they_are(tmp_path):
    work = make_work(tmp_path / "target", "qwen3")  # its template writes the tools
    numbers = [2**64, -(2**70), 0.1, 1.0, 1e22, -0.0, True, None]
    (record,) = make_conversations(1)
    alone, counts = made(tmp_path / "1.arrow", work, [record | {"tools": [{"enum": numbers}]}], 1)
    ids = TokenCache(tmp_path / "1.arrow")[0]["input_ids"].tolist()
    assert str(2**64) in work.encoder.tokenizer.decode(ids)
    assert made(tmp_path / "2.arrow", work, [record | {"tools": [{"enum": numbers}]}], 2) == (alone, counts)


def test_chunks_do_not_change_what_is_counted(work, tmp_path, monkeypatch):
    records, found = make_conversations(60), []
    for size in (1, 7, 100):
        monkeypatch.setattr(chunks, "CHUNK", size)
        _, counts = made(tmp_path / "a.arrow", work, records, 1)
        found.append((counts, TokenCache(tmp_path / "a.arrow")["input_ids"]))
    for counts, ids in found[1:]:
        assert counts == found[0][0]
        assert [row.tolist() for row in ids] == [row.tolist() for row in found[0][1]]


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_rows_are_views_of_the_file_also_as_tensors(work, tmp_path):
    made(tmp_path / "a.arrow", work, make_conversations(9), 1)
    before = pa.total_allocated_bytes()
    cache = TokenCache(tmp_path / "a.arrow")
    assert pa.total_allocated_bytes() == before
    row = cache[3]
    for name, dtype in (("input_ids", np.int32), ("loss_mask", np.bool_)):
        values = row[name]
        assert (values.dtype, values.flags.owndata, values.flags.writeable) == (dtype, False, False)
        place = cache._values[0][name == "loss_mask"].__array_interface__["data"][0]
        start = int(cache.lengths[:3].sum()) * values.itemsize
        assert torch.from_numpy(values).data_ptr() == place + start


def test_rows_of_several_batches_are_found(work, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 4)
    records = make_conversations(11)
    made(tmp_path / "a.arrow", work, records, 1)
    cache = TokenCache(tmp_path / "a.arrow")
    assert cache["id"] == [record["id"] for record in records] == cache[list(range(11))]["id"]
    assert cache.lengths.tolist() == [len(row) for row in cache["input_ids"]]
    some = cache[[9, 0, 5]]
    assert [row.tolist() for row in some["input_ids"]] == [cache[n]["input_ids"].tolist() for n in (9, 0, 5)]
    assert Batch.pack(some).mask.dtype == torch.bool


def test_another_layout_and_an_empty_cache_are_refused(tmp_path):
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, pa.schema([("id", pa.string())])):
        pass
    with pytest.raises(UserError, match=r"a\.arrow holds no sequence; delete it"):
        TokenCache(tmp_path / "a.arrow")
    old = pa.schema([*list(SCHEMA)[:2], ("loss_mask", pa.list_(pa.bool_()))])
    table = pa.table({"id": ["a"], "input_ids": [[1]], "loss_mask": [[True]]}, schema=old)
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pa.ipc.new_stream(file, old) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match=r"b\.arrow has the layout .*bool.*; delete it"):
        TokenCache(tmp_path / "b.arrow")


def test_a_killed_process_is_one_sentence(work, monkeypatch):
    started = []
    plain = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(plain(*a, **k)) or started[-1])
    monkeypatch.setattr(chunks, "CHUNK", 5)
    results = tokenize(make_conversations(200), work, 2)
    next(results)
    for child in started:
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"ended with status -9.* run with fewer --cores"):
        list(results)
    assert all(child.poll() is not None for child in started)


def test_a_defect_in_a_process_ends_the_step(work, capfd):
    with pytest.raises(UserError, match="ended with status 1;"):
        list(tokenize([{"id": "no conversation"}], work, 2))
    assert "KeyError: 'conversations'" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_at_work_has_no_torch(work):
    with Process(work.recipe) as process:
        process.ask(make_conversations(3))
        maps = Path(f"/proc/{process._child.pid}/maps").read_text()
    assert "tokenizers" in maps
    assert "libtorch" not in maps


def test_processes_load_no_torch():
    code = "import sys, specforge.data.worker, specforge.data.chunks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_row_is_an_empty_batch():
    assert len(to_batch([])) == 0
