"""SIGTERM means: save, then stop. And no process outlives the one that started it."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Preempted(SystemExit):
    """SIGTERM came: the state is saved and the process ends with 143."""


@contextmanager
def sigterm_flag() -> Iterator[threading.Event]:
    """An event that SIGTERM sets instead of ending the process; inert outside the main thread."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def die_with_parent() -> None:
    """Has Linux kill this process when the one that started it dies, so that a killed run leaves none behind."""
    if sys.platform != "linux":
        return
    set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent process is gone")
