"""What regenerate_dataset's HTTP client sustains, and in how much memory.

    python benchmarks/regeneration.py            # 480, 1,000 and 2,000 requests a second against answers in 50 ms
    python benchmarks/regeneration.py million    # 1,000,000 conversations against answers in 5 ms, once

The real step runs in a process of its own, against servers in a second one that answer each request so long after it
came and do nothing else. The share is of num_servers * concurrency / 0.05, over the middle 80 % of the requests, as the
servers counted them; memory is the step's largest resident set. What other processes took of the machine's cores
meanwhile is told too: a rate counts only where that is next to nothing.
"""

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import psutil

SERVERS = 2
ROUNDS, SECONDS = 3, 10.0
QUESTION = "How does a tide pool keep its animals alive between two floods, and what do they eat? " * 4
ANSWER = "Most of them close up and wait; what the last wave left behind feeds them until the next. " * 7


class Answering(asyncio.Protocol):
    """Reads requests with a Content-Length and answers each `delay` seconds after its last byte."""

    times: ClassVar[list[tuple[float, float]]] = []
    """When each request was whole and when its answer went out, of all connections."""

    def __init__(self, delay: float, reply: bytes):
        self.delay, self.reply, self.buffer = delay, reply, b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, blank, rest = self.buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
        if len(rest) >= length:
            self.buffer = rest[length:]
            came = time.monotonic()
            asyncio.get_running_loop().call_at(came + self.delay, self.answer, came)

    def answer(self, came: float) -> None:
        self.times.append((came, time.monotonic()))
        self.transport.write(self.reply)


async def serve(delay: float) -> None:
    """Prints the ports, answers until standard input ends, then prints the middle's requests a second."""
    choice = {"message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
    body = json.dumps({"choices": [choice], "usage": {"completion_tokens": 150}}).encode()
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(lambda: Answering(delay, reply), "127.0.0.1", 0) for _ in range(SERVERS)]
    tell([server.sockets[0].getsockname()[1] for server in servers])
    await loop.run_in_executor(None, sys.stdin.read)
    times = Answering.times
    edge = len(times) // 10
    middle = times[edge:-edge]
    took = [sent - came for came, sent in middle]
    rate = (len(middle) - 1) / (middle[-1][1] - middle[0][1])
    tell({"requests": len(times), "rate": rate, "answer": sum(took) / len(took)})


def step(call: dict) -> None:
    """The step, as its script would run it; prints the largest resident set in MB."""
    from specforge.steps.regenerate_dataset import regenerate_dataset

    summary = regenerate_dataset(**call)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tell({"peak": peak, "regenerated": summary["regenerated"], "torch": "torch" in sys.modules})


def spent() -> tuple[float, float, float]:
    """Seconds on the clock, of all the machine's cores that were busy, and of the cores by this process's children."""
    times, own = psutil.cpu_times(), resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic(), sum(times[:8]) - times.idle - times.iowait, own.ru_utime + own.ru_stime


def tell(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def write_source(path: Path, conversations: int, turns: int) -> None:
    with path.open("w") as file:
        for number in range(conversations):
            said = [
                turn
                for _ in range(turns)
                for turn in ({"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER})
            ]
            file.write(json.dumps({"id": f"conversation-{number:09d}", "conversations": said}) + "\n")


def measure(conversations: int, turns: int, concurrency: int, delay: float) -> dict:
    """One run from nothing, in files that are gone afterwards; checks that the output is whole and in order."""
    from specforge.config.steps import Regenerate

    me = [sys.executable, __file__]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_source(folder / "train.jsonl", conversations, turns)
        (folder / "target.json").write_text(json.dumps({"model": "fake", "revision": None, "sha256": "0" * 64}))
        server = subprocess.Popen([*me, "serve", str(delay)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        urls = [f"http://127.0.0.1:{port}" for port in json.loads(server.stdout.readline())]
        settings = Regenerate(engine="endpoint", endpoints=urls, concurrency=concurrency)
        call = {key: str(folder / key) for key in ("output", "errors", "summary", "work")}
        call |= {"source": str(folder / "train.jsonl"), "target": str(folder / "target.json"), "code": "", "threads": 1}
        call |= {"settings": settings.recipe(), "placement": settings.placement()}
        before = spent()
        done = subprocess.run([*me, "step", json.dumps(call)], stdout=subprocess.PIPE, text=True, check=True)
        told = json.loads(done.stdout) | json.loads(server.communicate("")[0])
        seconds, busy, own = (after - earlier for after, earlier in zip(spent(), before, strict=True))
        told |= {"seconds": seconds, "others": max(0.0, busy - own) / seconds / psutil.cpu_count()}
        with (folder / "output").open() as file:
            whole = all(json.loads(line)["id"] == f"conversation-{n:09d}" for n, line in enumerate(file))
        counts = (told["requests"], told["regenerated"])
        if told["torch"] or not whole or counts != (conversations * turns, conversations):
            raise SystemExit(f"the run is not what it should be: {told}")
        return told


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(float(sys.argv[2])))
    elif sys.argv[1:2] == ["step"]:
        step(json.loads(sys.argv[2]))
    elif sys.argv[1:2] == ["million"]:
        told = measure(1_000_000, 1, 64, 0.005)
        tell({key: round(value, 2) for key, value in told.items()})
    else:
        for concurrency in (12, 25, 50):
            most, turns = SERVERS * concurrency / 0.05, 2
            for _ in range(ROUNDS):
                told = measure(int(most * SECONDS / turns), turns, concurrency, 0.05)
                share = told["rate"] / most
                sys.stdout.write(
                    f"{SERVERS} x {concurrency}: {told['rate']:.0f} requests/s, {share:.1%} of {most:.0f}, "
                    f"{told['peak']:.0f} MB, "
                    f"answers after {told['answer'] * 1000:.1f} ms, {told['seconds']:.0f} s in all, "
                    f"others took {told['others']:.0%} of the cores\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
