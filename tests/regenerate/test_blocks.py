"""The input in blocks: the same for every number of shards, and never more of it in memory than is under way."""

import threading

import pytest
from tiny import make_conversations

from specforge.errors import UserError
from specforge.files import write_jsonl
from specforge.regenerate import blocks
from specforge.regenerate.blocks import OpenBlocks, Source, Work
from specforge.regenerate.fill import fill, state


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 8)


@pytest.fixture
def source(tmp_path):
    write_jsonl(tmp_path / "in.jsonl", make_conversations(30))
    return Source(tmp_path / "in.jsonl")


class Backwards:
    """An engine that finishes each three blocks together, last first."""

    repeatable = False

    def __init__(self, fails=(), stops_after=10**9):
        self.fails, self.stops_after, self.asked = set(fails), stops_after, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def run(self, given):
        records = [record for block in given for record in block.records if record["id"] not in block.done]
        for record in reversed(records):
            self.asked.append(record["id"])
            if len(self.asked) > self.stops_after:
                raise KeyboardInterrupt
            bad = {"id": record["id"], "error": "turn 2: HTTP 500"}
            yield bad if record["id"] in self.fails else record | {"tokens": 1}


def ids(work: Work, which: range) -> list[str]:
    return [row["id"] for block in which for row in work.rows(block)]


def test_blocks_are_neighbours_of_the_input(source):
    assert (len(source), source.total) == (4, 30)
    assert [next(record["id"] for record in source.records(block)) for block in range(4)] == ["c0", "c8", "c16", "c24"]
    assert [source.size(range(block, block + 1)) for block in range(4)] == [8, 8, 8, 6]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_shards_are_all_blocks_once(source, count):
    pieces = [source.shard(number, count) for number in range(count)]
    assert [block for piece in pieces for block in piece] == [0, 1, 2, 3]
    assert sum(source.size(piece) for piece in pieces) == 30
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_rows_come_in_the_inputs_order_whatever_order_they_were_said_in(source, tmp_path):
    work = Work(source, tmp_path / "work")
    assert fill(work, range(4), Backwards(fails=["c9"]), allowed=5) == 1
    assert ids(work, range(4)) == [f"c{n}" for n in range(30)]
    assert state(work, range(4)) == (29, 0, 1, [1])


def test_another_number_of_shards_asks_only_for_what_is_missing(source, tmp_path):
    work = Work(source, tmp_path / "work")
    for number in (0, 2):
        fill(work, source.shard(number, 4), Backwards(), allowed=0)
    engines = [Backwards() for _ in range(3)]
    for number, engine in enumerate(engines):
        fill(work, source.shard(number, 3), engine, allowed=0)
    assert sorted(i for engine in engines for i in engine.asked) == sorted(
        f"c{n}" for n in [*range(8, 16), *range(24, 30)]
    )
    assert ids(work, range(4)) == [f"c{n}" for n in range(30)]


def test_shards_may_work_at_the_same_time(source, tmp_path):
    work = Work(source, tmp_path / "work")
    threads = [threading.Thread(target=fill, args=(work, source.shard(n, 2), Backwards(), 0)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ids(work, range(4)) == [f"c{n}" for n in range(30)]


def test_an_interrupted_run_keeps_rows_and_failures_and_the_next_asks_for_the_rest(source, tmp_path):
    work = Work(source, tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        fill(work, range(4), Backwards(fails=["c29", "c20"], stops_after=15), allowed=9)
    assert state(work, range(4)) == (13, 0, 2, [0, 1, 2, 3])
    again = Backwards()
    assert fill(work, range(4), again, allowed=0) == 0
    assert sorted(again.asked) == sorted(["c29", "c20", *(f"c{n}" for n in range(15))])
    assert state(work, range(4)) == (30, 0, 0, [])
    assert not list((tmp_path / "work").glob("failed-*"))


def test_a_block_is_open_only_while_it_is_under_way(source, tmp_path):
    work = Work(source, tmp_path / "work")
    with OpenBlocks(work, range(4)) as opened:
        for block in opened:
            for record in block.records:
                opened.keep(record, transient=False)
            assert not opened._of


def test_an_id_that_comes_twice_far_apart_is_refused(tmp_path):
    rows = make_conversations(30)
    write_jsonl(tmp_path / "in.jsonl", [*rows, rows[3]])
    with pytest.raises(UserError, match="id 'c3' more than once"):
        Source(tmp_path / "in.jsonl")


def test_equal_marks_of_different_ids_are_no_repeat(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "hash", lambda identity: 1, raising=False)
    write_jsonl(tmp_path / "in.jsonl", make_conversations(5))
    assert Source(tmp_path / "in.jsonl").total == 5


def test_a_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"id": "a"}\nnonsense\n')
    with pytest.raises(UserError, match=r"in\.jsonl, line 2 is not JSON"):
        Source(tmp_path / "in.jsonl")
