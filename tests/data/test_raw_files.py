import json

import pyarrow
import pytest
from pyarrow import parquet

from specforge.data import raw_files
from specforge.data.raw_files import read_file
from specforge.errors import UserError

ROWS = [{"id": str(n), "text": "x" * n, "deep": [{"n": n}, "[},]"]} for n in range(12)]


def read(path):
    return list(read_file(path))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_an_array_gives_its_rows_and_their_lines(tmp_path, monkeypatch, indent, chunk):
    monkeypatch.setattr(raw_files, "CHUNK", chunk)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, indent=indent) + "\n")
    rows = read(path)
    assert [row.value for row in rows] == ROWS
    lines = path.read_text().splitlines()
    assert all(lines[row.line - 1].strip().startswith(("{", "[{")) for row in rows)
    assert len({row.line for row in rows}) == (1 if indent is None else len(ROWS))


def test_numbers_at_the_edge_of_a_chunk_stay_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_files, "CHUNK", 3)
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


def test_a_line_beyond_the_limit_is_passed_over_and_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_files, "ROW_LIMIT", 5000)
    monkeypatch.setattr(raw_files, "CHUNK", 512)
    path = tmp_path / "rows.jsonl"
    fits = '"' + "y" * 4997 + '"'
    path.write_text("\n".join(['{"a": 1}', '"' + "x" * 20_000 + '"', fits, '{"a": 2}', "z" * 9000]))
    first, long, whole, last, end = read(path)
    assert (first.value, whole.value, last.value) == ({"a": 1}, "y" * 4997, {"a": 2})
    assert [long.line, whole.line, last.line, end.line] == [2, 3, 4, 5]
    assert long.error == end.error == "the line exceeds 5000 bytes."
    assert len(long.value) == raw_files.EXCERPT


def test_an_element_beyond_the_limit_stops_an_array(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_files, "ROW_LIMIT", 5000)
    monkeypatch.setattr(raw_files, "CHUNK", 512)
    path = tmp_path / "rows.json"
    path.write_text('[\n1,\n"' + "x" * 90_000)
    with pytest.raises(UserError, match=r"the row exceeds 5000 characters or never ends, at or after line 3; mend it"):
        read(path)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.json"])
def test_parquet_is_known_by_its_first_bytes(tmp_path, monkeypatch, name):
    monkeypatch.setattr(raw_files, "PARQUET_ROWS", 5)
    path = tmp_path / name
    turns = [{"role": "user", "content": "Hi?", "tool_calls": None}, {"role": "assistant", "content": "Hello."}]
    parquet.write_table(pyarrow.Table.from_pylist([{"id": n, "conversations": turns} for n in range(12)]), path)
    rows = read(path)
    assert [row.line for row in rows] == list(range(1, 13))
    assert rows[11].value["id"] == 11
    assert rows[11].value["conversations"][1] == {"role": "assistant", "content": "Hello.", "tool_calls": None}


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"PAR1" + bytes(500), lambda data: b"PAR1"])
def test_a_damaged_parquet_file_is_named(tmp_path, damage):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"id": "a"}]), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"rows\.parquet is a damaged Parquet file, at or after row 1 \(.*anew"):
        read(path)


def test_an_array_called_json_lines_is_still_an_array(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS, indent=1))
    assert [row.value for row in read(path)] == ROWS
    path.write_text("[1]\n[2]\n")
    assert [row.value for row in read(path)] == [[1], [2]]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_constant_that_json_lacks_costs_an_array_its_row_alone(tmp_path, monkeypatch, chunk, constant):
    monkeypatch.setattr(raw_files, "CHUNK", chunk)
    path = tmp_path / "rows.json"
    bad = f'{{"n": [{constant}, NaN]}}'
    path.write_text(f'[\n{{"a": 1}},\n{bad},\n{{"a": "NaN"}},\n{constant}]')
    error = f"the row is not JSON ({constant} is not a JSON number)."
    assert read(path) == [(2, {"a": 1}, None), (3, bad, error), (4, {"a": "NaN"}, None), (5, constant, error)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("9" * 5000, "digits"),
        ("[" * 100_000 + "]" * 100_000, "recursion"),
        ('{"a": "],\\"}", "b": [' + "7" * 5000 + ", {}]}", "digits"),
    ],
)
@pytest.mark.parametrize("chunk", [1 << 20, 100])
def test_a_row_beyond_pythons_limits_does_not_end_an_array(tmp_path, monkeypatch, bad, reason, chunk):
    monkeypatch.setattr(raw_files, "CHUNK", chunk)
    path = tmp_path / "rows.json"
    path.write_text(f'[\n{{"a": 1}},\n{bad},\n{{"a": 2}},\n{bad}]')
    rows = read(path)
    assert [(row.line, row.value) for row in rows[::2]] == [(2, {"a": 1}), (4, {"a": 2})]
    for row, line in zip(rows[1::2], (3, 5), strict=True):
        assert (row.line, row.value) == (line, bad[: raw_files.EXCERPT])
        assert row.error.startswith("the row is beyond what is read (")
        assert reason in row.error


def test_a_row_beyond_the_limit_is_one_of_a_lines_file_and_of_an_array(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_files, "ROW_LIMIT", 100)
    for name, text in (("rows.json", '[{"a": 1}, {"a": "' + "x" * 200 + '"}, {"a": 2}]'),
                       ("rows.jsonl", '{"a": 1}\n{"a": "' + "x" * 200 + '"}\n{"a": 2}\n')):  # fmt: skip
        (tmp_path / name).write_text(text)
        assert [row.error and row.error.split(" ", 2)[2][:12] for row in read(tmp_path / name)] == [
            None,
            "exceeds 100 ",
            None,
        ]


@pytest.mark.parametrize("row", ["9" * 5000, "[" * 200_000, '{"a": ' + "9" * 5000 + ', "b'])
def test_a_row_without_an_end_stops_an_array(tmp_path, row):
    path = tmp_path / "rows.json"
    path.write_text("[\n" + row)
    with pytest.raises(UserError, match=r"not a whole JSON array: .*never ends.*line 2; mend it"):
        read(path)


def test_parquet_rows_lose_the_nulls_that_arrow_put_into_their_tools(tmp_path):
    def row(name):
        properties = {f"{name}_arg": {"type": "string"}}
        call = {"function": {"name": name, "arguments": {f"{name}_arg": [1]}}}
        return {
            "id": None, "tools": [{"function": {"name": name, "parameters": {"properties": properties}}}],
            "messages": [{"content": None, "tool_calls": [call]}],
        }  # fmt: skip

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([row("foo"), row("bar")]), path)
    assert [found.value for found in read(path)] == [row("foo"), row("bar")]


def test_times_in_a_parquet_file_are_passed_over(tmp_path):
    far = pyarrow.array([10**18], pyarrow.timestamp("us"))  # past Python's last year
    path = tmp_path / "rows.parquet"
    parquet.write_table(
        pyarrow.table({"id": ["a"], "when": far, "day": pyarrow.array([10**8], pyarrow.date32())}), path
    )
    assert [row.value for row in read(path)] == [{"id": "a"}]
    parquet.write_table(pyarrow.table({"id": ["a"], "facts": pyarrow.StructArray.from_arrays([far], ["when"])}), path)
    with pytest.raises(UserError, match=r"holds what Python cannot, at or after row 1 \(.*range.*as text"):
        read(path)


def test_json_keeps_the_nulls_of_its_tools(tmp_path):
    tools = {"tools": [{"parameters": {"default": None}}]}
    for name, text in (("rows.json", json.dumps([tools])), ("rows.jsonl", json.dumps(tools))):
        (tmp_path / name).write_text(text)
        assert [row.value for row in read(tmp_path / name)] == [tools]
