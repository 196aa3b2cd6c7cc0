import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from tiny import make_conversations, make_tiny_target

from specforge.config.steps import Regenerate
from specforge.errors import UserError
from specforge.regenerate.engine import Block
from specforge.regenerate.http import HttpEngine
from specforge.regenerate.servers import running_servers, sglang_command

needs_serving = pytest.mark.skipif(
    importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None,
    reason="the real server needs pip install 'transformers[serving]'",
)
PLAIN = """
import http.server, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[2], "a").write(f"{os.getpid()} {child.pid} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
class Ok(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ok).serve_forever()
"""

MORTAL = """
import http.server, json, os, sys
port, notes, life = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
lives = sum(1 for _ in open(notes)) if os.path.exists(notes) else 0
open(notes, "a").write("born\\n")
class Mortal(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        global life
        self.rfile.read(int(self.headers["Content-Length"]))
        life -= 1
        if life < 0 and lives < int(sys.argv[4]):
            sys.stderr.write("out of memory\\n")
            sys.stderr.flush()
            os._exit(7)
        choice = {"message": {"content": f"from {notes}"}, "finish_reason": "stop"}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [choice]}).encode())
http.server.ThreadingHTTPServer(("127.0.0.1", port), Mortal).serve_forever()
"""


def mortal(notes: Path, life: int, deaths: int):
    """A server that dies after `life` answers, the first `deaths` times that it is started."""
    return lambda port: [sys.executable, "-c", MORTAL, str(port), str(notes), str(life), str(deaths)]


def said_by(servers, count: int, **settings) -> dict[str, dict]:
    engine = HttpEngine(servers, "tiny", Regenerate(engine="sglang", **settings), backoff=0.01)
    return {row["id"]: row for row in engine.run([Block(make_conversations(count), ())])}


def plain(pids):
    """A server with a worker, as real ones have."""
    return lambda port: [sys.executable, "-c", PLAIN, str(port), str(pids)]


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_gone(pids, seconds=5.0) -> bool:
    numbers = [pid for line in pids.read_text().splitlines() for pid in line.split()[:2]]
    deadline = time.monotonic() + seconds
    while any(map(alive, numbers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(numbers) and not any(map(alive, numbers))


def test_servers_get_gpus_of_their_own_and_end_with_the_block(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    pids = tmp_path / "pids"
    with running_servers(plain(pids), count=2, gpus_each=2, logs=tmp_path / "logs", timeout=30) as servers:
        assert len({server.url for server in servers}) == 2
        assert all(httpx.get(f"{server.url}/v1/models", trust_env=False).is_success for server in servers)
    assert {line.split()[2] for line in pids.read_text().splitlines()} == {"4,5", "6,7"}
    assert all_gone(pids)


def test_servers_end_with_an_exception(tmp_path):
    pids = tmp_path / "pids"
    with (
        pytest.raises(RuntimeError, match="oops"),
        running_servers(plain(pids), count=1, gpus_each=0, logs=tmp_path, timeout=30),
    ):
        raise RuntimeError("oops")
    assert all_gone(pids)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_servers_end_with_the_process_that_started_them(tmp_path, sent, status):
    pids, ready = tmp_path / "pids", tmp_path / "ready"
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from specforge.regenerate.servers import running_servers\n"
        f"words = [sys.executable, '-c', {PLAIN!r}]\n"
        f"command = lambda port: [*words, str(port), {str(pids)!r}]\n"
        f"with running_servers(command, count=1, gpus_each=0, logs=Path({str(tmp_path)!r}), timeout=30):\n"
        f"    Path({str(ready)!r}).touch()\n    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 30
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(sent)
        assert process.wait(30) == status
    finally:
        process.kill()
    assert all_gone(pids)


def test_a_server_that_dies_while_starting_is_quoted(tmp_path):
    def dying(port):
        return [sys.executable, "-c", "import sys; sys.stderr.write('no such GPU\\n'); sys.exit(3)"]

    with (
        pytest.raises(UserError, match=r"ended with status 3.*\n.*no such GPU"),
        running_servers(dying, count=1, gpus_each=0, logs=tmp_path, timeout=30),
    ):
        pass


def test_a_server_that_never_gets_ready_is_stopped(tmp_path):
    pids = tmp_path / "pids"

    def deaf(port):
        code = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()} ' * 2); time.sleep(600)"
        return [sys.executable, "-c", code, str(pids)]

    with (
        pytest.raises(UserError, match="was not ready after 1 s"),
        running_servers(deaf, count=1, gpus_each=0, logs=tmp_path, timeout=1.0),
    ):
        pass
    assert all_gone(pids)


def test_too_few_gpus_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with (
        pytest.raises(UserError, match="2 servers of 2 GPUs need 4, and CUDA_VISIBLE_DEVICES names 1"),
        running_servers(plain(tmp_path), count=2, gpus_each=2, logs=tmp_path),
    ):
        pass


def test_too_few_gpus_of_the_machine_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with (
        pytest.raises(UserError, match="2 servers of 1 GPUs need 2, and this machine has 1"),
        running_servers(plain(tmp_path), count=2, gpus_each=1, logs=tmp_path),
    ):
        pass


def test_a_server_that_dies_is_started_again_and_nothing_is_lost(tmp_path, caplog):
    caplog.set_level("INFO")
    notes = tmp_path / "notes"
    with running_servers(mortal(notes, 5, 2), count=1, gpus_each=0, logs=tmp_path, timeout=30) as servers:
        rows = said_by(servers, 12, concurrency=2)
        assert not servers[0].dead
    assert len(rows) == 12
    assert not any("error" in row for row in rows.values())
    assert notes.read_text() == "born\n" * 3
    assert caplog.text.count("its conversations move on") == 2
    assert (tmp_path / "server-0.log").read_text().count("out of memory") == 2, "earlier words are kept"


def test_a_server_that_always_dies_is_left_out_and_the_others_go_on(tmp_path, caplog):
    well, ill = tmp_path / "well", tmp_path / "ill"
    commands = iter([mortal(well, 0, 0), mortal(ill, 0, 99)])
    with (
        running_servers(next(commands), count=1, gpus_each=0, logs=tmp_path / "a", timeout=30) as good,
        running_servers(next(commands), count=1, gpus_each=0, logs=tmp_path / "b", timeout=30) as bad,
    ):
        rows = said_by([*good, *bad], 300, concurrency=2)
    assert len(rows) == 300
    assert not any("error" in row for row in rows.values())
    assert 2 <= ill.read_text().count("born") <= 4


def test_without_any_server_left_their_last_words_are_named(tmp_path):
    with (
        running_servers(mortal(tmp_path / "notes", 0, 99), count=1, gpus_each=0, logs=tmp_path, timeout=30) as servers,
        pytest.raises(UserError, match=r"no server answers any more .*last words are in .*server-0\.log.*run again"),
    ):
        said_by(servers, 8, concurrency=1)
    assert (tmp_path / "notes").read_text().count("born") == 4


@pytest.mark.skipif(importlib.util.find_spec("sglang") is not None, reason="SGLang is installed here")
def test_missing_sglang_is_one_sentence():
    with pytest.raises(UserError, match=r"pip install -e '\.\[sglang\]' without constraints\.txt"):
        sglang_command("model", None, 1)


@needs_serving
def test_a_real_server_regenerates(tmp_path, monkeypatch):
    (tmp_path / "hf" / "hub").mkdir(parents=True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = str(make_tiny_target(tmp_path / "model"))
    code = "from transformers.cli.transformers import main; main()"
    words = [
        sys.executable,
        "-c",
        code,
        "serve",
        model,
        "--host",
        "127.0.0.1",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    records = make_conversations(3)
    url = "http://127.0.0.1:1"  # not used: the engine is given the servers, which know no words beyond OpenAI's
    settings = Regenerate(engine="endpoint", endpoints=(url,), temperature=0, max_tokens=8, concurrency=2)
    with running_servers(
        lambda port: [*words, "--port", str(port)], count=1, gpus_each=0, logs=tmp_path / "logs", timeout=120
    ) as servers:
        rows = {row["id"]: row for row in HttpEngine(servers, model, settings).run([Block(records, ())])}
    assert sorted(rows) == ["c0", "c1", "c2"]
    for record in records:
        answers = [turn for turn in rows[record["id"]]["conversations"] if turn["role"] == "assistant"]
        assert len(answers) == sum(turn["role"] == "assistant" for turn in record["conversations"])
        assert all(turn["content"] and turn["finish_reason"] in {"stop", "length"} for turn in answers)
        assert rows[record["id"]]["tokens"] > 0
