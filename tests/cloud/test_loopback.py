"""The loopback backend by itself, with the real modal client and a small app: what tests that use it rely on."""

import ast
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from grpclib import Status
from loopback import Loopback
from loopback.state import CallState

pytestmark = pytest.mark.skipif(not Loopback.available(), reason="this machine allows no namespaces")

APP = '''
import os, pathlib, time
import modal

app = modal.App("demo")
data = modal.Volume.from_name("data", create_if_missing=True, version=2)
image = modal.Image.debian_slim(python_version="3.11").uv_pip_install("numpy").env({"COLOUR": "deep blue"})
image = image.add_local_python_source("helper", ignore=["**/*.txt"])
options = dict(image=image, volumes={"/data": data}, single_use_containers=True)
twice = modal.Retries(max_retries=1, initial_delay=0.0, backoff_coefficient=1.0)


@app.function(**options, secrets=[modal.Secret.from_name("key")], gpu="H100:2", timeout=60)
def look(text):
    import helper

    return {
        "echo": text,
        "environment": dict(os.environ),
        "helper": sorted(os.listdir(pathlib.Path(helper.__file__).parent)),
        "here": os.getcwd(),
        "sees": sorted(os.listdir("/")),
    }


@app.function(**options)
def forgetful(name):
    pathlib.Path("/data", name + "-began").write_text("")
    data.commit()
    pathlib.Path("/data", name).write_text("kept in a private copy")
    while not pathlib.Path("/data", name + "-may-end").exists():
        time.sleep(0.1)
        data.reload()


@app.function(**options)
def peek(name):
    return pathlib.Path("/data", name).exists()


@app.function(**options, retries=twice)
def flaky(way):
    """Ends badly in its first attempt and says which attempt it is in the second."""
    data.reload()
    marker = pathlib.Path("/data/attempts")
    attempt = int(marker.read_text()) + 1 if marker.exists() else 1
    marker.write_text(str(attempt))
    data.commit()
    pathlib.Path(f"/data/uncommitted-{attempt}").write_text("")
    print("attempt", attempt, flush=True)
    if attempt == 1 and way == "wait":
        time.sleep(60)
    if attempt == 1:
        raise ValueError("the first attempt fails")
    return attempt, pathlib.Path("/data/uncommitted-1").exists()


@app.function(**options, timeout=1)
def slow():
    time.sleep(60)


@app.function(**options)
def careless():
    with open("/data/kept"):
        data.reload()


@app.function(**options)
def meet(number, of):
    pathlib.Path("/data", f"here-{number}").write_text("")
    data.commit()
    while sum(name.startswith("here-") for name in os.listdir("/data")) < of:
        time.sleep(0.2)
        data.reload()
    return number


@app.local_entrypoint()
def main(text: str = ""):
    print("it said", look.remote(text)["echo"])
'''

Client = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    folder = tmp_path_factory.mktemp("cloud")
    with Loopback(folder, {"key": {"KEY": "abc"}}, container_env={"OMP_NUM_THREADS": "1"}) as server:
        yield server
        assert server.unknown_rpcs == []


@pytest.fixture(scope="module")
def client(server: Loopback, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """Runs lines of Python in a new process; the app is deployed, and `fn(name)` finds its functions."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "demo.py").write_text(APP)
    (folder / "helper").mkdir()
    (folder / "helper" / "__init__.py").write_text("")
    (folder / "helper" / "notes.txt").write_text("not mounted")

    def run(code: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        head = "import io, time, modal\ndef fn(name): return modal.Function.from_name('demo', name)\n"
        return subprocess.run(
            [sys.executable, *(command or ["-c", head + code])],
            cwd=folder,
            env=os.environ | {"HOST_ONLY": "1"} | server.environment | environment,
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
        )

    result = run("import demo; demo.app.deploy(name='demo', environment_name='main')")
    assert result.returncode == 0, result.stderr
    return run


def said(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def start(client: Client, call: str) -> str:
    """Spawns in a process of its own, which then ends; returns the call's id."""
    return said(client(f"print({call}.object_id)"))


def test_a_call_is_found_again_by_another_process(server: Loopback, client: Client) -> None:
    call = start(client, "fn('look').with_options(gpu='H200:8', timeout=120, retries=2).spawn(text='x' * 20_000)")

    seen = ast.literal_eval(said(client(f"print(modal.FunctionCall.from_id({call!r}).get(timeout=20))")))

    assert seen["echo"] == "x" * 20_000
    assert {"KEY": "abc", "COLOUR": "deep blue", "OMP_NUM_THREADS": "1"}.items() <= seen["environment"].items()
    assert "HOST_ONLY" not in seen["environment"]
    assert seen["here"] == "/root"
    assert "__init__.py" in seen["helper"]
    assert "notes.txt" not in seen["helper"]
    assert "work" not in seen["sees"]
    asked = server.resources(next(c for c in server.calls if c.id == call).definition)
    assert (asked.gpu, asked.timeout, asked.retries, asked.secrets) == ("H200:8", 120, 2, ["key"])
    assert asked.volumes == {"/data": "data"}
    assert any("numpy" in line for line in asked.image)
    assert server.resources(server.definitions["look"]).gpu == "H100:2"


def test_modal_run_shows_the_log_and_ends(client: Client) -> None:
    assert "it said hello" in said(client("", "-m", "modal", "run", "-m", "demo", "--text", "hello"))


def test_a_forgotten_commit_shows(server: Loopback, client: Client) -> None:
    call = start(client, "fn('forgetful').spawn(name='draft')")
    data = server.volume("data")
    wait_for((data / "draft-began").exists)

    assert said(client("print(fn('peek').remote(name='draft'))")) == "False"

    (data / "draft-may-end").write_text("")
    wait_for((data / "draft").exists)  # committed when its container ended
    assert (data / "draft").read_text() == "kept in a private copy"
    assert next(c.state for c in server.calls if c.id == call) == CallState.SUCCEEDED


def words(server: Loopback, call: str) -> str:
    """What the containers at work on a call have said so far."""
    batches = [batch for app in list(server._backend.apps.values()) for batch in list(app.logs)]
    return "".join(item.data for batch in batches for item in batch.items if item.function_call_id == call)


@pytest.mark.parametrize("end", ["kill", "preempt", "raise"])
def test_a_lost_container_is_replaced(server: Loopback, client: Client, end: str) -> None:
    (server.volume("data") / "attempts").unlink(missing_ok=True)
    (server.volume("data") / "uncommitted-1").unlink(missing_ok=True)
    call = start(client, f"fn('flaky').spawn(way={'raise' if end == 'raise' else 'wait'!r})")
    wait_for(lambda: end == "raise" or "attempt 1" in words(server, call))
    if end == "kill":
        server.kill_container("flaky")
    elif end == "preempt":
        server.preempt_container("flaky")

    result = client(f"print(modal.FunctionCall.from_id({call!r}).get(timeout=20))")

    # What a killed container had not committed is lost, one that is taken away commits as it leaves; a retry may find
    # its first container again, or another.
    assert said(result) in {"kill": ["(2, False)"], "preempt": ["(2, True)"], "raise": ["(2, False)", "(2, True)"]}[end]
    assert next(c.retries for c in server.calls if c.id == call) == (0 if end == "preempt" else 1)


def test_the_log_of_one_call(server: Loopback, client: Client) -> None:
    (server.volume("data") / "attempts").unlink(missing_ok=True)
    call = start(client, "fn('flaky').spawn(way='raise')")

    result = client(f"for e in modal.FunctionCall.from_id({call!r}).logs.stream(): print(e.message, end='')")

    assert "attempt 1" in said(result)
    assert "attempt 2" in result.stdout
    assert "the first attempt fails" in result.stdout


def test_results_of_calls_that_do_not_end_well(server: Loopback, client: Client) -> None:
    code = """
live, late = fn('forgetful').spawn(name='live'), fn('slow').spawn()
def outcome(call, timeout=20):
    try:
        return call.get(timeout=timeout)
    except Exception as error:
        return type(error).__name__
print(outcome(live, 0))
live.cancel(terminate_containers=True)
print(outcome(live), outcome(late), outcome(modal.FunctionCall.from_id('fc-none')))
print(outcome(fn('careless').spawn()))
"""
    (server.volume("data") / "kept").write_text("")

    assert said(client(code)).split() == [
        "TimeoutError",
        "RemoteError",
        "FunctionTimeoutError",
        "NotFoundError",
        "RuntimeError",
    ]
    assert {c.state for c in server.calls if c.function in {"slow", "forgetful"}} >= {
        CallState.CANCELLED,
        CallState.TIMED_OUT,
    }


def test_files_go_up_and_come_down(server: Loopback, client: Client) -> None:
    code = """
volume = modal.Volume.from_name("files", create_if_missing=True)
large = bytes(range(256)) * 40_000 + bytes(8_000_000)
for _ in range(2):
    with volume.batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(large), "/a/large")
        batch.put_file(io.BytesIO(b"hello"), "/a/small")
assert b"".join(volume.read_file("a/large")) == large
target = io.BytesIO()
volume.read_file_into_fileobj("a/small", target)
assert target.getvalue() == b"hello"
print(sorted((e.path, e.size) for e in volume.iterdir("/", recursive=True) if e.type == 1))
volume.remove_file("a/small")
print([e.path for e in volume.listdir("/a")])
"""
    before = server.uploaded_bytes

    assert said(client(code)) == "[('a/large', 18240000), ('a/small', 5)]\n['a/large']"

    assert 0 < server.uploaded_bytes - before < 18_240_005  # the same blocks go up once


def test_a_corrupt_download_is_visible(server: Loopback, client: Client) -> None:
    (server.volume("data") / "download").write_bytes(b"good")
    server.corrupt_downloads = 1

    result = client("for _ in range(2): print(b''.join(modal.Volume.from_name('data').read_file('download')))")

    bad, good = map(ast.literal_eval, said(result).splitlines())
    assert good == b"good"
    assert bad != good
    assert len(bad) == len(good)


def test_twelve_calls_run_at_once(server: Loopback, client: Client) -> None:
    result = client(
        "calls = [fn('meet').spawn(number=i, of=12) for i in range(12)]\nprint([c.get(timeout=30) for c in calls])"
    )

    assert said(result) == str(list(range(12)))
    assert server.spawned["meet"] == 12


def test_refusals(server: Loopback, client: Client) -> None:
    code = """
import demo
def refused(action):
    try:
        action()
    except Exception as error:
        print(type(error).__name__, " ".join(str(error).split()))
refused(modal.Secret.from_name("none").hydrate)
refused(lambda: modal.Volume.from_name("data", environment_name="dev").listdir("/"))
refused(lambda: fn("look").spawn(text=""))
refused(lambda: demo.app.deploy(name="demo"))
"""
    server.refuse_calls = (Status.RESOURCE_EXHAUSTED, "The limit of GPUs is reached")
    server.fail_image_builds = "No matching distribution"
    secret, elsewhere, quota, build = said(client(code)).splitlines()
    server.refuse_calls = server.fail_image_builds = None

    assert secret.startswith("NotFoundError Secret 'none' not found in environment 'main'")
    assert elsewhere == "NotFoundError Environment 'dev' not found"
    assert quota == "ResourceExhaustedError The limit of GPUs is reached"
    assert re.match("ImageBuildError .*No matching distribution", build)
    assert "AuthError: Token" in client("fn('look').hydrate()", MODAL_TOKEN_SECRET="wrong").stderr


def test_an_unknown_rpc_fails_by_name(server: Loopback, client: Client) -> None:
    result = client("modal.Queue.from_name('q', create_if_missing=True).hydrate()")

    assert "does not serve QueueGetOrCreate" in result.stderr
    assert server.unknown_rpcs == ["QueueGetOrCreate"]
    server.unknown_rpcs.clear()


def test_nothing_is_left(tmp_path: Path) -> None:
    with Loopback(tmp_path) as server:
        (tmp_path / "app.py").write_text(
            "import modal, time\napp = modal.App('a')\n@app.function()\ndef sleep():\n    time.sleep(600)\n"
        )
        code = "import app; app.app.deploy(name='a'); app.sleep.spawn()"
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | server.environment, check=True)
        wait_for(lambda: [c.pid for c in server.containers() if c.call])
        pid = server.containers()[0].pid
        assert Path(f"/proc/{pid}").exists()

    assert not Path(f"/proc/{pid}").exists()


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.02)
