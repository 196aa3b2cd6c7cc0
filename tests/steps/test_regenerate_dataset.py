import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tiny import make_conversations, make_target_file, make_tiny_target

from specforge.config.steps import Regenerate
from specforge.errors import UserError
from specforge.files import read_json, read_jsonl, sha256_file, write_json, write_jsonl
from specforge.regenerate import job
from specforge.regenerate.http import HttpEngine
from specforge.steps.regenerate_dataset import regenerate_dataset

COUNT = 40


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return make_target_file(folder, make_tiny_target(folder / "model"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "train.jsonl"
    write_jsonl(path, make_conversations(COUNT))
    return path


def arguments(folder: Path, source: Path, target: Path, **changes) -> dict:
    """`changes` are of the settings; False instead of a dict skips."""
    recipe = {"max_tokens": 16, "batch_size": 4, "max_failed_share": 0.5} | changes
    return {
        "source": str(source),
        "target": str(target),
        "settings": Regenerate(**recipe).recipe(),
        "placement": Regenerate(**recipe).placement(),
        "code": "abc",
        "output": str(folder / "out.jsonl"),
        "errors": str(folder / "errors.jsonl"),
        "summary": str(folder / "summary.json"),
        "work": str(folder / "work"),
        "threads": 1,
    }


def journals(folder: Path) -> list[Path]:
    return sorted((folder / "work").glob("*/journal-*.jsonl"))


def killed_after(lines: int, folder: Path, call: dict) -> int:
    """Runs the step in a process that is killed at once when the journal has `lines`; lines at its death."""
    code = (
        "import json, sys; from specforge.steps.regenerate_dataset import regenerate_dataset; "
        "regenerate_dataset(**json.loads(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(call)])

    def count() -> int:
        return sum(path.read_bytes().count(b"\n") for path in journals(folder))

    deadline = time.monotonic() + 60
    while count() < lines and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    return count()


def test_killed_runs_continue_to_the_same_bytes(tmp_path, source, target):
    whole = regenerate_dataset(**arguments(tmp_path / "whole", source, target))
    call = arguments(tmp_path / "killed", source, target)
    first = killed_after(3, tmp_path / "killed", call)
    assert 3 <= first < COUNT
    assert not Path(call["output"]).exists()
    second = killed_after(first + 6, tmp_path / "killed", call)
    assert first < second < COUNT
    with journals(tmp_path / "killed")[0].open("ab") as file:
        file.write(b'{"id": "c39", "conversa')
    assert regenerate_dataset(**call) == whole
    for name in ("out.jsonl", "errors.jsonl", "summary.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    ids = [row["id"] for row in read_jsonl(Path(call["output"]))]
    failed = [row["id"] for row in read_jsonl(Path(call["errors"]))]
    assert sorted(ids + failed) == sorted(f"c{n}" for n in range(COUNT))
    assert ids == [f"c{n}" for n in range(COUNT) if f"c{n}" not in failed]


def test_the_summary_tells_what_is_in_the_output(tmp_path, source, target):
    call = arguments(tmp_path, source, target)
    told = regenerate_dataset(**call)
    rows = list(read_jsonl(Path(call["output"])))
    answers = [turn for row in rows for turn in row["conversations"] if turn["role"] == "assistant"]
    assert told == read_json(Path(call["summary"]))
    assert told["conversations"] == told["regenerated"] + told["failed"] == COUNT
    assert told["regenerated"] == len(rows)
    assert told["turns"] == len(answers) == sum(told["finish_reasons"].values())
    assert told["tokens"] > len(answers)
    assert told["sha256"] == sha256_file(Path(call["output"]))
    assert told["settings"] == call["settings"]
    assert all(set(row) == {"id", "conversations"} for row in rows)


def test_a_complete_journal_is_written_out_without_the_target(tmp_path, source, target):
    file = tmp_path / "target.json"
    write_json(file, read_json(target))
    call = arguments(tmp_path, source, file)
    told = regenerate_dataset(**call)
    for name in ("output", "errors", "summary"):
        Path(call[name]).unlink()
    write_json(file, read_json(target) | {"model": "/nowhere"})
    assert regenerate_dataset(**call) == told


def test_a_changed_recipe_starts_anew_and_a_changed_knob_does_not(tmp_path, source, target):
    regenerate_dataset(**arguments(tmp_path, source, target))
    regenerate_dataset(**arguments(tmp_path, source, target, concurrency=3, max_failed_share=0.9))
    assert len(journals(tmp_path)) == 1
    regenerate_dataset(**arguments(tmp_path, source, target, seed=1))
    regenerate_dataset(**arguments(tmp_path, source, target) | {"code": "abd"})
    assert len(journals(tmp_path)) == 3


def test_false_copies_the_conversations(tmp_path, source, target):
    call = arguments(tmp_path, source, target) | {"settings": False}
    told = regenerate_dataset(**call)
    assert Path(call["output"]).read_bytes() == source.read_bytes()
    assert Path(call["errors"]).read_bytes() == b""
    assert (told["conversations"], told["regenerated"], told["failed"]) == (COUNT, 0, 0)
    assert (told["turns"], told["finish_reasons"], told["settings"]) == (79, {}, False)


def test_a_repeated_id_or_no_conversation_is_refused(tmp_path, target):
    source = tmp_path / "in.jsonl"
    write_jsonl(source, [*make_conversations(2), make_conversations(2)[1]])
    with pytest.raises(UserError, match="id 'c1' more than once"):
        regenerate_dataset(**arguments(tmp_path, source, target))
    write_jsonl(source, [])
    with pytest.raises(UserError, match="holds no conversations"):
        regenerate_dataset(**arguments(tmp_path, source, target))


class Picky(BaseHTTPRequestHandler):
    """Answers `status` to conversations while `bad` names their number; remembers who asked."""

    status, reason = 403, "stop"
    bad: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = body["messages"][-1]["content"].rpartition("(")[2].rstrip(")")
        type(self).asked += (number,)
        status = self.status if number in self.bad else 200
        choice = {"message": {"content": f"answer {number}"}, "finish_reason": self.reason}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [choice]} if status == 200 else {"error": "refused"}).encode())

    def log_message(self, *words):
        """Silence."""


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setattr(job, "opens_thought", lambda *words: False)  # tests/regenerate/test_opening.py asks it
    server = HTTPServer(("127.0.0.1", 0), Picky)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    Picky.asked, Picky.bad, Picky.status, Picky.reason = (), (), 403, "stop"
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def test_failed_conversations_are_listed_and_tried_again(tmp_path, source, target, endpoint, caplog):
    call = arguments(tmp_path, source, target, engine="endpoint", endpoints=[endpoint], max_failed_share=0.1)
    Picky.bad = ("7", "31")
    told = regenerate_dataset(**call)
    assert (told["regenerated"], told["failed"]) == (38, 2)
    assert list(read_jsonl(Path(call["errors"]))) == [
        {"id": "c7", "error": "turn 2: HTTP 403: refused"},
        {"id": "c31", "error": "turn 2: HTTP 403: refused"},
    ]
    assert "2 of 40 conversations failed for now" in caplog.text
    assert "snakemake --cores all --forcerun regenerate_dataset" in caplog.text
    caplog.clear()
    Picky.bad = Picky.asked = ()
    assert regenerate_dataset(**call)["failed"] == 0
    assert set(Picky.asked) == {"7", "31"}
    assert [row["id"] for row in read_jsonl(Path(call["output"]))] == [f"c{n}" for n in range(COUNT)]
    assert "failed for now" not in caplog.text


def test_what_is_refused_at_once_is_not_asked_again(tmp_path, source, target, endpoint, caplog):
    call = arguments(tmp_path, source, target, engine="endpoint", endpoints=[endpoint], max_failed_share=0.1)
    Picky.bad, Picky.status = ("7",), 400
    told = regenerate_dataset(**call)
    assert list(read_jsonl(Path(call["errors"]))) == [
        {"id": "c7", "error": "turn 2: HTTP 400: refused", "lasting": True}
    ]
    Picky.asked = ()
    assert regenerate_dataset(**call) == told
    assert Picky.asked == ()
    assert "failed for now" not in caplog.text


def test_a_reply_cut_while_it_thinks_is_reasoning_where_the_template_opens_the_thought(
    tmp_path, source, target, endpoint, monkeypatch
):
    monkeypatch.setattr(job, "opens_thought", lambda *words: True)
    Picky.reason = "length"
    told = regenerate_dataset(**arguments(tmp_path, source, target, engine="endpoint", endpoints=[endpoint]))
    assert (told["turns"], told["reasoning_turns"], told["finish_reasons"]) == (COUNT, COUNT, {"length": COUNT})


def test_a_changed_port_continues(tmp_path, source, target, endpoint):
    call = arguments(tmp_path, source, target, engine="endpoint", endpoints=[endpoint])
    told = regenerate_dataset(**call)
    moved = arguments(tmp_path, source, target, engine="endpoint", endpoints=["http://127.0.0.1:9"], batch_size=5)
    assert regenerate_dataset(**moved) == told


def test_a_conversation_without_a_row_is_never_left_out_in_silence(tmp_path, source, target, endpoint, monkeypatch):
    whole = HttpEngine.run
    monkeypatch.setattr(HttpEngine, "run", lambda self, blocks: (r for r in whole(self, blocks) if r["id"] != "c9"))
    call = arguments(tmp_path, source, target, engine="endpoint", endpoints=[endpoint])
    with pytest.raises(
        UserError, match=r"1 of 40 conversations have neither.*snakemake .*--forcerun regenerate_dataset"
    ):
        regenerate_dataset(**call)
    assert not Path(call["output"]).exists()


@pytest.mark.parametrize("status", [403, 400])
def test_too_many_failures_stop_the_step_in_one_sentence(tmp_path, source, target, endpoint, status):
    call = arguments(tmp_path, source, target, engine="endpoint", endpoints=[endpoint], max_failed_share=0.05)
    call["placement"]["concurrency"] = 1
    Picky.bad, Picky.status = tuple(map(str, range(5, 30))), status
    with pytest.raises(UserError, match=rf"3 of 40 conversations failed.*first is 'c5' .*HTTP {status}: refused"):
        regenerate_dataset(**call)
    assert not Path(call["output"]).exists()
    assert [row["id"] for row in read_jsonl(Path(call["errors"]))] == ["c5", "c6", "c7"]
    Picky.bad = ()
    assert regenerate_dataset(**call)["regenerated"] == COUNT
