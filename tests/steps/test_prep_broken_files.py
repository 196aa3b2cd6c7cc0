"""Broken files, by hand and by chance: each row is kept or rejected with its reason, or one sentence stops the step."""

import json
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from specforge.config.steps import Prepare
from specforge.data import raw_files
from specforge.errors import UserError
from specforge.files import read_jsonl
from specforge.steps.prep_dataset import prep_dataset

TURNS = [{"role": "user", "content": "Anchor?"}, {"role": "assistant", "content": "Yes."}]
ANCHOR = {"id": "anchor", "messages": TURNS}
FILES = {"train": Path("out/train.jsonl"), "test": Path("out/test.jsonl"), "rejected": Path("out/rejected.jsonl")}


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """What becomes of a file: its summary, whose counts add up, or the sentence that stops the step."""
    monkeypatch.chdir(tmp_path)

    def run(name):
        paths = {key: str(path) for key, path in FILES.items()}
        try:
            summary = prep_dataset(
                dataset=name, sample_size=None, split_eval=False, seed=0,
                settings=Prepare(max_rejected_share=1.0).model_dump(mode="json"),
                **{**paths, "test": None}, summary="out/summary.json",
            )  # fmt: skip
        except UserError as error:
            return str(error)
        add_up(summary)
        return summary

    return run


def add_up(summary):
    kept, rejected = (list(read_jsonl(FILES[name])) for name in ("train", "rejected"))
    assert summary["read"] == summary["kept"] + summary["rejected"]
    assert (summary["kept"], summary["rejected"]) == (len(kept), len(rejected))
    assert sum(summary["rejected_by_reason"].values()) == summary["rejected"]
    numbers = [row["row"] for row in rejected]
    assert len(set(numbers)) == len(numbers)
    assert all(1 <= number <= summary["read"] for number in numbers)
    assert all(row["reason"] and row["detail"].endswith(".") for row in rejected)
    assert len({row["id"] for row in kept}) == len(kept)


def turns(*roles):
    return json.dumps({"messages": [{"role": role, "content": f"{role}?"} for role in roles]}).encode()


CORPUS = {
    b'{"messages": [': "unreadable",
    b"not json": "unreadable",
    b"{'messages': []}": "unreadable",
    b'{"id": NaN, "messages": []}': "unreadable",
    b"[" * 100_000: "unreadable",
    b'{"a": ' * 50_000: "unreadable",
    b'{"n": ' + b"9" * 5000 + b"}": "unreadable",
    b"\x00\x00\x00": "unreadable",
    b'{"messages": "\x00"}': "unreadable",
    turns("user", "assistant").replace(b"user?", b"a\\u0000b"): "bad_characters",
    turns("user", "assistant").replace(b"user?", b"a\\ud800b"): "bad_characters",
    turns("user", "assistant").replace(b"user?", b"a\xffb"): "bad_characters",
    turns("user", "assistant").replace(b"user?", b"a\xed\xa0\x80b"): "bad_characters",
    b"null": "not_an_object",
    b"3": "not_an_object",
    b'"\xff"': "not_an_object",
    b"[1, 2]": "not_an_object",
    b"{}": "no_known_form",
    b'{"messages": 3}': "no_turns",
    b'{"messages": {"role": "user"}}': "no_turns",
    b'{"conversations": [null]}': "turn_type",
    b'{"conversations": [{"from": "human", "value": {"text": "Hi"}}]}': "turn_type",
    b'{"id": 1e999, "messages": [{"role": "user", "content": "Hi"}]}': "bad_id",
    turns("assistant", "user", "assistant"): "roles_out_of_order",
    turns("user", "assistant", "system", "user", "assistant"): "roles_out_of_order",
    turns("user", "system", "user", "assistant"): "roles_out_of_order",
    turns("user", "tool", "assistant"): "roles_out_of_order",
    turns(*["user", "assistant"] * 40): "too_many_turns",
    turns("user"): "no_answer",
    turns("user", "assistant").replace(b"user?", b"x" * 1_000_001): "too_long",
    json.dumps({**ANCHOR, "id": "again"}).encode(): "duplicate_conversation",
    turns("user", "assistant").replace(b"{", b'{"id": "anchor", ', 1): "duplicate_id",
}


def test_each_broken_line_has_its_reason(outcome):
    Path("rows.jsonl").write_bytes(b"\n".join([json.dumps(ANCHOR).encode(), *CORPUS]))
    summary = outcome("rows.jsonl")
    assert (summary["kept"], summary["rejected"]) == (1, len(CORPUS))
    assert [row["reason"] for row in read_jsonl(FILES["rejected"])] == list(CORPUS.values())


@pytest.mark.parametrize("line", CORPUS, ids=lambda line: line[:20].decode(errors="backslashreplace"))
def test_each_in_an_array_is_a_rejection_or_stops_the_step(outcome, line):
    Path("rows.json").write_bytes(b"[" + json.dumps(ANCHOR).encode() + b",\n" + line + b"]")
    found = outcome("rows.json")
    if isinstance(found, str):
        assert "rows.json is not a whole JSON array" in found
        assert "line 2" in found
    else:
        assert found["read"] == 2


def test_lines_of_50_mb_are_passed_over_in_little_memory(outcome):
    with Path("rows.jsonl").open("wb") as file:
        file.write(json.dumps(ANCHOR).encode() + b"\n")
        for start in (b'{"messages": "', b""):
            file.write(start)
            for _ in range(50):
                file.write(b"x" * (1 << 20))
            file.write(b"\n")
        file.write(turns("user", "assistant"))
    tracemalloc.start()
    summary = outcome("rows.jsonl")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (summary["read"], summary["kept"], summary["rejected_by_reason"]) == (4, 2, {"unreadable": 2})
    assert [row["line"] for row in read_jsonl(FILES["rejected"])] == [2, 3]
    assert peak < 4 * raw_files.ROW_LIMIT


scraps = st.one_of(
    st.sampled_from([json.dumps(ANCHOR).encode(), *(line for line in CORPUS if len(line) < 1000)]),
    st.binary(max_size=30),
    st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from(["user", "assistant", "system", "tool", "x"]), max_size=6).map(
        lambda roles: turns(*roles)
    ),
)
fuzzed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzzed
@given(st.lists(scraps, max_size=12))
def test_each_line_ends_in_exactly_one_place(outcome, lines):
    data = b"\n".join([json.dumps(ANCHOR).encode(), *lines])
    Path("rows.jsonl").write_bytes(data)
    summary = outcome("rows.jsonl")
    filled = [line for line in data.split(b"\n") if line.decode("utf-8", "surrogateescape").strip()]
    assert summary["read"] == len(filled)
    assert summary["kept"] >= 1


@fuzzed
@given(st.lists(scraps, max_size=6), st.sampled_from([b",", b"\n", b" , "]), st.sampled_from([b"]", b"", b"]]"]))
def test_each_array_adds_up_or_stops_the_step(outcome, elements, comma, end):
    Path("rows.json").write_bytes(b"[" + comma.join([json.dumps(ANCHOR).encode(), *elements]) + end)
    found = outcome("rows.json")
    assert isinstance(found, dict) or ("is not a whole JSON array" in found and found.endswith("mend it."))


@fuzzed
@given(st.data())
def test_each_damaged_parquet_file_adds_up_or_stops_the_step(outcome, data):
    rows = [{"id": str(n), "messages": [*TURNS, {"role": "x", "content": None}]} for n in range(9)]
    parquet.write_table(pyarrow.Table.from_pylist([ANCHOR, *rows]), "rows.parquet")
    content = bytearray(Path("rows.parquet").read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    Path("rows.parquet").write_bytes(content[: data.draw(st.integers(len(content) - 40, len(content)))])
    assert outcome("rows.parquet")
