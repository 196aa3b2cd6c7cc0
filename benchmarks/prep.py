"""What prep_dataset costs a row, in time and memory: `python benchmarks/prep.py [ROWS ...]`.

Each size runs in a process of its own on made conversations of two rounds that share no prompt. Held-out rows keep
their prompt's shingles in memory, others only digests, so two shares are run; memory a row is the difference to the
size before.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from specforge.config.steps import Prepare
from specforge.steps.prep_dataset import prep_dataset

SIZES = (20_000, 100_000, 200_000)
SHARES = (0.002, 0.06)
WORDS = [f"{a}{b}{c}" for a in ("ba", "do", "ki", "lu", "me") for b in ("ra", "ti", "so", "ne") for c in "abcdefgh"]


def write_rows(path: Path, count: int) -> None:
    """Prompts of 30 words, answers of 100."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            turns = [
                {"role": role, "content": " ".join(rng.choices(WORDS, k=size))}
                for _ in range(2)
                for role, size in (("user", 30), ("assistant", 100))
            ]
            file.write(json.dumps({"id": f"row-{number}", "conversations": turns}) + "\n")


def measure(path: str, share: str) -> None:
    """Prints seconds and the process's peak in bytes."""
    folder = Path(path).parent
    files = {name: str(folder / name) for name in ("train", "test", "rejected", "summary")}
    start = time.perf_counter()
    settings = Prepare(test_share=float(share)).model_dump(mode="json")
    prep_dataset(dataset=path, sample_size=None, split_eval=True, seed=0, settings=settings, **files)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sys.stdout.write(json.dumps([time.perf_counter() - start, peak]))


def main(sizes: tuple[int, ...]) -> None:
    for share in SHARES:
        before = None
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "rows.jsonl"
                write_rows(path, size)
                command = [sys.executable, __file__, "measure", str(path), str(share)]
                seconds, peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            grown = f", {(peak - before[1]) / (size - before[0]):.0f} bytes a row more" if before else ""
            line = (
                f"test_share {share:g}, {size} rows: {size / seconds:.0f} rows/s, peak {peak / 2**20:.0f} MiB{grown}\n"
            )
            sys.stdout.write(line)
            before = size, peak


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(*sys.argv[2:])
    else:
        main(tuple(map(int, sys.argv[1:])) or SIZES)
