"""Runs a command, and ends it with all it started once the other end of stdin is closed: `python leash.py COMMAND...`.

A step that is killed with -9 cannot stop its servers, which would keep its GPUs; but the system closes its pipes.
Leads a process group of its own. Standard library only, and nothing of this package: it starts in 20 ms.
"""

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    # A handler, which the command does not inherit: who stops the group waits for the command, not for this process.
    signal.signal(signal.SIGTERM, lambda *_: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_the_other_side, daemon=True).start()
    status = child.wait()
    if status < 0:  # ends as it ended
        if -status == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _end_with_the_other_side() -> None:
    while os.read(0, 4096):  # past sys.stdin, whose lock a process that ends may not find free
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
