"""GPUs of this machine, a job's own for as long as it runs: jobs side by side never share one unknowingly."""

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

log = logging.getLogger("specforge")

POLL_SECONDS = 1.0


def visible() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none without NVIDIA's driver."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    return [str(number) for number in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))]


@contextmanager
def leased(count: int) -> Iterator[list[str]]:
    """Takes `count` of the visible GPUs, or all if there are fewer, and hides the rest; waits while others have them.

    The leases are file locks, so a killed job's are free at once. Without GPUs, or with a count of 0, nothing changes.
    """
    names = visible()
    wanted = min(count, len(names))
    if not wanted:
        yield []
        return
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    with ExitStack() as stack:
        own = _take(names, wanted, stack)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        try:
            yield own
        finally:
            if before is None:
                del os.environ["CUDA_VISIBLE_DEVICES"]
            else:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


def _take(names: list[str], wanted: int, stack: ExitStack) -> list[str]:
    """All at once or none, so that two jobs never wait for each other."""
    # Slurm numbers a job's GPUs from 0 where it hides the others: the same name in two of its jobs is two GPUs
    allocation = os.environ.get("SLURM_JOB_ID", "")
    folder = Path(tempfile.gettempdir()) / f"specforge-gpus-{os.getuid()}{allocation and '-'}{allocation}"
    folder.mkdir(exist_ok=True)
    told = False
    while True:
        with ExitStack() as trial:
            own = []
            for name in names:
                file = trial.enter_context((folder / f"{name}.lock").open("a"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                own.append(name)
                if len(own) == wanted:
                    stack.push(trial.pop_all())
                    return own
        if not told:
            log.info("waiting for %d of %d GPUs", wanted, len(names))
            told = True
        time.sleep(POLL_SECONDS)
