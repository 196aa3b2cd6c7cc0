"""Inference servers on this machine, for as long as a block runs."""

import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn
from urllib.parse import urlsplit

import httpx

from specforge.errors import UserError
from specforge.progress import Progress

HOST = "127.0.0.1"
HERE = (HOST, "localhost")
POLL_SECONDS = 0.5
START_SECONDS = 1800.0
STOP_SECONDS = 15.0
LOG_LINES = 15
LEASH = (sys.executable, "-I", "-S", str(Path(__file__).with_name("leash.py")))
# Not every OpenAI-compatible server has /health.
HEALTH_PATHS = ("/health", "/v1/models")

log = logging.getLogger("specforge")

Command = Callable[[int], Sequence[str]]
"""The words that start a server in the foreground on a port of HOST."""


class LocalServer:
    """A server's process, the leader of a group of its own, and where its words go. It may be started again."""

    def __init__(self, command: Command, gpus: str | None, path: Path):
        self.command, self.gpus, self.log = command, gpus, path
        self.url = ""
        self.process: subprocess.Popen | None = None

    def start(self, port: int) -> None:
        environment = os.environ | ({} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": self.gpus})
        again = self.process is not None
        with self.log.open("ab" if again else "wb") as file:
            # A group of its own: Ctrl-C reaches us alone, and we stop the server with all it started.
            self.process = subprocess.Popen(
                [*LEASH, *self.command(port)],
                env=environment,
                stdin=subprocess.PIPE,  # held open for as long as this process lives, see leash.py
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.url = f"http://{HOST}:{port}"
        log.info("starting an inference server on port %d; its words go to %s", port, self.log)

    def restart(self) -> None:
        """Ends what is left of it and starts it anew, on another port: the old one may still be bound."""
        self.stop()
        self.start(free_ports(1)[0])

    @property
    def dead(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def healthy(self) -> bool:
        """Whether it takes requests. Raises UserError, with its last words, when it has ended."""
        if self.dead:
            raise UserError(
                f"the inference server ended with status {self.process and self.process.returncode} while it started; "
                f"{self.log} ends with:\n{self.last_words()}"
            )
        return answers(self.url)

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])

    def stop(self) -> None:
        """Ends the whole group: an engine's workers outlive a leader that was killed."""
        if self.process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        self.process.stdin.close()


def answers(url: str) -> bool:
    """Whether the server there takes requests now."""
    try:
        with httpx.Client(timeout=10.0, trust_env=urlsplit(url).hostname not in HERE) as client:
            replies = (client.get(url + path) for path in HEALTH_PATHS)
            # One that asks for a key answers.
            return any(reply.is_success or reply.status_code in (401, 403) for reply in replies)
    except httpx.TransportError:
        return False


def sglang_command(
    model: str,
    revision: str | None,
    tp_size: int,
    template: Path | None = None,
    reasoning_parser: str | None = None,
    tool_call_parser: str | None = None,
    python: str | None = None,
) -> Command:
    """`template` is a Jinja file in place of the model's own, `python` what has SGLang, if not this one.

    Raises UserError when SGLang is not installed.
    """
    if python is None and importlib.util.find_spec("sglang") is None:
        raise UserError(
            "regenerate.engine is 'sglang', which is not installed: run pip install -e '.[sglang]' without "
            "constraints.txt (SGLang pins versions of its own), name the Python of an environment that has it in "
            "regenerate.server_python, or set regenerate.engine to 'transformers'."
        )
    if python is not None and not Path(python).is_file():
        raise UserError(f"regenerate.server_python: {python} is no file; name the Python that has SGLang.")
    words = [python or sys.executable, "-m", "sglang.launch_server", "--model-path", model, "--tp-size", str(tp_size)]
    words += ["--revision", revision] if revision else []
    words += ["--chat-template", str(template)] if template else []
    words += ["--reasoning-parser", reasoning_parser] if reasoning_parser else []
    words += ["--tool-call-parser", tool_call_parser] if tool_call_parser else []
    # The model's file may cut to the top k; the losses are about its uncut distribution.
    words += ["--host", HOST, "--sampling-defaults", "openai"]
    return lambda port: [*words, "--port", str(port)]


@contextmanager
def running_servers(
    command: Command, *, count: int, gpus_each: int, logs: Path, timeout: float = START_SECONDS
) -> Iterator[list[LocalServer]]:
    """Yields `count` healthy servers; they are stopped however the block ends, SIGTERM included.

    Each sees `gpus_each` GPUs of its own; 0 leaves the environment as it is. Raises UserError when one
    ends while it starts or is not healthy within `timeout` seconds.
    """
    logs.mkdir(parents=True, exist_ok=True)
    slices = _gpu_slices(count, gpus_each)
    with _sigterm_unwinds(), ExitStack() as stack:
        servers = []
        for number, (port, gpus) in enumerate(zip(free_ports(count), slices, strict=True)):
            server = LocalServer(command, gpus, logs / f"server-{number}.log")
            stack.callback(server.stop)
            server.start(port)
            servers.append(server)
        _await_health(servers, timeout)
        yield servers


def _await_health(servers: Sequence[LocalServer], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    progress = Progress("inference servers", len(servers), "ready", every=30.0)
    waiting = list(servers)
    while True:
        still = [server for server in waiting if not server.healthy()]
        progress.advance(len(waiting) - len(still))
        waiting = still
        if not waiting:
            return
        if time.monotonic() > deadline:
            raise UserError(
                f"the inference server at {waiting[0].url} was not ready after {timeout:.0f} s; "
                f"{waiting[0].log} ends with:\n{waiting[0].last_words()}"
            )
        time.sleep(POLL_SECONDS)


def _gpu_slices(count: int, each: int) -> list[str | None]:
    if not each:
        return [None] * count
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        known, where = _gpus(), "this machine has"
    else:
        known, where = visible.split(",") if visible else [], "CUDA_VISIBLE_DEVICES names"
    gpus = [str(n) for n in range(count * each)] if known is None else known
    if len(gpus) < count * each:
        raise UserError(
            f"regenerate: {count} servers of {each} GPUs need {count * each}, and {where} {len(gpus)}; "
            "lower num_servers or tp_size."
        )
    return [",".join(gpus[n * each : (n + 1) * each]) for n in range(count)]


def _gpus() -> list[str] | None:
    """The machine's GPUs; None where nothing here can tell, and the servers will."""
    if shutil.which("nvidia-smi") is None:
        return None
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return None if listed.returncode else [str(number) for number in range(len(lines))]


def free_ports(count: int) -> list[int]:
    """All are held until the last is found, so that no two are the same."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM ends a Python process without its `finally` blocks; here it raises SystemExit instead."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
