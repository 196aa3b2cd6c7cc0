"""Regeneration in shards, and killed at random: each conversation once, in order, and none said twice."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from tiny import make_conversations

from specforge.config.steps import Regenerate
from specforge.errors import UserError
from specforge.files import read_json, read_jsonl, write_json, write_jsonl
from specforge.regenerate import blocks
from specforge.steps.regenerate_dataset import regenerate_dataset
from specforge.steps.regenerate_shard import regenerate_shard

COUNT, KILLS, INFLIGHT = 600, 50, 8
# Imports once, then runs the step in a child as often as it is told, and kills that after so many seconds.
KILLER = """
import json, os, signal, sys, time
from specforge.regenerate import blocks
from specforge.steps.regenerate_dataset import regenerate_dataset
blocks.BLOCK = 64
call = json.loads(sys.argv[1])
for line in sys.stdin:
    child = os.fork()
    if not child:
        regenerate_dataset(**call)
        os._exit(0)
    time.sleep(float(line))
    os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Echo(BaseHTTPRequestHandler):
    """Answers in 20 ms; has a fault for those that `bad` names, cuts those of `cut` short; counts who asked."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[Counter] = Counter()
    bad: ClassVar[frozenset] = frozenset()
    cut: ClassVar[frozenset] = frozenset()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = body["messages"][-1]["content"].rpartition("(")[2].rstrip(")")
        self.asked[number] += 1
        status = 500 if number in self.bad else 200
        reason = "length" if (number, len(body["messages"])) in self.cut else "stop"
        choice = {"message": {"content": f"answer {len(body['messages'])} to {number}"}, "finish_reason": reason}
        time.sleep(0.02)
        payload = json.dumps({"choices": [choice]} if status == 200 else {"error": "boom"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *words):
        """Silence."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """A client that is killed is part of the tests."""


@contextmanager
def echo():
    server = Server(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    Echo.asked.clear()
    Echo.bad = Echo.cut = frozenset()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def request(folder: Path, count: int, endpoint: str, **changes) -> dict:
    """What both steps take; `changes` are of the settings."""
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "train.jsonl", make_conversations(count))
    write_json(folder / "target.json", {"model": "tiny", "revision": None, "sha256": "0" * 64})
    recipe = {"engine": "endpoint", "endpoints": [endpoint], "concurrency": INFLIGHT} | changes
    return {
        "source": str(folder / "train.jsonl"),
        "target": str(folder / "target.json"),
        "settings": Regenerate(**recipe).recipe(),
        "placement": Regenerate(**recipe).placement(),
        "code": "abc",
        "work": str(folder / "work"),
        "threads": 1,
    }


def joined(folder: Path) -> dict:
    return {name: str(folder / f"{name}.jsonl") for name in ("output", "errors", "summary")}


def test_killed_fifty_times_at_random_each_conversation_comes_out_once_and_in_order(tmp_path):
    moments, statuses = random.Random(0), []
    with echo() as endpoint:
        whole = request(tmp_path / "whole", COUNT, endpoint)
        told = regenerate_dataset(**whole, **joined(tmp_path / "whole"))
        needed = sum(Echo.asked.values())
        Echo.asked.clear()
        call = request(tmp_path / "killed", COUNT, endpoint) | joined(tmp_path / "killed")
        with subprocess.Popen(
            [sys.executable, "-c", KILLER, json.dumps(call)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            for _ in range(KILLS):
                process.stdin.write(f"{moments.uniform(0, 0.12)}\n")
                process.stdin.flush()
                statuses.append(int(process.stdout.readline()))
                journals = sorted((tmp_path / "killed").glob("work/*/journal-*"))
                if journals and moments.random() < 0.5:  # what a machine's death may do to the last line
                    torn = moments.choice(journals).open("r+b")
                    torn.truncate(max(0, torn.seek(0, 2) - moments.randrange(40)))
                    torn.close()
            process.stdin.close()
        assert regenerate_dataset(**call) == told
    assert (tmp_path / "killed/output.jsonl").read_bytes() == (tmp_path / "whole/output.jsonl").read_bytes()
    assert [row["id"] for row in read_jsonl(tmp_path / "killed/output.jsonl")] == [f"c{n}" for n in range(COUNT)]
    # A kill costs what was under way and one torn line, three turns each at most.
    assert sum(Echo.asked.values()) <= needed + KILLS * 3 * (INFLIGHT + 1)
    assert statuses.count(signal.SIGKILL) >= KILLS * 0.8, "it was done before it could be killed"


def test_shards_are_joined_to_the_same_bytes_and_another_number_asks_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    with echo() as endpoint:
        told = regenerate_dataset(**request(tmp_path / "one", 50, endpoint), **joined(tmp_path / "one"))
        Echo.asked.clear()
        call = request(tmp_path / "many", 50, endpoint, shards=3)
        receipts = [
            regenerate_shard(**call, shard=shard, receipt=str(tmp_path / f"{shard}.json")) for shard in (2, 0, 1)
        ]
        assert [receipt["conversations"] for receipt in receipts] == [18, 16, 16]
        assert read_json(tmp_path / "2.json") == receipts[0]
        said = sum(Echo.asked.values())
        assert regenerate_dataset(**call, **joined(tmp_path / "many")) == told
        call = request(tmp_path / "many", 50, endpoint, shards=4)
        for shard in range(4):
            regenerate_shard(**call, shard=shard, receipt=str(tmp_path / "receipt.json"))
        assert sum(Echo.asked.values()) == said
    for name in ("output", "errors"):
        assert (tmp_path / f"many/{name}.jsonl").read_bytes() == (tmp_path / f"one/{name}.jsonl").read_bytes()


def test_a_failed_shard_leaves_the_others_alone_and_is_not_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    monkeypatch.setattr("specforge.regenerate.client.ATTEMPTS", 1)
    with echo() as endpoint:
        call = request(tmp_path, 32, endpoint, shards=2, max_failed_share=0.2)
        Echo.bad = frozenset(map(str, range(0, 16)))
        regenerate_shard(**call, shard=1, receipt=str(tmp_path / "1.json"))
        with pytest.raises(UserError, match=r"of 16 conversations failed.*HTTP 500: boom|no server answers"):
            regenerate_shard(**call, shard=0, receipt=str(tmp_path / "0.json"))
        assert not (tmp_path / "0.json").exists()
        with pytest.raises(UserError, match=r"of 32 conversations are not regenerated yet; run the rule"):
            regenerate_dataset(**call, **joined(tmp_path))
        Echo.bad = frozenset()
        Echo.asked.clear()
        regenerate_shard(**call, shard=0, receipt=str(tmp_path / "0.json"))
        assert not any(int(number) >= 16 for number in Echo.asked)
        assert regenerate_dataset(**call, **joined(tmp_path))["regenerated"] == 32


def test_failures_of_shards_are_in_the_joined_file_and_a_forced_shard_asks_them_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    monkeypatch.setattr("specforge.regenerate.client.ATTEMPTS", 1)
    with echo() as endpoint:
        call = request(tmp_path, 32, endpoint, shards=2)
        Echo.bad = frozenset({"3", "20"})
        failed = [
            regenerate_shard(**call, shard=shard, receipt=str(tmp_path / "r.json"))["failed"] for shard in range(2)
        ]
        told = regenerate_dataset(**call, **joined(tmp_path))
        assert failed == [1, 1]
        assert (told["regenerated"], told["failed"]) == (30, 2)
        assert [row["id"] for row in read_jsonl(tmp_path / "errors.jsonl")] == ["c3", "c20"]
        assert "snakemake --cores all --forcerun regenerate_shard" in caplog.text
        Echo.bad = frozenset()
        Echo.asked.clear()
        for shard in range(2):
            regenerate_shard(**call, shard=shard, receipt=str(tmp_path / "r.json"))
        assert Echo.asked.keys() == {"3", "20"}
        assert regenerate_dataset(**call, **joined(tmp_path))["regenerated"] == 32


def test_more_shards_than_blocks_are_empty_pieces(tmp_path):
    with echo() as endpoint:
        call = request(tmp_path, 5, endpoint, shards=3)
        sizes = [
            regenerate_shard(**call, shard=shard, receipt=str(tmp_path / "r.json"))["conversations"]
            for shard in range(3)
        ]
        assert sorted(sizes) == [0, 0, 5]
        assert regenerate_dataset(**call, **joined(tmp_path))["regenerated"] == 5


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (
            True,
            {
                "regenerated": 6,
                "excluded": {},
                "ended_early_by_reason": {},
                "finish_reasons": {"length": 2, "stop": 10},
            },
        ),
        (
            False,
            {
                "regenerated": 5,
                "excluded": {"length": 1},
                "ended_early_by_reason": {"length": 1},
                "finish_reasons": {"stop": 10},
            },
        ),
    ],
)
def test_turns_cut_by_length_are_counted_whether_kept_or_not(tmp_path, keep, expected):
    with echo() as endpoint:
        Echo.cut = frozenset({("3", 1), ("4", 4)})
        call = request(tmp_path, 6, endpoint, keep_truncated=keep)
        told = regenerate_dataset(**call, **joined(tmp_path))
        assert told["conversations"] == 6
        assert {key: told[key] for key in expected} == expected
        asked = sum(Echo.asked.values())
        assert regenerate_dataset(**call, **joined(tmp_path)) == told
        assert sum(Echo.asked.values()) == asked, "what was left out is done"
