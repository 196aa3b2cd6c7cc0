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


def test_servers_end_with_sigterm(tmp_path):
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
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
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


@pytest.mark.skipif(importlib.util.find_spec("sglang") is not None, reason="SGLang is installed here")
def test_missing_sglang_is_one_sentence():
    with pytest.raises(UserError, match=r"pip install \"specforge-opd\[sglang\]\""):
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
    settings = Regenerate(engine="sglang", temperature=0, max_tokens=8, concurrency=2)
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
