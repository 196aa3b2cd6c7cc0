import json

import pytest

from specforge.errors import UserError
from specforge.journal import Journal


def test_rows_are_found_again_after_reopening(tmp_path):
    path = tmp_path / "work" / "journal.jsonl"
    with Journal(path) as journal:
        journal.append({"id": "b", "text": "zwei – 2"})
        journal.append({"id": "a", "text": "one"})
    with Journal(path) as journal:
        assert len(journal) == 2
        assert "a" in journal
        assert "c" not in journal
        assert journal["b"]["text"] == "zwei – 2"
        assert [row["id"] for row in journal] == ["b", "a"]
        journal.append({"id": "c"})
        assert journal["c"] == {"id": "c"}


def test_appended_rows_are_in_the_file_at_once(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.append({"id": "a"})
        assert (tmp_path / "j").read_bytes() == b'{"id": "a"}\n'


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_partial_last_line_is_removed_and_written_anew(tmp_path, cut):
    path = tmp_path / "j"
    rows = [{"id": f"r{n}", "text": "ä" * 5} for n in range(3)]
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(whole[:-cut])
    with Journal(path) as journal:
        assert [row["id"] for row in journal] == ["r0", "r1"]
        journal.append(rows[2])
    assert path.read_bytes() == whole


def test_every_length_of_the_file_can_be_continued(tmp_path):
    rows = [{"id": str(n), "x": n} for n in range(3)]
    whole = "".join(json.dumps(row) + "\n" for row in rows).encode()
    for length in range(len(whole) + 1):
        path = tmp_path / str(length)
        path.write_bytes(whole[:length])
        with Journal(path) as journal:
            for row in rows:
                if row["id"] not in journal:
                    journal.append(row)
        assert path.read_bytes() == whole


def test_a_row_is_not_appended_twice(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.append({"id": "a"})
        with pytest.raises(ValueError, match="already holds"):
            journal.append({"id": "a"})


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "j").write_text('{"id": "a"}\nnonsense\n{"id": "b"}\n')
    with pytest.raises(UserError, match="line 2 is damaged"):
        Journal(tmp_path / "j")


def test_two_runs_do_not_share_a_journal(tmp_path):
    with Journal(tmp_path / "j"), pytest.raises(UserError, match="in use by another run"):
        Journal(tmp_path / "j")
    Journal(tmp_path / "j").close()
