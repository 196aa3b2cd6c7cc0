import json

import datasets
import pytest

from specforge.data import sources
from specforge.data.sources import read_source
from specforge.errors import UserError

ROWS = [{"id": str(n), "text": "x" * n, "deep": [{"n": n}, "[},]"]} for n in range(12)]


def read(path):
    return list(read_source(str(path), None, 0))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_an_array_gives_its_rows_and_their_lines(tmp_path, monkeypatch, indent, chunk):
    monkeypatch.setattr(sources, "CHUNK", chunk)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, indent=indent) + "\n")
    rows = read(path)
    assert [row.value for row in rows] == ROWS
    lines = path.read_text().splitlines()
    assert all(lines[row.line - 1].strip().startswith(("{", "[{")) for row in rows)
    assert len({row.line for row in rows}) == (1 if indent is None else len(ROWS))


def test_numbers_at_the_edge_of_a_chunk_stay_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK", 3)
    path = tmp_path / "rows.json"
    path.write_text("[12345, 6, 789012]")
    assert [row.value for row in read(path)] == [12345, 6, 789012]


def test_an_empty_array_has_no_rows(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(" [ ] ")
    assert read(path) == []


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_json_lines_under_either_name(tmp_path, name):
    path = tmp_path / name
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    rows = read(path)
    assert [row.value for row in rows] == ROWS
    assert [row.line for row in rows] == list(range(1, 2 * len(ROWS), 2))


def test_bad_lines_are_rows_with_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n{"a": NaN}\n"\xff"\n' + b"[" * 200_000 + b'\n{"a": 2}\n')
    good, cut, nan, bytes_, deep, last = read(path)
    assert (good.value, last.value, last.line) == ({"a": 1}, {"a": 2}, 6)
    assert all(row.error and "not JSON" in row.error for row in (cut, nan, deep))
    assert (cut.line, cut.value) == (2, '{"a": ')
    assert bytes_.value == "\udcff"


@pytest.mark.parametrize("text", ['[\n{"a": 1},\n{"b": 2}', '[\n{"a": 1}\n{"b": 2}]', '[1,\n{"a"}]', "[1]\n2", "[1,]"])
def test_a_broken_array_is_named_with_its_line(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"rows\.json is not a whole JSON array: .* line \d+; mend it\."):
        read(path)


def test_unknown_names_come_with_near_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats.jsonl").touch()
    with pytest.raises(UserError, match="Did you mean sharegpt"):
        read_source("sharegtp", None, 0)
    with pytest.raises(UserError, match=r"Did you mean chats\.jsonl"):
        read_source("chat.jsonl", None, 0)
    with pytest.raises(UserError, match="set dataset to"):
        read_source("/nowhere/x.json", None, 0)


def test_folders_and_other_formats_are_refused(tmp_path):
    (tmp_path / "rows.csv").touch()
    with pytest.raises(UserError, match="is a folder"):
        read_source(str(tmp_path), None, 0)
    with pytest.raises(UserError, match=r"must be a \.json or \.jsonl file"):
        read_source(str(tmp_path / "rows.csv"), None, 0)


def test_the_generator_needs_a_size():
    with pytest.raises(UserError, match="sample_size"):
        read_source("synthetic", None, 0)
    rows = read_source("synthetic", 3, 5)
    assert next(rows).value["id"] == "synthetic-5-0"


@pytest.mark.parametrize("offline", [False, True])
def test_the_hub_is_streamed_unless_offline(monkeypatch, offline):
    calls = []
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: calls.append((args, kwargs)) or ROWS)
    assert [row.value for row in read_source("sharegpt", None, 0)] == ROWS
    ((args, kwargs),) = calls
    assert args == (sources.HUB_NAME,)
    assert kwargs == {"data_files": sources.HUB_FILE, "split": "train", "streaming": not offline}


def test_a_hub_that_breaks_off_is_the_users_to_mend(monkeypatch):
    def rows():
        yield {"id": "a"}
        raise ConnectionError("gone")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows())
    stream = read_source("sharegpt", None, 0)
    assert next(stream).value == {"id": "a"}
    with pytest.raises(UserError, match="ConnectionError: gone"):
        next(stream)
